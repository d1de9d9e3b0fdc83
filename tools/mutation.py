"""Slips: single changes of the source, drawn by a seed, each with the tests that could notice it."""

from __future__ import annotations

import ast
import collections
import difflib
import fnmatch
import functools
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS: Mapping[str, tuple[str, ...]] = {
    "import": ("onnx_file/*", "importer/*", "network.py"),
    "fuse": ("fuse/*",),
    "choose": ("choose/*", "algorithms.py", "configs.py", "loops.py", "precision.py", "targets/*", "winograd.py"),
    "layout": ("packing.py", "packed_band.py", "blocks.py", "half_weights.py", "layout.py", "arena.py"),
    "quantising": ("quantising/*",),
    "ops": ("ops/*",),
    "schedule": ("schedule/*",),
    "codegen": ("codegen/*", "compiler.py", "platforms.py"),
    "artifact": ("artifact/*", "cache.py", "files.py", "reweighting.py"),
    "run": ("machine.py", "run/*"),
    "check": ("check/*",),
    "tuning": ("tuning/*", "worker_process.py"),
}


@dataclass(frozen=True, order=True)
class Slip:
    """One change: the `occurrence`-th place in a file where an operator of cosmic-ray applies."""

    path: str  # from the root
    line: int
    column: int
    operator: str
    occurrence: int
    part: str
    function: str  # its qualified name; "" outside of any

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.operator.removeprefix('core/')}"


# ---- drawing --------------------------------------------------------------------------------------------------------


def drawn(root: Path, count: int, seed: int, parts: Iterable[str] = PARTS) -> list[Slip]:
    """A sample of slips, evenly over the places of these parts: of all that one place allows, one."""
    places: dict[tuple[object, ...], list[Slip]] = collections.defaultdict(list)
    for part in parts:
        for path in files(root, part):
            for slip in slips(root, path, part):
                places[slip.path, slip.line, slip.column].append(slip)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(count, len(places)))
    return [rng.choice(sorted(places[place])) for place in chosen]


def files(root: Path, part: str) -> list[Path]:
    """The source files of a part."""
    names = {path: path.relative_to(root / "tvmcnn").as_posix() for path in (root / "tvmcnn").rglob("*.py")}
    return sorted(p for p, name in names.items() if any(fnmatch.fnmatch(name, word) for word in PARTS[part]))


def slips(root: Path, path: Path, part: str) -> list[Slip]:
    """Every slip of a file, but for those in annotations, which nothing evaluates, and of decorators and exceptions."""
    from cosmic_ray.ast import ast_nodes, get_ast

    text = path.read_text()
    nodes, functions, silent = list(ast_nodes(get_ast(text))), functions_of(text), unevaluated(text)
    found = []
    for name, operator in operators().items():
        occurrence = -1
        for node in nodes:
            for (line, column), _ in operator.mutation_positions(node):
                occurrence += 1
                if not any(begin <= (line, column) < end for begin, end in silent):
                    inside = innermost(functions, line)
                    place = str(path.relative_to(root))
                    found.append(Slip(place, line, column, name, occurrence, part, inside))
    return found


@functools.cache
def operators() -> dict[str, Any]:
    """cosmic-ray's operators that take no arguments."""
    from cosmic_ray import plugins

    kinds = {name: plugins.get_operator(name) for name in plugins.operator_names()}
    # No change; changes that every test of the file sees; and those that are none for numbers and names that Python
    # keeps once.
    left_out = ("NoOp", "Decorator", "Exception", "_Eq_Is", "_NotEq_IsNot", "_Is_Eq", "_IsNot_NotEq")
    return {
        name: kind()
        for name, kind in kinds.items()
        if not kind.arguments() and not any(name.endswith(word) or f"/{word}" in name for word in left_out)
    }


def changed(root: Path, slip: Slip) -> str:
    """The text of the slip's file with it."""
    from cosmic_ray.mutating import mutate_code

    text: str = mutate_code((root / slip.path).read_text(), operators()[slip.operator], slip.occurrence)
    return text


def difference(root: Path, slip: Slip) -> str:
    """What it changes, as a diff without context."""
    old, new = (root / slip.path).read_text().splitlines(), changed(root, slip).splitlines()
    return "\n".join(list(difflib.unified_diff(old, new, slip.path, slip.path, lineterm="", n=0))[2:])


def unevaluated(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a text has annotations, and what only a type checker runs."""
    found: list[ast.expr | ast.stmt] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is not None:
            found.append(node.returns)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found.append(node)
    return [((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0)) for n in found]


def functions_of(text: str) -> dict[str, range]:
    """The lines of each function by its qualified name."""
    found: dict[str, range] = {}

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                if not isinstance(child, ast.ClassDef):
                    found[".".join((*names, child.name))] = range(child.lineno + 1, (child.end_lineno or 0) + 1)
                visit(child, (*names, child.name))
            else:
                visit(child, names)

    visit(ast.parse(text), ())
    return found


def innermost(functions: Mapping[str, range], line: int) -> str:
    """The smallest function with a line; "" if none has it, as its first line, which runs when it is made."""
    return min((name for name in functions if line in functions[name]), key=lambda n: len(functions[n]), default="")


# ---- whose tests ----------------------------------------------------------------------------------------------------


@dataclass
class Record:
    """Which tests ran which functions, and for how long: from one run of the suite with mutation_record.py."""

    seconds: dict[str, float] = field(default_factory=dict)
    functions: dict[str, list[str]] = field(default_factory=dict)  # by "file:function" the tests

    @staticmethod
    def gathered(root: Path, folder: Path) -> Record:
        """What the workers of a run have left in a folder; by functions, so that it outlives an edit of other lines."""
        record, known = Record(), dict[str, dict[str, range]]()
        tests: dict[str, set[str]] = collections.defaultdict(set)
        for path in sorted(folder.glob("*.json")):
            part = json.loads(path.read_text())
            record.seconds |= part["seconds"]
            for name, lines in part["lines"].items():
                functions = known.setdefault(name, functions_of((root / name).read_text()))
                for line, ids in lines.items():
                    tests[f"{name}:{innermost(functions, int(line))}"].update(ids)
        record.functions = {name: sorted(ids) for name, ids in tests.items() if ids}
        return record

    @staticmethod
    def read(path: Path) -> Record:
        """The record in a file."""
        kept = json.loads(path.read_text())
        names = list(kept["seconds"])
        return Record(kept["seconds"], {key: [names[i] for i in ids] for key, ids in kept["functions"].items()})

    def write(self, path: Path) -> None:
        """Keep it in a file, where a test is a number: its place among the seconds."""
        numbers = {name: number for number, name in enumerate(self.seconds)}
        functions = {key: [numbers[name] for name in names] for key, names in self.functions.items()}
        path.write_text(json.dumps({"seconds": self.seconds, "functions": functions}, separators=(",", ":")))

    def tests(self, slip: Slip, most: float, own: Iterable[str] = ()) -> tuple[list[str], float]:
        """Tests that run the slip's function, as many as take `most` seconds; and their seconds. Those of its `own`
        files come first, the fastest before others; then those of each file in turn, for they look at other things.

        Where none does (it runs in other processes, or when a module is imported), tests that run any of its file.
        """
        found = self.functions.get(f"{slip.path}:{slip.function}", []) if slip.function else []
        if not found:
            found = [name for key, names in self.functions.items() if key.startswith(f"{slip.path}:") for name in names]
        chosen, spent = list[str](), 0.0
        for name in self._in_turn({*found}, {*own}):
            if not chosen or spent + self.seconds[name] <= most:
                chosen.append(name)
                spent += self.seconds[name]
        return chosen, spent

    def _in_turn(self, names: set[str], own: set[str]) -> list[str]:
        """Tests in the order in which they are worth running."""
        turns, fastest = collections.Counter[str](), sorted(names, key=lambda name: (self.seconds[name], name))
        place: dict[str, tuple[int, float]] = {}
        for name in fastest:
            file = name.partition("::")[0]
            place[name] = (0 if file in own else 1 + turns[file], self.seconds[name])
            turns[file] += 1
        return sorted(fastest, key=place.__getitem__)


def files_that_name(root: Path, slip: Slip) -> list[str]:
    """The test files that import or name the slip's module."""
    module = slip.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    parent, _, name = module.rpartition(".")
    words = rf"\b{re.escape(module)}\b|from {re.escape(parent)} import [^\n]*\b{name}\b"
    tests = sorted((root / "tests").rglob("test_*.py"))
    return [str(path.relative_to(root)) for path in tests if re.search(words, path.read_text())]


def table(rows: Sequence[tuple[Slip, str]]) -> str:
    """Count the slips that were caught, by part."""
    lines = []
    for part in PARTS:
        ends = [end for slip, end in rows if slip.part == part]
        if ends:
            caught = sum(end != "survived" for end in ends)
            lines.append(f"{part:<10} {caught:>4} of {len(ends):>4} caught")
    return "\n".join(lines)
