"""Plant slips, one at a time, in a copy of this tree, and see whether the tests notice.

    python tools/mutate.py --record                    # once: which tests run which functions (as long as the suite)
    python tools/mutate.py [--count 200] [--seed 0] [--json FILE] [--part codegen,ops] [--jobs 2]

cosmic-ray makes the slips: another operator, number, condition or name in one place of the parts of the compiler. For
each those tests run that run its function, first those of files that name its module; where that is in other processes,
which no record sees, the tests of its file. A slip that no test notices is shown as a diff: it wants a test, or changes
nothing. C is not changed, nor what only annotations say. What --json has already of slips that were caught is not
judged again: a run that is broken off goes on where it was, and survivors meet the tests that are new. Needs
tvmcnn[mutation].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import mutation
from mutation import PARTS, Record, Slip

from tvmcnn.errors import ToolError
from tvmcnn.files import write_file
from tvmcnn.progress import bar

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / ".mutation-record.json"
SLOW, START = 10.0, 300.0  # times as long as its tests took, and seconds more, may a slip take before it hangs


NOT_CAUGHT = ("survived", "no test")


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a slip: "survived", "hang", "no test", or who has noticed it."""

    slip: Slip
    end: str
    tests: int
    diff: str


def copied(root: Path, folder: Path) -> Path:
    """A copy of what the source archive holds: nothing here touches the tree itself."""
    with (root / "pyproject.toml").open("rb") as file:
        names = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    for name in (*names, "pyproject.toml"):
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, folder / name)
    return folder


def pytest_in(folder: Path, words: Sequence[str], limit: float | None, **more: str) -> tuple[int | None, str]:
    """The status of pytest in a copy, None where it took too long, and what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    paths = [str(folder), str(folder / "tools"), *filter(None, [environment.get("PYTHONPATH")])]
    # Bytecode is told from its source by seconds and size alone, which a slip may keep.
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1", **more}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        said.seek(0)
        return status, said.read()


def recorded(root: Path, jobs: int, tests: Sequence[str]) -> Record:
    """Run the suite once, in a copy, and see which tests run which functions."""
    with tempfile.TemporaryDirectory(prefix="tvmcnn-mutate-") as name:
        folder, notes = Path(name, "tree"), Path(name, "notes")
        folder.mkdir()
        notes.mkdir()
        copied(root, folder)
        status, said = pytest_in(
            folder, ["-n", str(jobs), "-p", "mutation_record", *tests], None, MUTATION_RECORD=str(notes)
        )
        told = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        print("\n".join([*told, said.rstrip().rsplit("\n", 1)[-1]]), file=sys.stderr)
        if status not in (0, 1):
            raise ToolError(f"the suite ended with status {status}: {said[-1000:]}")
        return Record.gathered(folder, notes)


def judged(folder: Path, slip: Slip, record: Record | None, most: float) -> Result:
    """Plant a slip in a copy, run the tests that could notice it, and take it out again."""
    diff, own = mutation.difference(folder, slip), mutation.files_that_name(folder, slip)
    if record is not None:
        tests, seconds = record.tests(slip, most, own)
        limit: float | None = START + SLOW * seconds
    else:
        tests, limit = own or ["tests"], START + SLOW * most
    if not tests:
        return Result(slip, "no test", 0, diff)
    path, listed = folder / slip.path, folder / "slip-tests.txt"
    text = path.read_text()
    listed.write_text("\n".join(tests) + "\n")
    path.write_text(mutation.changed(folder, slip))
    try:
        status, said = pytest_in(folder, ["-x", "-n", "1", "-rfE", f"@{listed}"], limit)
    finally:
        path.write_text(text)
    if status is None:
        return Result(slip, "hang", len(tests), diff)
    named = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    return Result(slip, "survived" if status == 0 else named[1] if named else f"status {status}", len(tests), diff)


def mutate(
    root: Path,
    slips: Sequence[Slip],
    record: Record | None,
    jobs: int = 1,
    most: float = 300.0,
    judged_one: Callable[[list[Result]], None] = lambda results: None,
) -> list[Result]:
    """Judge slips, on as many copies at once as `jobs`; `judged_one` gets the results so far after each."""
    place = tempfile.TemporaryDirectory(prefix="tvmcnn-mutate-")
    with place as name, ThreadPoolExecutor(jobs) as pool, bar() as progress:
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            (folder := Path(name, str(number))).mkdir()
            free.put(copied(root, folder))

        def one(slip: Slip) -> Result:
            folder = free.get()
            try:
                return judged(folder, slip, record, most)
            finally:
                free.put(folder)

        results, survivors = [], 0
        for future in as_completed([pool.submit(one, slip) for slip in slips]):
            results.append(future.result())
            survivors += results[-1].end in NOT_CAUGHT
            progress(f"slips, {survivors} not caught", len(results), len(slips))
            judged_one(results)
    return sorted(results, key=lambda each: each.slip)


def known(path: Path | None, root: Path, slips: Sequence[Slip]) -> list[Result]:
    """The results in a file of those slips that were caught, and that still change the same line in the same way."""
    if path is None or not path.exists():
        return []
    rows = json.loads(path.read_text())["results"]
    found = [Result(**row | {"slip": Slip(**row["slip"])}) for row in rows if row["end"] not in NOT_CAUGHT]
    return [each for each in found if each.slip in slips and mutation.difference(root, each.slip) == each.diff]


def told(results: Sequence[Result]) -> str:
    """A table by part, the survivors with their diffs, and the share caught."""
    survivors = [each for each in results if each.end in NOT_CAUGHT]
    shown = [f"{each.slip} ({each.end}, {each.tests} tests)\n{each.diff}\n" for each in survivors]
    caught = len(results) - len(survivors)
    ends = [(each.slip, "survived" if each in survivors else each.end) for each in results]
    share = f"{caught} of {len(results)} caught ({caught / max(1, len(results)):.0%})"
    return "\n".join([*shown, mutation.table(ends), share])


def main() -> int:
    """Record, or draw and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="slips")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--part", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--jobs", type=int, default=1, help="slips at once, or workers of --record")
    parser.add_argument("--most", type=float, default=300.0, help="seconds of tests a slip, by the record")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--record", action="store_true", help=f"run the suite and write {RECORD.name}")
    parser.add_argument("tests", nargs="*", help="with --record: these alone")
    options = parser.parse_args()
    if unknown := {*options.part.split(",")} - {*PARTS}:
        parser.error(f"there is no part '{min(unknown)}'; there are {', '.join(PARTS)}")
    if options.record:
        recorded(ROOT, options.jobs, options.tests).write(RECORD)
        return 0
    record = Record.read(RECORD) if RECORD.exists() else None
    if record is None:
        print(f"{RECORD.name} is missing: whole test files run; --record makes it", file=sys.stderr)
    slips = mutation.drawn(ROOT, options.count, options.seed, options.part.split(","))
    before = known(options.json, ROOT, slips)
    left = sorted({*slips} - {each.slip for each in before})

    def keep(results: list[Result]) -> None:
        """An hour's work is not lost with the last slip."""
        if options.json is not None:
            rows = [dataclasses.asdict(each) for each in sorted([*before, *results], key=lambda each: each.slip)]
            write_file(options.json, json.dumps({"seed": options.seed, "results": rows}, indent=1) + "\n")

    found = mutate(ROOT, left, record, options.jobs, options.most, keep)
    print(told(sorted([*before, *found], key=lambda each: each.slip)))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ToolError as error:
        sys.exit(f"mutate: {error}")
