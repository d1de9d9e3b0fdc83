"""Build: the jobs of candidates, compiled in isolated processes; one that fails, hangs or dies is lost alone."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tvmcnn.cache import Cache
from tvmcnn.codegen.jobs import Job
from tvmcnn.codegen.workers import OBJECT_CODE
from tvmcnn.worker_process import Isolated, LostError, last_line

SECONDS = 30.0  # for one candidate: the slowest takes one
MEMORY = 3 << 30  # bytes: TVM and LLVM take 0.4 GB


class Builder:
    """Some processes that compile, and what they have made already."""

    def __init__(self, processes: int, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._free: queue.SimpleQueue[Isolated] = queue.SimpleQueue()
        self._all = [Isolated(memory, quiet=True) for _ in range(processes)]
        for each in self._all:
            self._free.put(each)
        self._threads = ThreadPoolExecutor(processes)
        self._seconds, self._cache = seconds, Cache.default()
        self._failed: dict[str, str] = {}  # by key of a job the reason: it would fail again
        self._killed = False

    def build(self, jobs: Mapping[str, Job]) -> dict[str, bytes | str]:
        """Object code by symbol, or the reason why there is none."""
        return dict(zip(jobs, self._threads.map(self._one, jobs.values()), strict=True))

    def _one(self, job: Job) -> bytes | str:
        if job.key in self._failed:
            return self._failed[job.key]
        if (known := self._cache.get(job.key)) is not None:
            return known
        process = self._free.get()
        try:
            if self._killed:
                return "the search was stopped"
            data: bytes = process.call(OBJECT_CODE, job, seconds=self._seconds)
        except LostError as error:
            self._failed[job.key] = f"the compiler {error}"
        except Exception as error:
            self._failed[job.key] = f"does not compile: {last_line(error)}"
        else:
            self._cache.put(job.key, data)
            return data
        finally:
            self._free.put(process)
        return self._failed[job.key]

    def kill(self) -> None:
        """End the processes in the middle of their jobs, from another thread; nothing is built any more."""
        self._killed = True
        for process in self._all:
            process.kill()

    def close(self) -> None:
        """End the processes."""
        self.kill()
        self._threads.shutdown()
        for process in self._all:
            process.close()
