"""tools/mutate.py on a tree of one module: what it plants, which tests it runs, and what it leaves as it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from data import ROOT, TOOLS

pytest.importorskip("cosmic_ray", reason="cosmic-ray is not installed: pip install 'tvmcnn[mutation]'")
pytest.importorskip("coverage", reason="coverage is not installed: pip install 'tvmcnn[mutation]'")

import mutate
import mutation

pytestmark = pytest.mark.slow

SOURCE = """
from __future__ import annotations

LIMIT = 7


def clipped(x: int | None) -> int:
    return LIMIT if x is None or x > LIMIT else x


def halved(x: int) -> int:
    while x > 5:
        x = x // 2
    return x


def unseen(x: int) -> int:
    return x + 3
"""
PAGE = "<p>It's a page</p>"
TESTS = """
from pathlib import Path

import tvmcnn
from tvmcnn.arena import clipped, halved

def test_a_template():
    # one of Jinja runs under the name of a page, which is no Python
    page = Path(tvmcnn.__file__).with_name("page.html")
    exec(compile("shown = 1", page, "exec"))

def test_clipped():
    assert [clipped(x) for x in (None, 6, 7, 8)] == [7, 6, 7, 7]

def test_halved():
    assert [halved(x) for x in (5, 6, 20)] == [5, 3, 5]

def test_halved_alone():
    assert halved(4) == 4

def test_that_fails():
    assert clipped(1) == 2
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    files = {
        "tvmcnn/__init__.py": "",
        "tvmcnn/arena.py": SOURCE,
        "tvmcnn/page.html": PAGE,
        "tests/test_arena.py": TESTS,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    (root / "pyproject.toml").write_text(
        '[tool.hatch.build.targets.sdist]\ninclude = ["tvmcnn", "tests", "tools"]\n'
        '[tool.pytest.ini_options]\npythonpath = ["tools"]\n'
    )
    (root / "tools").mkdir()
    shutil.copy(TOOLS / "mutation_record.py", root / "tools")
    return root


@pytest.fixture(scope="module")
def record(tree: Path) -> mutation.Record:
    return mutate.recorded(tree, 1, [])


def test_every_file_of_a_part_has_one(tree: Path) -> None:
    root = ROOT
    found = [path for part in mutation.PARTS for path in mutation.files(root, part)]
    assert len(found) == len({*found}) > 100
    for part, words in mutation.PARTS.items():
        assert all(list((root / "tvmcnn").glob(word)) for word in words), part


def test_slips_are_drawn_by_the_seed(tree: Path) -> None:
    """Each of another place, none of an annotation; the same seed draws the same."""
    draws = [mutation.drawn(tree, 9, seed, ["layout"]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len({(slip.line, slip.column) for slip in draws[0]}) == 9
    every = mutation.slips(tree, tree / "tvmcnn" / "arena.py", "layout")
    assert not any("_BitOr_" in slip.operator for slip in every), "int | None is an annotation"
    assert {slip.function for slip in every} == {"", "clipped", "halved", "unseen"}
    assert all(mutation.changed(tree, slip) != SOURCE for slip in every)


def test_a_record_knows_the_tests_of_a_function(tree: Path, record: mutation.Record, tmp_path: Path) -> None:
    """Tests that pass, the fastest first, within a limit; for a function that no test runs, those of its file."""
    slips = {slip.function: slip for slip in mutation.slips(tree, tree / "tvmcnn" / "arena.py", "layout")}
    ours = "tests/test_arena.py::"
    assert record.tests(slips["clipped"], 60)[0] == [f"{ours}test_clipped"]
    assert {*record.tests(slips["halved"], 60)[0]} == {f"{ours}test_halved", f"{ours}test_halved_alone"}
    assert len(record.tests(slips["halved"], 0)[0]) == 1
    record.write(tmp_path / "record.json")
    assert mutation.Record.read(tmp_path / "record.json") == record
    assert len(record.tests(slips["unseen"], 60)[0]) == len(record.tests(slips[""], 60)[0]) == 3


def test_own_tests_come_first_then_each_file_in_turn() -> None:
    """And what would take too long is left out, not all that follows it."""
    seconds = {"a.py::1": 1.0, "a.py::2": 2.0, "a.py::3": 3.0, "b.py::9": 9.0, "own.py::5": 5.0, "own.py::90": 90.0}
    record = mutation.Record(seconds, {"tvmcnn/x.py:f": sorted(seconds)})
    slip = mutation.Slip("tvmcnn/x.py", 3, 0, "core/AddNot", 0, "ops", "f")
    assert record.tests(slip, 30, ["own.py"]) == (["own.py::5", "a.py::1", "b.py::9", "a.py::2", "a.py::3"], 20.0)
    assert record.tests(slip, 7, ["own.py"])[0] == ["own.py::5", "a.py::1"]


def test_slips_are_caught_or_shown(tree: Path, record: mutation.Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip is named with the test that fails, or as one that hangs; the tree itself stays as it is."""
    every = mutation.slips(tree, tree / "tvmcnn" / "arena.py", "layout")

    def judged(*wanted: tuple[str, str]) -> list[mutate.Result]:
        chosen = [next(s for s in every if s.function == name and s.operator.endswith(op)) for name, op in wanted]
        so_far = list[int]()
        found = mutate.mutate(tree, chosen, record, 2, judged_one=lambda results: so_far.append(len(results)))
        assert so_far == [*range(1, len(chosen) + 1)]
        results = {each.slip: each for each in found}
        return [results[each] for each in chosen]

    results = judged(("clipped", "Gt_Lt"), ("clipped", "Gt_GtE"), ("unseen", "Add_Sub"))
    assert [each.end for each in results] == ["tests/test_arena.py::test_clipped", "survived", "survived"]
    monkeypatch.setattr(mutate, "START", 1.0)  # for one that never ends
    results += judged(("halved", "FloorDiv_BitOr"))
    assert results[-1].end == "hang"
    said = mutate.told(results)
    assert "2 of 4 caught (50%)" in said and "layout        2 of    4 caught" in said
    assert "-    return x + 3\n+    return x - 3" in said
    assert (tree / "tvmcnn" / "arena.py").read_text() == SOURCE
    assert not list(tree.rglob("__pycache__"))


def test_without_a_record(tree: Path) -> None:
    """The files of tests that import the module."""
    (slip,) = mutation.drawn(tree, 1, 0, ["layout"])
    assert mutation.files_that_name(tree, slip) == ["tests/test_arena.py"]


def test_what_was_caught_is_kept(tree: Path, tmp_path: Path) -> None:
    """Not a survivor, which new tests may catch; not one of another sample, or whose line reads otherwise now."""
    slips = mutation.drawn(tree, 4, 1, ["layout"])
    diffs = [mutation.difference(tree, slip) for slip in slips]
    ends = ["tests/test_arena.py::test_clipped", "survived", "hang", "no test"]
    rows = [
        dataclasses.asdict(mutate.Result(slip, end, 2, diff))
        for slip, end, diff in zip(slips, ends, diffs, strict=True)
    ]
    path = tmp_path / "results.json"
    assert mutate.known(path, tree, slips) == []
    path.write_text(json.dumps({"seed": 1, "results": rows}))
    assert [each.slip for each in mutate.known(path, tree, slips)] == [slips[0], slips[2]]
    assert [each.slip for each in mutate.known(path, tree, slips[1:])] == [slips[2]]
    rows[0]["diff"] = "-    another line"
    path.write_text(json.dumps({"seed": 1, "results": rows}))
    assert [each.slip for each in mutate.known(path, tree, slips)] == [slips[2]]
