"""What `--emit` writes: the package that runs without tvmcnn, and the C header."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, model_of, node
from data import LENET5
from helpers import GUARD, without_compiler

import tvmcnn
from tvmcnn.artifact.package import runner_sources, write_package
from tvmcnn.cli import main
from tvmcnn.compiler import Compiled
from tvmcnn.errors import ToolError

Array = np.ndarray[Any, Any]
NAMES = {"__init__.py", "lenet5.so", "lenet5.h", *map(str, runner_sources())}


# Of what is installed, a program may see numpy and tvm_ffi; the compiler and tvmcnn itself are as good as absent.
@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return tvmcnn.compile(LENET5, output=tmp_path_factory.mktemp("library") / "lenet5.so", verify=False)


@pytest.fixture(scope="module")
def example() -> tuple[Array, Array]:
    """An input, and the scores that NumPy finds for it."""
    x = np.random.default_rng(5).standard_normal((1, 1, 32, 32), dtype=np.float32)
    return x, tvmcnn.reference(LENET5, {"input": x})["scores"]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- the package ----------------------------------------------------------------------------------------------------


def test_package_runs_without_tvmcnn(compiled: Compiled, tmp_path: Path, example: tuple[Array, Array]) -> None:
    folder = write_package(compiled.path, compiled.header, tmp_path / "lenet5")
    assert files_of(folder) == NAMES
    assert (folder / "lenet5.so").read_bytes() == compiled.path.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["lenet5"], "nothing else stays behind"
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "lenet5")  # a package may be moved
    x, expected = example
    np.save(tmp_path / "x.npy", x)
    done = without_compiler(
        """
sys.path.insert(0, "elsewhere")
import numpy as np, lenet5
x = np.load("x.npy")
y = lenet5.run(x)
assert isinstance(lenet5.network.run(None, {"input": x}), list)
np.save("y.npy", y)
np.save("conv2.npy", lenet5.network.activations(x)["conv2"])
print(lenet5.__doc__)
print(sorted(name for name in sys.modules if name.partition(".")[0] in Absent.NAMES))
try:
    import tvmcnn
except ModuleNotFoundError:
    print("tvmcnn is absent")
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert f"lenet5: a CNN compiled by tvmcnn {tvmcnn.__version__} for {compiled.target.name}." in done.stdout
    assert "input: float32 (1, 1, 32, 32)\nscores: float32 (1, 10)\n" in done.stdout
    assert done.stdout.endswith("[]\ntvmcnn is absent\n")
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    conv2 = tvmcnn.reference(LENET5, {"input": x}, every_tensor=True)["conv2"]
    np.testing.assert_allclose(np.load(tmp_path / "conv2.npy"), conv2, rtol=0, atol=1e-5 * np.abs(conv2).max())


def test_package_names_nothing_of_tvmcnn(compiled: Compiled, tmp_path: Path) -> None:
    folder = write_package(compiled.path, compiled.header, tmp_path / "lenet5")
    for path in folder.rglob("*.py"):
        lines = [line.strip() for line in path.read_text().splitlines()]
        assert not [line for line in lines if line.startswith(("import tvmcnn", "from tvmcnn"))], path.name
        for line in lines:  # also those within a function, which no import of the package runs
            if line.startswith("from ."):
                module = line.split()[1]
                named = module.lstrip(".")
                above = path.parents[len(module) - len(named) - 1] / named.replace(".", "/")
                assert above.with_suffix(".py").is_file() or (above / "__init__.py").is_file(), f"{path}: {line}"


def test_package_tells_mistakes(compiled: Compiled, tmp_path: Path) -> None:
    write_package(compiled.path, compiled.header, tmp_path / "lenet5")
    program = """
sys.path.insert(0, "")
import numpy as np, lenet5
from lenet5.errors import InputError
try:
    lenet5.run(np.zeros((1, 1, 32, 31), np.float32))
except InputError as error:
    print(error)
"""
    done = without_compiler(program, tmp_path)
    assert done.stderr == ""
    assert done.stdout == "input 'input' has the shape (1, 1, 32, 31); the library is compiled for (1, 1, 32, 32)\n"


def test_two_packages_side_by_side(compiled: Compiled, tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.node("Add", graph.input(2, 3), graph.constant(np.full((2, 3), 4.0))))
    other = tvmcnn.compile(graph.model(), output=tmp_path / "other.so", verify=False)
    write_package(compiled.path, compiled.header, tmp_path / "lenet5")
    write_package(other.path, other.header, tmp_path / "other")
    program = """
sys.path.insert(0, "")
import numpy as np, lenet5, other
print(other.run(np.ones((2, 3), np.float32)).tolist(), lenet5.run(np.zeros((1, 1, 32, 32), np.float32)).shape)
"""
    done = without_compiler(program, tmp_path)
    assert done.stdout == "[[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]] (1, 10)\n", done.stderr


def test_package_replaces_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", str(LENET5), "--no-verify", "--emit", "package"]) == 0
    (tmp_path / "lenet5" / "stale.py").write_text("")
    old = (tmp_path / "lenet5" / "lenet5.so").read_bytes()
    capsys.readouterr()
    assert main(["compile", str(LENET5), "--no-verify", "--batch", "2", "--emit", "package", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == ["lenet5.so", "lenet5"]
    assert files_of(tmp_path / "lenet5") == NAMES
    assert (tmp_path / "lenet5" / "lenet5.so").read_bytes() != old
    assert "input: float32 (2, 1, 32, 32)" in (tmp_path / "lenet5" / "__init__.py").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"lenet5", "lenet5.so"}


@pytest.mark.parametrize("kind", ["folder", "empty folder", "file"])
def test_package_leaves_what_is_foreign(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "file":
        Path("lenet5").write_text("thesis")
    else:
        Path("lenet5").mkdir()
    if kind == "folder":
        Path("lenet5/thesis.tex").write_text("thesis")
    assert main(["compile", str(LENET5), "--no-verify", "--emit", "package"]) == 1
    words = "tvmcnn: lenet5 exists and is no package of lenet5: move it away or choose another name\n"
    assert capsys.readouterr().err == words
    if kind == "file":
        assert Path("lenet5").read_text() == "thesis"
    else:
        assert [path.read_text() for path in Path("lenet5").iterdir()] == ["thesis"] * (kind == "folder")
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_package_in_a_folder_that_is_not_there(compiled: Compiled, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"cannot write the package .*: No such file or directory"):
        write_package(compiled.path, compiled.header, tmp_path / "nowhere" / "lenet5")
    assert not list(tmp_path.iterdir())


# ---- the header -----------------------------------------------------------------------------------------------------

PROGRAM = """
#include "lenet5.h"
#include "lenet5.h" /* guarded */
#include <stdio.h>

static float input[LENET5_INPUT_SIZE], scores[LENET5_SCORES_SIZE];
static unsigned char arena[LENET5_ARENA_BYTES + 64];

int main(void) {
  if (lenet5_check() != 0) return 3;
  if (lenet5_run(input, scores, 0) != 1) return 4;
  if (fread(input, sizeof(float), LENET5_INPUT_SIZE, stdin) != LENET5_INPUT_SIZE) return 5;
  if (lenet5_run(input, scores, arena + 64 - (uintptr_t)arena % 64) != 0) return 6;
  return fwrite(scores, sizeof(float), LENET5_SCORES_SIZE, stdout) == LENET5_SCORES_SIZE ? 0 : 7;
}
"""


@pytest.mark.parametrize(
    ("compiler", "standard", "suffix"), [("gcc", "c11", "c"), ("g++", "c++17", "cpp"), ("clang", "c11", "c")]
)
def test_header_serves_a_program(
    compiler: str, standard: str, suffix: str, compiled: Compiled, tmp_path: Path, example: tuple[Array, Array]
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    (tmp_path / "lenet5.h").write_text(compiled.header)
    (tmp_path / f"main.{suffix}").write_text(PROGRAM)
    shutil.copyfile(compiled.path, tmp_path / "lenet5.so")
    flags = [f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror"]
    command = [compiler, *flags, f"main.{suffix}", "./lenet5.so", "-o", "main"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=GUARD)
    assert built.returncode == 0, built.stderr
    x, expected = example
    done = subprocess.run([tmp_path / "main"], cwd=tmp_path, input=x.tobytes(), capture_output=True, timeout=GUARD)
    assert (done.returncode, done.stderr) == (0, b"")
    scores = np.frombuffer(done.stdout, np.float32).reshape(1, 10)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(scores, tvmcnn.load(compiled.path)(x))


def test_header_declares_what_the_library_exports(compiled: Compiled) -> None:
    library = ctypes.CDLL(str(compiled.path))
    for name in ("lenet5_check", "lenet5_run"):
        assert f"int32_t {name}(" in compiled.header
        assert hasattr(library, name)
    assert library.lenet5_check() == 0
    assert f"#define LENET5_ARENA_BYTES {compiled.program.arena_bytes} " in compiled.header.replace("\n", " ")


def test_names_that_c_reserves(tmp_path: Path) -> None:
    """Keywords of C and C++, macros, what the generated functions use, names that differ in case or in signs only."""
    names = ["count", "class", "self", "NULL", "int", "_x", "a b", "a_b", "é", "1", "W", "w", "arena", "linux"]
    names += ["TVMCNN_OK", "net_run", "net_weights", "tvmcnn_data", "x", "x_shape"]
    nodes = [node("Relu", [name], [f"y{name}"]) for name in names]
    shapes = {name: (2, i + 3) for i, name in enumerate(names)}
    made = {f"y{name}": shape for name, shape in shapes.items()}
    model = model_of(nodes, shapes, made, opset=18, ir_version=9, name="names")
    compiled = tvmcnn.compile(model, output=tmp_path / "net.so")
    arrays = [np.linspace(-1, 1, 2 * (i + 3), dtype=np.float32).reshape(2, i + 3) for i in range(len(names))]
    for found, array in zip(tvmcnn.load(compiled.path)(*arrays), arrays, strict=True):
        assert np.array_equal(found, np.maximum(array, 0))
    (tmp_path / "net.h").write_text(compiled.header)
    (tmp_path / "use.cc").write_text('#include "net.h"\nint main() { return net_check(); }\n')
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-c", "use.cc"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
