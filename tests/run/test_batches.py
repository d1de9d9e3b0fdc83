"""Several batch sizes in one library: any batch runs, in parts or padded, and the weights are there once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import Graph, lenet
from onnx import ModelProto

import tvmcnn
from tvmcnn.artifact.container import read_manifest
from tvmcnn.check.reference import reference
from tvmcnn.cli import main
from tvmcnn.errors import InputError, ModelError
from tvmcnn.run.batched import BatchedRunner
from tvmcnn.run.parts import parts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("batch", "sizes", "wanted"),
    [
        (71, (1, 8, 64), [(64, 64), (8, 7)]),
        (5, (1, 8, 64), [(1, 1)] * 5),
        (6, (1, 8), [(8, 6)]),  # three quarters: padded
        (64, (64, 1, 8), [(64, 64)]),
        (130, (8, 64), [(64, 64), (64, 64), (8, 2)]),
        (50, (8, 64), [(64, 50)]),
        (47, (8, 64), [*[(8, 8)] * 5, (8, 7)]),
        (1, (4,), [(4, 1)]),
        (9, (4,), [(4, 4), (4, 4), (4, 1)]),
    ],
)
def test_parts(batch: int, sizes: tuple[int, ...], wanted: list[tuple[int, int]]) -> None:
    assert parts(batch, sizes) == wanted
    assert sum(images for _, images in wanted) == batch


def two_headed() -> ModelProto:
    """Two inputs and two outputs, one of them with three rows an image."""
    g = Graph()
    x, y = g.input(1, 3, 6, 9), g.input(1, 5, 7)
    image = g.node("Relu", g.conv(x, 17, (3, 2)))
    g.output(g.node("Reshape", image, g.constant(np.array([-1, 4, 136]))), g.node("Sigmoid", y))
    return g.model()


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> BatchedRunner:
    path = tmp_path_factory.mktemp("batches") / "lenet.so"
    compiled = tvmcnn.compile(lenet(1), output=path, batch=(8, 1, 3))
    assert [verdict.passed for verdict in compiled.verdicts] == [True] * 3
    net = tvmcnn.load(path)
    assert isinstance(net, BatchedRunner)
    return net


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 7, 8, 20])
def test_any_batch(batch: int, several: BatchedRunner) -> None:
    x = np.random.default_rng(batch).standard_normal((batch, 1, 32, 32), dtype=np.float32)
    wanted = reference(lenet(batch), x)
    (name,) = wanted
    scores, out = several(x), np.empty((batch, 10), np.float32)
    assert several(x, out=out) is out
    assert np.array_equal(scores, out)
    assert np.abs(scores - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max()
    assert np.array_equal(several.run(None, {several.inputs[0].name: x})[0], scores)


def test_what_it_shows(several: BatchedRunner) -> None:
    assert list(several.sizes) == [1, 3, 8]
    assert several.inputs[0].shape == (1, 1, 32, 32)
    x = np.random.default_rng(0).standard_normal((3, 1, 32, 32), dtype=np.float32)
    assert np.array_equal(several.step_by_step(x), several(x))
    assert {array.shape[0] for array in several.activations(x).values()} == {3}
    assert [row.name for row in several.profile(seconds=0.01)] == [k["name"] for k in several.manifest["kernels"]]
    with pytest.raises(InputError, match="is compiled for the batches 1, 3, 8, not 2"):
        several.activations(x[:2])
    assert repr(several).endswith("batches 1, 3, 8>")


def test_mistakes(several: BatchedRunner) -> None:
    x = np.zeros((2, 1, 32, 32), np.float32)
    for wrong, sentence in (
        ((x, x), "2 inputs given; lenet takes 1"),
        ((x[:0],), "leading dimensions must be one batch of at least 1"),
        ((x[:, :, 1:],), r"has the shape \(2, 1, 31, 32\); the library is compiled for \(2, 1, 32, 32\)"),
        ((x.astype(np.float64),), "is float64; it must be native float32"),
    ):
        with pytest.raises(InputError, match=sentence):
            several(*wrong)
    with pytest.raises(InputError, match=r"out= for .* must be a native float32 array of \(2, 10\)"):
        several(x, out=np.empty((3, 10), np.float32))
    with pytest.raises(InputError, match="2 arrays in out=; lenet has 1 outputs"):
        several(x, out=(np.empty((2, 10), np.float32),) * 2)


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    model = two_headed()
    tvmcnn.compile(model, output=tmp_path / "x.so", batch=[2, 5])
    net = tvmcnn.load(tmp_path / "x.so")
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((8, 3, 6, 9), dtype=np.float32), rng.standard_normal((8, 5, 7), dtype=np.float32)
    wanted = [reference(model, {"x0": x[i : i + 1], "x1": y[i : i + 1]}) for i in range(8)]
    for name, found in zip(wanted[0], net(x, y), strict=True):
        expected = np.concatenate([each[name] for each in wanted])
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(InputError, match="must be one batch"):
        net(x, y[:3])


def test_weights_are_shared(tmp_path: Path) -> None:
    """Three sizes take little more than one: what grows is code."""
    for name, batch in (("one", 1), ("three", [1, 2, 3])):
        options = {"batch": batch, "verify": False, "activations": False}
        tvmcnn.compile(lenet(1), "x86-64-v4", tmp_path / f"{name}.so", **options)  # by AVX2 each has tiles of its own
    one, three = (read_manifest(tmp_path / f"{name}.so")["weights_bytes"] for name in ("one", "three"))
    assert one <= three < 1.9 * one  # 1 and 2, 3 rows differ in the tiles of the dense layers


def test_what_has_no_batch_axis(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Transpose", g.input(1, 3, 5), perm=[1, 0, 2]))
    with pytest.raises(
        ModelError, match="output 'transpose0' has the images of a batch along axis 1, not 0; so one library"
    ):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so", batch=[1, 4])
    with pytest.raises(ModelError, match="the batches are 2, 2; they must be different"):
        tvmcnn.compile(g.model(), output=tmp_path / "x.so", batch=[2, 2])


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """compile --batch 2,1, bench of a batch that is neither, verify of both, a C header with both."""
    (tmp_path / "lenet.onnx").write_bytes(lenet(1).SerializeToString())
    library = str(tmp_path / "lenet.so")
    options = ["-o", library, "--batch", "2,1", "--emit", "header,package"]
    assert main(["compile", str(tmp_path / "lenet.onnx"), *options]) == 0
    assert main(["bench", library, "--batch", "5", "--seconds", "0.1"]) == 0
    assert "batch 5" in capsys.readouterr().out
    assert main(["verify", library, "--model", str(tmp_path / "lenet.onnx"), "--json"]) == 0
    assert [entry["passed"] for entry in json.loads(capsys.readouterr().out)["batches"]] == [True, True]
    header = (tmp_path / "lenet.h").read_text()
    assert "int32_t lenet_run(" in header
    assert "int32_t lenet_b2_run(" in header
    script = "import numpy, lenet; print(lenet.run(numpy.zeros((7, 1, 32, 32), 'float32')).shape)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(7, 10)\n", done.stderr
