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
from tuning_models import tiny
from tuning_runs import DAY

from tvmcnn.demo import MODEL
from tvmcnn.progress import can_draw

pytestmark = pytest.mark.slow

COLUMNS = 80
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-79]|38;[0-9;]+|9[0-7])m")


# Bars appear after a second: here at once, however fast the machine is.
AT_ONCE = "from tvmcnn import cli, progress; progress.QUIET_SECONDS = 0.0; raise SystemExit(cli.main())"


def in_terminal(words: list[str], folder: Path, until: str = "", **environment: str) -> str:
    """What a terminal of 80 columns gets from a command; Ctrl-C is typed when it has got a pattern to stop at."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        os.chdir(folder)
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            os.environ.pop(name, None)
        os.environ.update({"TERM": "xterm-256color", **environment})
        os.execv(sys.executable, [sys.executable, "-c", AT_ONCE, *words])
    said, typed = b"", False
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # the command has ended
            break
        if not part:
            break
        said += part
        if until and not typed and re.search(until, ESCAPE.sub("", said.decode(errors="replace"))):
            typed = True
            os.write(terminal, b"\x03")
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (130 if typed else 0) and typed == bool(until), said.decode(errors="replace")
    return said.decode()


def widest(said: str) -> int:
    return max(len(line) for line in re.split(r"[\r\n]+", ESCAPE.sub("", said)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "few.onnx").write_bytes(tiny().SerializeToString())
    return folder


TUNE = ["--budget", DAY, "--from-scratch"]


def test_eighty_columns(folder: Path) -> None:
    """Tables, folded lines and bars, in colours; the heads of the table are whole."""
    assert widest(in_terminal(["compile", str(MODEL), "-o", "lenet5.so"], folder)) <= COLUMNS
    assert widest(in_terminal(["bench", "lenet5.so", "--seconds", "0.1"], folder)) <= COLUMNS
    assert widest(in_terminal(["inspect", "lenet5.so"], folder)) <= COLUMNS
    said = in_terminal(["tune", "few.onnx", *TUNE, "-o", "a.jsonl"], folder)
    assert widest(said) <= COLUMNS
    assert re.search(r"default µs +best µs +gain +peak +tried +may gain µs", ESCAPE.sub("", said))
    assert re.search(r"\d+ trials in \d+ s .* nothing is left to try ", " ".join(said.split()))
    assert COLOUR.search(said)


def test_without_colour(folder: Path) -> None:
    said = in_terminal(["compile", str(MODEL), "-o", "a.so"], folder, NO_COLOR="1")
    assert "compiling kernels" in said and not COLOUR.search(said)


def test_what_can_draw(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A terminal with a name that says so, as rich has it too; one without a name is none to be sure of."""
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as screen, (tmp_path / "file").open("w") as file:
        for term, wanted in (("xterm", True), ("linux", True), ("dumb", False), ("Unknown", False), ("", False)):
            monkeypatch.setenv("TERM", term)
            assert (can_draw(screen), can_draw(file)) == (wanted, False), term
        monkeypatch.delenv("TERM")
        assert not can_draw(screen)
    os.close(controller)


def test_a_terminal_that_cannot_draw(folder: Path) -> None:
    """No escape reaches it, however long a step takes; a search says its gains line by line, and Ctrl-C ends it."""
    said = in_terminal(["compile", str(MODEL), "-o", "a.so"], folder, TERM="")
    assert not escapes(said) and "wrote a.so" in said
    gain = r"of\s+the peak"
    said = in_terminal(["tune", "few.onnx", *TUNE, "-o", "b.jsonl"], folder, until=gain, TERM="dumb")
    assert not escapes(said) and "stopped; what was measured is kept" in said


def escapes(said: str) -> list[str]:
    """Each escape character with what stands around it: pytest's own words for `not in` would mislead."""
    return [said[max(0, found.start() - 40) : found.end() + 20] for found in re.finditer("\x1b", said)]


def test_into_a_file(folder: Path) -> None:
    """A line is a line there, however long, and nothing moves a cursor."""
    words = [sys.executable, "-m", "tvmcnn", "compile", str(MODEL), "-o", "piped.so"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) > COLUMNS
    assert not any(line.startswith(" ") for line in done.stdout.splitlines())
