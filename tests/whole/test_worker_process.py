"""Isolated processes: what is lost when one crashes, hangs or asks for all memory there is, and what is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import GUARD

from tvmcnn.worker_process import Isolated, LostError

PLANTED = """
import ctypes, os, time

def add(a, b):
    return a + b

def fail(text):
    raise ValueError(text)

def odd():
    class Local(Exception):  # which cannot be pickled
        pass
    raise Local("told all the same")

def noisy():
    os.write(1, b"to the descriptor")
    print("to Python's standard output")
    return "answer"

def crash():
    ctypes.string_at(0)

def hang():
    while True:
        pass

def leave(status):
    os._exit(status)

def devour():
    kept = []
    while True:
        kept.append(bytearray(b"x") * (64 << 20))

def devour_in_c():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    while True:
        size = 64 << 20
        address = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(address, 1, size)

def pid():
    return os.getpid()

def big(size):
    return bytes(size)
"""


def ends(pid: int) -> bool:
    """Wait for the end of a process that is about to end."""
    deadline = time.monotonic() + GUARD
    while time.monotonic() < deadline:
        try:
            if "(zombie)" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Isolated:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Isolated(1 << 30, quiet=True)
    yield made
    made.close()


def test_answers(process: Isolated) -> None:
    """One process answers many calls, whatever it prints, and messages of any size."""
    assert process.call("planted:add", 3, 4) == 7
    assert process.call("planted:noisy") == "answer"
    assert len(process.call("planted:big", 5_000_000, seconds=GUARD)) == 5_000_000
    assert process.call("planted:add", "x" * 3_000_000, "y") == "x" * 3_000_000 + "y"
    assert process.call("planted:pid") == process.call("planted:pid")


def test_exceptions_come_back(process: Isolated) -> None:
    before = process.call("planted:pid")
    with pytest.raises(ValueError, match="so it is"):
        process.call("planted:fail", "so it is")
    with pytest.raises(RuntimeError, match="Local: told all the same"):
        process.call("planted:odd")
    with pytest.raises(AttributeError):
        process.call("planted:nothing")
    assert process.call("planted:pid") == before, "an exception costs no process"


@pytest.mark.parametrize(
    ("function", "arguments", "how"),
    [
        ("crash", (), "ended by SIGSEGV"),
        ("leave", (3,), "ended with status 3"),
        ("hang", (), "took more than 0.5 s"),
        ("devour", (), "ran out of memory"),
        ("devour_in_c", (), "ended by SIGSEGV"),
    ],
)
def test_one_call_is_lost(process: Isolated, function: str, arguments: tuple[int, ...], how: str) -> None:
    """The next is answered, by a new process if need be."""
    assert process.call("planted:add", 1, 1) == 2  # which is started by now
    with pytest.raises(LostError, match=how):
        process.call(f"planted:{function}", *arguments, seconds=0.5 if function == "hang" else GUARD)
    assert process.call("planted:add", 1, 2) == 3


def test_a_process_that_died_at_rest_costs_nothing(process: Isolated) -> None:
    os.kill(pid := process.call("planted:pid"), signal.SIGKILL)
    assert ends(pid)
    assert process.call("planted:add", 1, 2) == 3


def test_no_process_outlives_its_parent(tmp_path: Path) -> None:
    """Not even one that hangs, when the parent is killed."""
    (tmp_path / "planted.py").write_text(PLANTED)
    text = f"""
import sys, threading, time
sys.path.insert(0, {str(tmp_path)!r})
from tvmcnn.worker_process import Isolated
process = Isolated()
print(process.call("planted:pid"), flush=True)
threading.Thread(target=process.call, args=("planted:hang",), daemon=True).start()
time.sleep(1 << 20)
"""
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    if not ends(child):
        os.kill(child, signal.SIGKILL)
        pytest.fail("it lives on")
