"""The live displays: within 80 columns of a terminal, without colour where it is not wanted, plain in a file."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from tuning_models import small

from tvmcnn.demo import MODEL

COLUMNS = 80
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-79]|38;[0-9;]+|9[0-7])m")


def in_terminal(words: list[str], folder: Path, **environment: str) -> str:
    """What a terminal of 80 columns gets from a command."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        os.chdir(folder)
        os.environ.update({"TERM": "xterm-256color", **environment})
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [sys.executable, "-m", "tvmcnn", *words])
    said = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # the command has ended
            break
        if not part:
            break
        said += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said.decode(errors="replace")
    return said.decode()


def widest(said: str) -> int:
    return max(len(line) for line in re.split(r"[\r\n]+", ESCAPE.sub("", said)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "small.onnx").write_bytes(small().SerializeToString())
    return folder


TUNE = ["tune", "small.onnx", "--budget", "2s", "--from-scratch"]


def test_eighty_columns(folder: Path) -> None:
    """Tables, folded lines and bars, in colours; the heads of the table are whole."""
    assert widest(in_terminal(["compile", str(MODEL), "-o", "lenet5.so"], folder)) <= COLUMNS
    assert widest(in_terminal(["bench", "lenet5.so", "--seconds", "0.1"], folder)) <= COLUMNS
    assert widest(in_terminal(["inspect", "lenet5.so"], folder)) <= COLUMNS
    said = in_terminal([*TUNE, "-o", "a.jsonl"], folder)
    assert widest(said) <= COLUMNS
    assert re.search(r"default µs +best µs +gain +peak +tried +may gain µs", ESCAPE.sub("", said))
    assert COLOUR.search(said)


def test_without_colour(folder: Path) -> None:
    said = in_terminal(["compile", "small.onnx", "-o", "a.so"], folder, NO_COLOR="1")
    assert "compiling kernels" in said and not COLOUR.search(said)
    plain = in_terminal([*TUNE, "-o", "d.jsonl"], folder, TERM="dumb")
    assert "\x1b" not in plain and "of the peak" in plain


def test_into_a_file(folder: Path) -> None:
    """A line is a line there, however long, and nothing moves a cursor."""
    words = [sys.executable, "-m", "tvmcnn", "compile", str(MODEL), "-o", "piped.so"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > COLUMNS
    assert not any(line.startswith(" ") for line in done.stdout.splitlines())
