"""Several sizes in one library: each runs by its own program, those of one image as batches."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import tvmcnn
from tvmcnn.artifact.container import read_manifest
from tvmcnn.check.reference import reference
from tvmcnn.check.verify import verify_library
from tvmcnn.cli import main
from tvmcnn.cli.options import named_shape, one_size, shapes_of
from tvmcnn.errors import InputError, ModelError
from tvmcnn.report.facts import collect
from tvmcnn.run.batched import BatchedRunner
from tvmcnn.run.sized import SizedRunner
from tvmcnn.sizes import sizes_of

A, B = (5, 3, 12, 20), (2, 3, 17, 9)  # the first of any batch, the second of batches 1 and 4


def open_image() -> onnx.ModelProto:
    """N, H and W open; the second output of any size has one pixel."""
    rng = np.random.default_rng(6)
    w = rng.standard_normal((18, 3, 3, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 0, 1, 1]),
        helper.make_node("Relu", ["c"], ["y"]),
        helper.make_node("GlobalAveragePool", ["y"], ["mean"]),
    ]
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])]
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("y", "mean")]
    graph = helper.make_graph(nodes, "g", infos, outputs, [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sized") / "net.onnx"
    onnx.save(open_image(), path)
    return path


@pytest.fixture(scope="module")
def net(model_file: Path) -> SizedRunner:
    path = model_file.with_suffix(".so")
    shapes = [{"x": (None, *A[1:])}, {"x": (4, *B[1:])}, {"x": (1, *B[1:])}]
    compiled = tvmcnn.compile(model_file, output=path, input_shapes=shapes)
    assert [verdict.passed for verdict in compiled.verdicts] == [True] * 3
    assert [program.network.name for program in compiled.programs] == ["net", "net_1x3x17x9", "net_4x3x17x9"]
    loaded = tvmcnn.load(path)
    assert isinstance(loaded, SizedRunner)
    return loaded


@pytest.mark.parametrize("shape", [A, B, (1, *A[1:]), (4, *B[1:]), (11, *B[1:])])
def test_every_size(net: SizedRunner, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    wanted = reference(open_image(), x)
    found = net(x)
    for name, array in zip(wanted, found, strict=True):
        assert array.shape == wanted[name].shape
        assert np.abs(array - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max()
    out = tuple(np.empty_like(array) for array in found)
    bound, named, again = net.bind(x, out=out)(), net.run(None, {"x": x}), pickle.loads(pickle.dumps(net))(x)
    for each in (bound, named, again):
        assert all(np.array_equal(one, other) for one, other in zip(each, found, strict=True))


def test_what_it_shows(net: SizedRunner) -> None:
    assert [info.shape for info in net.get_inputs()] == [("N", 3, "12|17", "20|9")]
    assert [info.shape for info in net.get_outputs()] == [("N", 18, "12|17", "20|9"), ("N", 18, 1, 1)]
    assert repr(net).endswith("sizes 1x3x12x20, 1x3x17x9>")
    x = np.ones((1, *B[1:]), np.float32)
    assert net.activations(x)["c"].shape == (1, 18, 17, 9)
    assert np.array_equal(net.step_by_step(x)[0], net(x)[0])
    assert len(net.profile(x, seconds=0.01)) == len(net.programs[1].manifest["kernels"])
    assert isinstance(net.of([B]), BatchedRunner)
    manifest = read_manifest(net.path)
    assert [each["open_batch"] for each in (manifest, *manifest["specialisations"])] == [{"x": "N"}, {}, {}]
    assert len(verify_library(net.path, open_image())) == 3
    assert collect(net.path, seconds=0.05).sizes == ("1x3x12x20", "1x3x17x9", "4x3x17x9")


def test_weights_are_shared(net: SizedRunner) -> None:
    """The filters of both images are packed alike, here."""
    assert read_manifest(net.path)["weights_bytes"] < 2 * 18 * 3 * 3 * 2 * 4 * 2


def test_mistakes(net: SizedRunner) -> None:
    x = np.zeros((1, 3, 12, 9), np.float32)
    with pytest.raises(InputError, match="given are 1x3x12x9; net is compiled for 1x3x12x20, 1x3x17x9"):
        net(x)
    with pytest.raises(InputError, match="2 inputs given; net takes 1"):
        net(x, x)
    with pytest.raises(InputError, match="is float64; it must be native float32"):
        net(np.zeros(A))


@pytest.mark.parametrize(
    ("shapes", "batch", "sentence"),
    [
        ([{"x": (1, 3, 8, 9)}, {"x": (1, 3, 8, 9)}], None, "the size x 1x3x8x9 is given twice"),
        ([{"x": (1, 3, 8, 9)}, {"x": (1, 3, 9, 8)}], (1, 2), "2 input shapes and 2 batches are given"),
        ([{"x": (1, None, 8, 9)}], None, "the shape 1xNx8x9 does not fit it"),
        ([{"x": (1, 3, 8, 9)}, {"z": (1, 3, 9, 8)}], None, "has no input 'z'"),
        (None, (), "the batches are none"),
        (None, (3, 3), "the batches are 3, 3; they must be different"),
    ],
)
def test_sizes_that_are_none(model_file: Path, tmp_path: Path, shapes: Any, batch: Any, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        tvmcnn.compile(model_file, output=tmp_path / "x.so", input_shapes=shapes, batch=batch)
    assert not list(tmp_path.iterdir())


def test_the_names_of_programs() -> None:
    assert [size.name for size in sizes_of("net", {"scale": (), "x": (2, 3)}, None)] == ["net"]
    names = [size.name for size in sizes_of("net", [{"a": (1, 3), "b": (1, 4)}, {"a": (1, 3), "b": (None, 5)}], None)]
    assert names == ["net", "net_Nx5"]
    assert [(size.name, size.batch) for size in sizes_of("net", None, (8, 1))] == [("net", 1), ("net_b8", 8)]


def parsed(*texts: str) -> argparse.Namespace:
    return argparse.Namespace(input_shape=[named_shape(text) for text in texts])


def test_the_option() -> None:
    assert shapes_of(parsed()) == [{}]
    assert shapes_of(parsed("x:1x3x8x9", "y:Nx4", "x:1x3x9x8")) == [
        {"x": (1, 3, 8, 9), "y": (None, 4)},
        {"x": (1, 3, 9, 8), "y": (None, 4)},
    ]
    with pytest.raises(ModelError, match="has 2 shapes of 'y' and 3 of another"):
        shapes_of(parsed("x:1", "x:2", "x:3", "y:1", "y:2"))
    with pytest.raises(ModelError, match="has 2 shapes of one input; only compile takes several"):
        one_size(parsed("x:1x3", "x:2x3"))
    for text in ("x:1xNx3", "x:", "x:0x3", "1x3", ":1x3", "x:1x-3"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME:1x3x224x224 or NAME:Nx3x224x224"):
            named_shape(text)


def test_the_command_line(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = str(tmp_path / "two.so")
    shapes = ["--input-shape", "x:Nx3x12x20", "--input-shape", "x:1x3x17x9"]
    assert main(["compile", str(model_file), "-o", library, *shapes, "--emit", "header"]) == 0
    told = capsys.readouterr().out
    assert "two_1x3x17x9: x 1x3x17x9" in told
    assert "int32_t two_1x3x17x9_run(" in (tmp_path / "two.h").read_text()
    for size, image in (("17x9", (9, 17)), ("12x20", (20, 12)), ("12x20", (33, 33))):  # width by height
        Image.new("RGB", image, (200, 100, 50)).save(tmp_path / "image.png")
        assert main(["run", library, "--input", str(tmp_path / "image.png"), "-o", str(tmp_path / "y.npz")]) == 0
        with np.load(tmp_path / "y.npz") as made:
            assert "x".join(map(str, made["y"].shape[2:])) == size
    capsys.readouterr()
    for shape, words in (("x:3x3x12x20", "2 threads, batch 3"), ("x:1x3x17x9", "batch 1")):
        assert main(["bench", library, "--threads", "2", "--seconds", "0.1", "--input-shape", shape]) == 0
        assert words in capsys.readouterr().out
    for shape, sentence in (("x:1x3x17x20", "two is compiled for 1x3x12x20, 1x3x17x9"), ("z:1", "has no input 'z'")):
        assert main(["bench", library, "--input-shape", shape]) == 1
        assert sentence in capsys.readouterr().err
    assert main(["inspect", library]) == 0
    assert "other sizes of x: 1x3x17x9\nopen: N of x\n" in capsys.readouterr().out
