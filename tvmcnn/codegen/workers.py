"""Workers: processes that compile jobs side by side."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from tvmcnn.codegen.jobs import Job
from tvmcnn.errors import ToolError
from tvmcnn.worker_process import Isolated, LostError

ALONE = 24  # jobs that one process compiles before two others have imported TVM and done them (LeNet-5: 1.0 s, not 1.9)
OBJECT_CODE = "tvmcnn.codegen.cpu.kernels:object_code"

Done = Callable[[str, bytes], None]  # receives a symbol and its object code


class JobError(Exception):
    """A job that failed, with the exception that it raised as the cause."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        super().__init__(symbol)


def build(jobs: Mapping[str, Job], processes: int, done: Done) -> None:
    """Compile every job, in as many processes as pay; `done` is called as each is ready, in any order.

    Raises JobError for the first that fails, and ToolError where a process dies.
    """
    if len(jobs) < ALONE or processes < 2:
        from tvmcnn.codegen.cpu.kernels import object_code  # imports TVM

        for symbol, job in jobs.items():
            try:
                done(symbol, object_code(job))
            except Exception as error:
                raise JobError(symbol) from error
        return
    _side_by_side(jobs, min(processes, len(jobs)), done)


def _side_by_side(jobs: Mapping[str, Job], processes: int, done: Done) -> None:
    waiting: queue.SimpleQueue[tuple[str, Job]] = queue.SimpleQueue()
    for each in jobs.items():
        waiting.put(each)
    answers: queue.SimpleQueue[tuple[str, bytes | BaseException]] = queue.SimpleQueue()
    workers = [Isolated() for _ in range(processes)]
    threads = [threading.Thread(target=_feed, args=(w, waiting, answers), daemon=True) for w in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in jobs:
            symbol, answer = answers.get()
            if isinstance(answer, bytes):
                done(symbol, answer)
            elif isinstance(answer, ToolError):
                raise answer
            else:
                raise JobError(symbol) from answer
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join()
        for worker in workers:
            worker.close()


def _feed(worker: Isolated, waiting: Any, answers: Any) -> None:
    """Give the worker one job after another, until there is none or the worker is gone."""
    while True:
        try:
            symbol, job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            answers.put((symbol, worker.call(OBJECT_CODE, job)))
        except LostError as error:
            text = f"a compiler process {error} at {symbol}: is there enough memory? --jobs 1 needs least"
            answers.put((symbol, ToolError(text)))
            return
        except Exception as error:  # not to be waited for in vain
            answers.put((symbol, error))
            return
