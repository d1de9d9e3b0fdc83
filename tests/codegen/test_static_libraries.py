"""Static libraries: docs/c built by CMake, two networks in one program, and what a linker may say."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from data import LENET5, NVCC, ROOT

import tvmcnn
from tvmcnn.cli import main
from tvmcnn.errors import ToolError
from tvmcnn.targets import TARGETS

pytestmark = pytest.mark.slow

TARGET = "x86-64-v3"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lenet5.a and other.a, which has LeNet-5's kernels too, with their headers; and both as shared libraries."""
    folder = tmp_path_factory.mktemp("static")
    model = onnx.load(str(LENET5))
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(0.75), weight.name))
    onnx.save(model, str(folder / "other.onnx"))
    for name, path in (("lenet5", LENET5), ("other", folder / "other.onnx")):
        words = ["compile", str(path), "--target", TARGET]
        assert main([*words, "-o", str(folder / f"{name}.a"), "--emit", "header"]) == 0
        assert main([*words, "-o", str(folder / f"{name}.so")]) == 0
    return folder


def symbols(library: Path) -> set[str]:
    """Symbols that a linker finds."""
    said = subprocess.run(["nm", "-g", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    return {line.split()[2] for line in said.stdout.splitlines() if len(line.split()) == 3}


def test_only_public_symbols(folder: Path) -> None:
    found = symbols(folder / "lenet5.a")
    assert {"lenet5_run", "lenet5_run_threads", "lenet5_check", "lenet5_message", "lenet5_version"} <= found
    odd = {name for name in found if not name.startswith(("lenet5_", "__tvm_ffi_lenet5"))}
    assert odd == {"tvmcnn_pool_3"}, "the threads' pool, which all networks of a process share"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_cmake_example(folder: Path, tmp_path: Path) -> None:
    """The scores of both networks, bit for bit as from Python; four threads at once; messages."""
    build = ["cmake", "-B", str(tmp_path), f"-DNETWORKS={folder}", "-DCMAKE_C_FLAGS=-Wall -Wextra -Werror -pedantic"]
    build += ["-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror -pedantic", str(ROOT / "docs" / "c")]
    for command in (build, ["cmake", "--build", str(tmp_path)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32), dtype=np.float32)
    wanted = [tvmcnn.load(folder / f"{name}.so")(x)[0] for name in ("lenet5", "other")]
    two = subprocess.run([tmp_path / "two"], input=x.tobytes(), capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(two.stdout, np.float32), np.concatenate(wanted))
    version = f"for {TARGET} by tvmcnn {tvmcnn.__version__}"
    assert two.stderr.decode() == f"lenet5 {version}; other {version}\n"
    one = subprocess.run([tmp_path / "one"], input=x.tobytes(), capture_output=True, check=True)
    np.testing.assert_array_equal(np.frombuffer(one.stdout, np.float32), wanted[0])
    assert one.stderr.decode() == "an argument is NULL"
    needed = subprocess.run(["readelf", "-d", tmp_path / "two"], capture_output=True, text=True, check=True).stdout
    assert "tvm" not in needed


def test_the_same_archive(folder: Path, tmp_path: Path) -> None:
    again = tvmcnn.compile(LENET5, TARGET, tmp_path / "lenet5.a")
    assert again.path.read_bytes() == (folder / "lenet5.a").read_bytes()
    assert len(again.verdicts) == (not TARGETS[TARGET].missing())


def test_what_cannot_be_static(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph()
    g.output(g.node("Relu", g.input(2, 3)))
    monkeypatch.setenv("NVCC", str(NVCC))
    with pytest.raises(ToolError, match="a static library is for CPUs"):
        tvmcnn.compile(g.model(), "cuda:sm_80", tmp_path / "net.a")
    monkeypatch.setenv("AR", "/nowhere/ar")
    with pytest.raises(ToolError, match="names the ar '/nowhere/ar'"):
        tvmcnn.compile(g.model(), "x86-64-v3", tmp_path / "net.a")
    with pytest.raises(ToolError, match=r"a library's name must end in \.so, a static one's in \.a"):
        tvmcnn.compile(g.model(), "x86-64-v3", tmp_path / "net.lib")
    assert list(tmp_path.iterdir()) == []
