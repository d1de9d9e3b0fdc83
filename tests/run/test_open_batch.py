"""An open batch: one program for any number of images, where the network keeps them apart."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tvmcnn
from tvmcnn.artifact.container import read_manifest
from tvmcnn.check.reference import reference
from tvmcnn.errors import InputError, ModelError
from tvmcnn.run.runner import Runner

RNG = np.random.default_rng(8)


def model_of(
    extents: list[list[Any]], nodes: list[onnx.NodeProto], **constants: np.ndarray[Any, Any]
) -> onnx.ModelProto:
    """Inputs x0, x1, … of these extents; outputs are the tensors that no node reads."""
    read = {name for node in nodes for name in node.input}
    ends = [helper.make_empty_tensor_value_info(n) for node in nodes for n in node.output if n not in read]
    infos = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(extents)]
    arrays = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", infos, ends, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def two_headed() -> onnx.ModelProto:
    """Two inputs; of the outputs the first has four rows an image, the second adds both."""
    nodes = [
        helper.make_node("Conv", ["x0", "w"], ["c"], pads=[1, 1, 0, 0]),
        helper.make_node("Reshape", ["c", "s"], ["rows"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Sum", ["f", "x1"], ["sum"]),
    ]
    w = np.random.default_rng(5).standard_normal((8, 3, 2, 3)).astype(np.float32)
    return model_of([["N", 3, 6, 9], ["N", 8]], nodes, w=w, s=np.array([-1, 2, 48]))


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    path = tmp_path_factory.mktemp("open") / "two.so"
    lines = list[str]()
    tvmcnn.compile(two_headed(), output=path, report=lines.append)
    assert any(line.startswith("input 'x1': its leading dimension 'N' stays open") for line in lines)
    loaded = tvmcnn.load(path)
    assert isinstance(loaded, Runner)
    return loaded


def feeds(batch: int) -> list[np.ndarray[Any, Any]]:
    shapes = ((batch, 3, 6, 9), (batch, 8))
    return [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch(net: Runner, batch: int) -> None:
    given = feeds(batch)
    wanted = reference(two_headed(), dict(zip(("x0", "x1"), given, strict=True)))
    found = net(*given)
    for name, array in zip(wanted, found, strict=True):
        assert array.shape == wanted[name].shape
        assert np.abs(array - wanted[name]).max() <= 1e-5 * np.abs(wanted[name]).max()
    alone = [net(*(array[i : i + 1] for array in given)) for i in range(batch)]
    for place, array in enumerate(found):
        assert np.array_equal(array, np.concatenate([each[place] for each in alone]))


def test_everything_that_runs(net: Runner) -> None:
    given = feeds(3)
    wanted = net(*given)
    out = tuple(np.empty_like(array) for array in wanted)
    assert all(one is other for one, other in zip(net(*given, out=out), out, strict=True))
    named = net.run(None, {"x0": given[0], "x1": given[1]})
    bound = net.bind(*given)()
    again = pickle.loads(pickle.dumps(net))(*given)
    backwards = net(*(np.flip(array, 0) for array in given))  # no array that lies one element behind the other
    for i, array in enumerate(wanted):
        rows = len(array) // 3
        turned = np.flip(backwards[i].reshape(3, rows, *array.shape[1:]), 0).reshape(array.shape)
        for found in (out[i], named[i], bound[i], again[i], turned):
            assert np.array_equal(found, array)


def test_what_it_shows(net: Runner) -> None:
    assert [info.shape for info in net.get_inputs()] == [("N", 3, 6, 9), ("N", 8)]
    assert [info.shape for info in net.get_outputs()] == [("4*N", 2, 48), ("N", 8)]
    assert [info.shape for info in net.inputs] == [(1, 3, 6, 9), (1, 8)]
    assert repr(net).endswith("; any batch>")
    assert read_manifest(net.path)["open_batch"] == {"x0": "N", "x1": "N"}


def test_mistakes(net: Runner) -> None:
    x, y = feeds(3)
    for wrong, sentence in (
        ((x,), "1 inputs given; two takes 2"),
        ((x, y[:2]), "leading dimensions must be one batch of at least 1"),
        ((x[:0], y[:0]), "leading dimensions must be one batch of at least 1"),
        ((x[:, 1:], y), r"has the shape \(3, 2, 6, 9\); the library is compiled for \(3, 3, 6, 9\)"),
        ((x[:1, 1:], y[:1]), r"has the shape \(1, 2, 6, 9\); the library is compiled for \(1, 3, 6, 9\)"),
        ((x.astype(np.float64), y), "is float64; it must be native float32"),
    ):
        with pytest.raises(InputError, match=sentence):
            net(*wrong)
    with pytest.raises(InputError, match=r"out= for 'rows' is .* must be a native float32 array of \(12, 2, 48\)"):
        net(x, y, out=(np.empty((4, 2, 48), np.float32), np.empty((3, 8), np.float32)))
    with pytest.raises(InputError, match=r"has the shape \(3, 3, 6, 9\)"):
        net.activations(x, y)


MEAN = [helper.make_node("ReduceMean", ["x0", "a"], ["m"], "centre"), helper.make_node("Sub", ["x0", "m"], ["y"])]
AXIS = np.array([0])


def test_images_that_meet_are_bound(tmp_path: Path) -> None:
    """What a network computes of several images at once is not to be had of one after the other."""
    lines = list[str]()
    tvmcnn.compile(model_of([["N", 3, 5]], MEAN, a=AXIS), output=tmp_path / "m.so", report=lines.append)
    why = "node 'centre' (ReduceMean) is not known to keep the images of a batch apart"
    assert f"input 'x0': its open leading dimension 'N' is bound to 1: {why}" in lines
    net = tvmcnn.load(tmp_path / "m.so")
    assert net.get_inputs()[0].shape == (1, 3, 5)
    with pytest.raises(InputError, match=r"has the shape \(2, 3, 5\); the library is compiled for \(1, 3, 5\)"):
        net(np.zeros((2, 3, 5), np.float32))
    with pytest.raises(ModelError, match=r"^node 'centre' .* apart; so one library cannot have both 2x3x5 and 6x3x5"):
        tvmcnn.compile(model_of([["N", 3, 5]], MEAN, a=AXIS), output=tmp_path / "n.so", batch=(6, 2))
    tvmcnn.compile(model_of([["N", 3, 5]], MEAN, a=AXIS), output=tmp_path / "n.so", batch=6)
    x = RNG.standard_normal((6, 3, 5)).astype(np.float32)
    assert np.allclose(tvmcnn.load(tmp_path / "n.so")(x), x - x.mean(0), atol=1e-6)


def test_what_was_bound_stays(tmp_path: Path) -> None:
    """A batch is bound by --batch, by --input-shape, and by a file that knows its size."""
    nodes = [helper.make_node("Relu", ["x0"], ["y"])]
    for extents, options in (
        (["N", 3, 5], {"batch": 1}),
        (["N", 3, 5], {"input_shapes": {"x0": (1, 3, 5)}}),
        ([1, 3, 5], {}),
    ):
        tvmcnn.compile(model_of([extents], nodes), output=tmp_path / "x.so", verify=False, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"the library is compiled for \(1, 3, 5\)"):
            tvmcnn.load(tmp_path / "x.so")(np.zeros((2, 3, 5), np.float32))


def test_no_network_for_two(tmp_path: Path) -> None:
    """A Reshape that has 1 for the batch: the reason is the importer's own."""
    nodes = [helper.make_node("Reshape", ["x0", "s"], ["y"])]
    lines = list[str]()
    tvmcnn.compile(model_of([["N", 3, 5]], nodes, s=np.array([1, 15])), output=tmp_path / "x.so", report=lines.append)
    assert any("is bound to 1: with 2 it is no network: " in line and "Reshape" in line for line in lines)
