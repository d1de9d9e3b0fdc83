"""Worker process: it runs functions by name, within limits of time and memory.

Whatever happens in it costs one call: it may crash, hang or ask for all memory there is. A process, because TVM holds
Python's lock and machine code can be wrong; started by name rather than by fork or multiprocessing, because LLVM has
threads that a fork would lose, and multiprocessing would run the caller's script a second time.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from typing import IO, Any

LENGTH = 8  # bytes before each message that say how long it is
PR_SET_PDEATHSIG = 1  # prctl: the signal that the kernel sends when the parent is gone


class LostError(Exception):
    """The process ended, or was ended, in the middle of a call; the text says how: "ended by SIGSEGV"."""


@dataclass(frozen=True)
class _Raised:
    """An answer: what a call raised, and its traceback, which cannot be pickled."""

    error: Exception
    trace: str


class Isolated:
    """One process, started at the first call and again after it was lost. Not for several threads at once."""

    def __init__(self, memory: int | None = None, *, quiet: bool = False) -> None:
        """`memory` limits the bytes that it may allocate; `quiet` keeps what it prints from the user's terminal."""
        self.memory, self.quiet = memory, quiet
        self._process: subprocess.Popen[bytes] | None = None
        self._printed: IO[bytes] | None = None

    def call(self, function: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What "module:function" returns on pickled arguments; what it raises is raised here.

        Raises LostError if the process ends, or takes longer than `seconds` and is ended.
        """
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            send(process.stdin, (function, arguments))
            answer = _receive_by(process.stdout, None if seconds is None else time.monotonic() + seconds)
        except TimeoutError:
            self.close()
            raise LostError(f"took more than {seconds:g} s") from None
        except (OSError, EOFError):
            status = process.wait()  # its pipes are closed: it has ended, or is about to
            last = self._last_line()
            self.close()
            raise LostError(f"{_ending(status)}{f': {last}' if last else ''}") from None
        except BaseException:
            self.close()  # it would answer a question that nobody asks any more
            raise
        if isinstance(answer, _Raised):
            answer.error.add_note(f"In another process:\n{answer.trace}")
            raise answer.error
        return answer

    def kill(self) -> None:
        """End the process, whatever it does; also from another thread, whose call is then lost."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process and forget it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # of one that died with a message half sent
                    if pipe is not None:
                        pipe.close()
        if self._printed is not None:
            self._printed.close()
            self._printed = None

    def _start(self) -> None:
        paths = repr([path for path in sys.path if path])
        program = f"import sys; sys.path[:0] = {paths}; from tvmcnn.worker_process import serve; serve({self.memory})"
        self._printed = tempfile.TemporaryFile() if self.quiet else None  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            start_new_session=True,  # Ctrl-C is ours to answer
        )

    def _last_line(self) -> str:
        if self._printed is None:
            return ""
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def last_line(error: Exception) -> str:
    """The last line of an exception's text, which says what TVM's many lines come to; its type where there is none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def serve(memory: int | None) -> None:
    """The process: answer what standard input asks until it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is an answer, not a file
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TVM and LLVM print, from Python or C++, must not get between the answers
    while True:
        try:
            function, arguments = receive(source)
        except EOFError:
            return
        answer: Any
        try:
            module, _, name = function.partition(":")
            answer = getattr(importlib.import_module(module), name)(*arguments)
        except MemoryError:
            answer = _Raised(LostError("ran out of memory"), "")
        except Exception as error:
            answer = _portable(error)
        send(target, answer)


def send(pipe: IO[bytes], value: Any) -> None:
    """Write one message."""
    data = memoryview(pickle.dumps(value))
    whole = memoryview(len(data).to_bytes(LENGTH, "little") + data)
    while whole:  # an unbuffered pipe may take a part
        whole = whole[pipe.write(whole) :]
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """Read one message. Raises EOFError at the end."""
    size = pipe.read(LENGTH)
    if len(size) < LENGTH:
        raise EOFError
    return pickle.loads(pipe.read(int.from_bytes(size, "little")))


def _receive_by(pipe: IO[bytes], deadline: float | None) -> Any:
    """Read one message of an unbuffered pipe. Raises TimeoutError at the deadline, EOFError at the end."""
    size = int.from_bytes(_read(pipe, LENGTH, deadline), "little")
    return pickle.loads(_read(pipe, size, deadline))


def _read(pipe: IO[bytes], count: int, deadline: float | None) -> bytearray:
    data = bytearray()
    while len(data) < count:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([pipe], [], [], wait)[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(count - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return data


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-status).name}"
    return f"ended by signal {-status}"


def _portable(error: Exception) -> _Raised:
    """The exception itself if it can be pickled, else one with its text: some of TVM's cannot."""
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        if str(pickle.loads(pickle.dumps(error))) == str(error):
            return _Raised(error, trace)
    return _Raised(RuntimeError(f"{type(error).__name__}: {error}"), trace)
