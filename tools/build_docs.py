"""Build the documentation: run every command of its pages, see that they print what the pages say, and make the site.

    python tools/build_docs.py             check the pages, then build build/docs/index.html
    python tools/build_docs.py --update    write what the commands print into the pages, and their pictures

In a page a block of `sh` or `python` runs, in order, in a folder of the page's own; a block of `text` right behind it
is what it printed. Numbers, hashes and the CPU's name may differ between machines; words may not.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmcnn.files import write_file
from tvmcnn.worker_process import Isolated

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("tutorial.md", "rules.md")
BLOCK = re.compile(
    r"^```(?P<language>sh|python)\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
PICTURE = re.compile(r"!\[[^]]*\]\((images/(?P<name>[^)]+))\)")
SECONDS = 300


@dataclass(frozen=True)
class Ran:
    """A block that ran: where what it printed stands in the page (None: the page does not show it), and what it was."""

    place: tuple[int, int] | None
    shown: str
    printed: str


def run(text: str, folder: Path) -> list[Ran]:
    """Run the blocks of a page in `folder`, in a process of the page's own: rules.md enters a rule into tables.

    Raises RuntimeError with the block that fails.
    """
    process = Isolated()
    try:
        return [Ran(*each) for each in process.call("build_docs:blocks", text, folder)]
    finally:
        process.close()


def blocks(text: str, folder: Path) -> list[tuple[tuple[int, int] | None, str, str]]:
    """The fields of each block's Ran."""
    return [(each.place, each.shown, each.printed) for each in _blocks(text, folder)]


def _blocks(text: str, folder: Path) -> Iterator[Ran]:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for found in BLOCK.finditer(text):
        code = found["code"]
        printed = _python(code, namespace, folder) if found["language"] == "python" else _shell(code, folder)
        place = found.span("printed") if found["printed"] is not None else None
        yield Ran(place, found["printed"] or "", printed)


def _python(code: str, namespace: dict[str, Any], folder: Path) -> str:
    here, output = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(code, "page", "exec", dont_inherit=True), namespace)
    except Exception as error:
        raise RuntimeError(f"this block fails, {type(error).__name__}: {error}\n{code}") from error
    finally:
        os.chdir(here)
    return output.getvalue()


def _shell(code: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where `tvmcnn` and `python` are
    environment = {**os.environ, "PATH": path, "TVMCNN_SOURCE": str(ROOT), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = ["bash", "-euo", "pipefail", "-c", code]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"this block takes more than {SECONDS} s\n{code}") from error
    if done.returncode:
        raise RuntimeError(f"this block fails, status {done.returncode}: {done.stderr[-500:]}\n{code}")
    return done.stdout


def masked(text: str) -> list[str]:
    """The words of a text without what differs from machine to machine."""
    text = re.sub(r"\b(AMD|Intel)[^,\n]*", "CPU", text)
    text = re.sub(r"(?<![a-z])[0-9a-f]{16,}\b", "#", text)
    text = re.sub(r"\d[\d,.]*(e[+-]?\d+)?", "#", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def check(page: Path, folder: Path) -> list[str]:
    """The differences between what a page says and what its blocks print."""
    differences: list[str] = []
    for each in run(page.read_text(), folder):
        if each.place is not None and masked(each.shown) != masked(each.printed):
            lines = difflib.unified_diff(masked(each.shown), masked(each.printed), page.name, "now", lineterm="")
            differences += lines
    return differences


def update(page: Path, folder: Path) -> None:
    """Write what the blocks print into a page, and the pictures that it shows beside it."""
    text = page.read_text()
    for each in reversed(run(text, folder)):
        if each.place is not None:
            text = text[: each.place[0]] + each.printed + text[each.place[1] :]
    write_file(page, text)
    for found in PICTURE.finditer(text):
        shutil.copyfile(folder / found["name"], page.parent / found[1])


def build(output: Path) -> None:
    """The site. Raises RuntimeError with Sphinx's warnings, of which none is allowed."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"sphinx: {done.stderr[-2000:]}")


def main() -> int:
    """Run, compare or update, build."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write what is printed into the pages")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="(%(default)s)")
    options = parser.parse_args()
    differences: list[str] = []
    try:
        for name in PAGES:
            with tempfile.TemporaryDirectory() as folder:
                print(f"running {name}", flush=True)
                if options.update:
                    update(DOCS / name, Path(folder))
                else:
                    differences += check(DOCS / name, Path(folder))
        build(options.output)
    except RuntimeError as error:
        print(f"build_docs: {error}", file=sys.stderr)
        return 1
    print("\n".join(differences) or f"wrote {options.output / 'index.html'}")
    return 1 if differences else 0


if __name__ == "__main__":
    raise SystemExit(main())
