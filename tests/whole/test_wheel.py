"""The wheel: what is in it, and what works where only the runner's two dependencies are installed."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import LENET5, ROOT
from helpers import GUARD

import tvmcnn

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")  # that requires-python allows today
SOURCES = ("tvmcnn", "schedules", "tests", "tools", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")

# A fresh interpreter that sees, of what is installed, the standard library, numpy and tvm_ffi only.
ALONE = """
import sys

class Absent:
    NAMES = {"tvm", "onnx", "onnx_ir", "onnxscript", "PIL", "rich", "matplotlib", "onnxruntime", "torch"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, "installed")
import tvmcnn
"""


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=GUARD)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, built from a copy, so that the checkout stays as it is, and the wheel built from it."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("no source checkout around these tests: there is nothing to build a wheel from")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
    for name in SOURCES:
        path = ROOT / name
        assert path.exists(), f"pyproject.toml speaks of {name}, which is missing"
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=unwanted)
        else:
            shutil.copyfile(path, source / name)
    output = folder / "dist"
    run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", output, ".", cwd=source
    )  # the wheel from the sdist
    wheel, sdist = sorted(output.iterdir(), key=lambda path: path.suffix != ".whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[1]


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


@pytest.fixture(scope="module")
def workplace(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed under installed/, a library, an input and what NumPy computes for it."""
    folder = tmp_path_factory.mktemp("workplace")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
    run(*pip, "--no-deps", "--no-compile", "--target", folder / "installed", wheel, cwd=folder)
    model = LENET5
    tvmcnn.compile(model, output=folder / "lenet5.so", verify=False)
    x = np.random.default_rng(11).standard_normal((1, 1, 32, 32), dtype=np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "expected.npy", tvmcnn.reference(model, {"input": x})["scores"])
    return folder


def alone(program: str, workplace: Path) -> str:
    # -P and -E: neither the current folder nor PYTHONPATH may bring in the checkout.
    return run(sys.executable, "-P", "-E", "-c", ALONE + program, cwd=workplace)


# ---- what is in it --------------------------------------------------------------------------------------------------


def test_wheel_holds_the_whole_package(names: set[str]) -> None:
    unwanted = {"__pycache__", "schedules"}
    files = {path for path in (ROOT / "tvmcnn").rglob("*") if path.is_file() and not unwanted & {*path.parts}}
    assert len(files) > 40
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert {"tvmcnn/data/lenet5.onnx", "tvmcnn/data/digits.npz", "tvmcnn/codegen/native/entry.h"} <= names


def test_sdist_holds_the_sources(built: tuple[Path, Path]) -> None:
    """All that a fork needs: the package, its records, its tests and tools; nothing that was built."""
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = {
        path.relative_to(ROOT).as_posix() for top in ("tvmcnn", "schedules", "tools") for path in files(ROOT / top)
    }
    assert tracked <= names
    assert {"pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE", "docs/tutorial.md", "tests/helpers.py"} <= names
    assert not [name for name in names if name.endswith((".pyc", ".so", ".whl"))]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def interpreter(version: str) -> str | None:
    """The path of a Python: the command of its name, if it works, or one that pyenv keeps."""
    command = shutil.which(f"python{version}")
    if command and subprocess.run([command, "--version"], capture_output=True).returncode == 0:
        return command
    kept = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob(f"versions/{version}.*/bin/python")
    return next(map(str, sorted(kept)), None)


@pytest.mark.parametrize("version", PYTHONS)
def test_installed_from_scratch(version: str, workplace: Path, wheel: Path, tmp_path: Path) -> None:
    """On each Python that the metadata promises, with the two dependencies alone, from the index that pip uses."""
    if (python := interpreter(version)) is None:
        pytest.skip(f"Python {version} is not on this machine")
    run(python, "-m", "venv", tmp_path / "new", cwd=tmp_path)
    pip = (tmp_path / "new" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, wheel, cwd=tmp_path)
    program = "import sys, numpy, tvmcnn; print(tvmcnn.load(sys.argv[1])(numpy.load(sys.argv[2])).argmax())"
    words = (tmp_path / "new" / "bin" / "python", "-I", "-c", program, workplace / "lenet5.so", workplace / "x.npy")
    assert int(run(*words, cwd=tmp_path)) == int(np.load(workplace / "expected.npy").argmax())


def test_wheel_holds_the_shipped_records(wheel: Path, names: set[str]) -> None:
    shipped = [path for path in (ROOT / "schedules").iterdir() if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in shipped)
    with zipfile.ZipFile(wheel) as archive:
        for path in shipped:
            assert archive.read(f"tvmcnn/schedules/{path.name}") == path.read_bytes()
    assert len([name for name in names if name.startswith("tvmcnn/schedules/")]) == len(shipped)


def test_wheel_is_typed(names: set[str]) -> None:
    assert "tvmcnn/py.typed" in names, "without it type checkers ignore the annotations ('Typing :: Typed')"


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    info = f"tvmcnn-{tvmcnn.__version__}.dist-info/"
    assert not [name for name in names if not name.startswith(("tvmcnn/", info))]
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".so", ".o"))]
    assert f"{info}licenses/LICENSE" in names


def test_wheel_metadata(wheel: Path) -> None:
    info = f"tvmcnn-{tvmcnn.__version__}.dist-info"
    assert wheel.name == f"tvmcnn-{tvmcnn.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        entries = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0].split("<")[0].strip() for line in needed) == ["apache-tvm-ffi", "numpy"]
    assert {"compiler", "report", "cuda", "tune", "bench", "train", "ray", "docs", "test", "dev"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "tvmcnn = tvmcnn.cli:main" in entries


# ---- installed ------------------------------------------------------------------------------------------------------


def test_installed_records_are_found(workplace: Path) -> None:
    program = """
from tvmcnn import targets
from tvmcnn.choose import records
print(tvmcnn.__file__)
print(records.schedules_folder())
sets = {target.isa: target for target in targets.TARGETS.values()}
found = [records.load_records(target, own=False).found for target in sets.values()]
print(sum(len(rules) for kernels in found for rules in kernels.values()))
"""
    module, folder, count = alone(program, workplace).splitlines()
    assert Path(module).is_relative_to(workplace / "installed")
    assert Path(folder) == workplace / "installed" / "tvmcnn" / "schedules"
    lines = [line for path in (ROOT / "schedules").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert int(count) == len([line for line in lines if line.strip()]), "one config a line"


def test_import_loads_nothing(workplace: Path) -> None:
    """Not even numpy: a command's --help comes at once."""
    assert alone("print([name for name in ('numpy', 'tvm_ffi') if name in sys.modules])", workplace) == "[]\n"


def test_functions_keep_their_names() -> None:
    """Importing a module of a like name does not take the function's place; a stand-in does."""
    program = "import tvmcnn.check.reference; print(callable(tvmcnn.reference), callable(tvmcnn.reweight))"
    program += "\nfrom unittest import mock\nwith mock.patch('tvmcnn.load') as found: print(tvmcnn.load is found)"
    assert run(sys.executable, "-c", program, cwd=ROOT) == "True True\nTrue\n"


def test_runner_needs_numpy_and_tvm_ffi_only(workplace: Path) -> None:
    program = """
import numpy as np
net = tvmcnn.load("lenet5.so")
y, wanted = net(np.load("x.npy")), np.load("expected.npy")
print(float(np.abs(y - wanted).max() / np.abs(wanted).max()))
print(sorted(name for name in sys.modules if name.partition(".")[0] in Absent.NAMES))
"""
    error, loaded = alone(program, workplace).splitlines()
    assert float(error) <= 1e-5
    assert loaded == "[]"


@pytest.mark.parametrize("call", ["compile('m.onnx')", "reference('m.onnx', {})"])
def test_what_needs_the_compiler_says_how_to_install_it(call: str, workplace: Path) -> None:
    program = f"""
try:
    tvmcnn.{call}
except tvmcnn.ToolError as error:
    print(error)
"""
    (sentence,) = alone(program, workplace).splitlines()
    name = call.partition("(")[0]
    assert sentence.startswith(f"tvmcnn.{name} needs ")
    assert sentence.endswith(": install it by pip install 'tvmcnn[compiler]'")


def command(words: list[str], workplace: Path) -> tuple[int, str, str]:
    """The command line in the minimal environment: status, standard output, standard error."""
    program = f"from tvmcnn.cli import main\nraise SystemExit(main({words!r}))"
    argv = [sys.executable, "-P", "-E", "-c", ALONE + program]
    done = subprocess.run(argv, cwd=workplace, capture_output=True, text=True, timeout=GUARD)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["demo"],
        ["compile", "m.onnx"],
        ["verify", "lenet5.so", "--model", "m.onnx"],
        ["ops", "--check", "m.onnx"],
        ["run", "lenet5.so", "--input", "x.pb"],
        ["run", "lenet5.so", "--input", "x.png"],
    ],
    ids=" ".join,
)
def test_commands_that_need_the_compiler(words: list[str], workplace: Path) -> None:
    status, out, sentence = command(words, workplace)
    assert (status, out) == (1, "")
    assert sentence.startswith("tvmcnn: ")
    assert sentence.endswith(": install it by pip install 'tvmcnn[compiler]'\n")
    assert sentence.count("\n") == 1


def test_commands_that_do_not(workplace: Path) -> None:
    status, out, err = command(["run", "lenet5.so", "--input", "x.npy", "--json"], workplace)
    assert (status, err) == (0, "")
    best = json.loads(out)["scores"]["top"][0][0]["index"]
    assert best == int(np.load(workplace / "expected.npy").argmax())
    shown = ["bench", "lenet5.so", "--seconds", "0.05"], ["inspect", "lenet5.so"]
    for words in (*shown, ["targets"], ["ops"], ["--version"]):
        status, out, err = command(words, workplace)
        assert (status, err) == (0, ""), words
        assert out
