"""Workers: processes that compile jobs side by side, each fed through its standard input and output.

Processes, because TVM holds Python's lock; started by name rather than by fork or multiprocessing, because LLVM has
threads that a fork would lose, and multiprocessing would run the caller's script a second time.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from tvmcnn.codegen.jobs import Job
from tvmcnn.errors import ToolError

ALONE = 8  # jobs that one process compiles before another has imported TVM (1.5 s)

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
        from tvmcnn.codegen.kernels import object_code  # imports TVM

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
    workers = [_start() for _ in range(processes)]
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
        for worker in workers:
            worker.kill()
            worker.wait()
        for thread in threads:
            thread.join()
        for worker in workers:
            for pipe in (worker.stdin, worker.stdout):
                with contextlib.suppress(OSError):  # of one that died with a job half sent
                    if pipe is not None:
                        pipe.close()


def _start() -> subprocess.Popen[bytes]:
    paths = repr([path for path in sys.path if path])
    program = f"import sys; sys.path[:0] = {paths}; from tvmcnn.codegen.workers import serve; serve()"
    return subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _feed(worker: subprocess.Popen[bytes], waiting: Any, answers: Any) -> None:
    """Give the worker one job after another, until there is none or the worker is gone."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            symbol, job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            _send(worker.stdin, job)
            answers.put((symbol, _receive(worker.stdout)))
        except (OSError, EOFError):
            status = worker.wait()  # its pipes are closed: it has ended, or is about to
            text = (
                f"a compiler process ended (status {status}) at {symbol}: is there enough memory? --jobs 1 needs least"
            )
            answers.put((symbol, ToolError(text)))
            return
        except Exception as error:  # not to be waited for in vain
            answers.put((symbol, error))
            return


def serve() -> None:
    """A worker: compile what standard input gives until it ends."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TVM and LLVM print, from Python or C++, must not get between the answers
    from tvmcnn.codegen.kernels import object_code

    while True:
        try:
            job = _receive(source)
        except EOFError:
            return
        answer: Any
        try:
            answer = object_code(job)
        except Exception as error:
            answer = _portable(error)
        _send(target, answer)


def _portable(error: Exception) -> Exception:
    """The exception itself if it can be pickled, else one with its text: some of TVM's cannot."""
    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(size, "little")))
