"""Networks that treat the images of a batch one by one, and others: proofs, and the oracle's word on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs.explore import draws
from onnx import helper, numpy_helper

from tvmcnn.check.reference import reference
from tvmcnn.errors import TvmcnnError
from tvmcnn.importer import import_model
from tvmcnn.importer.by_image import obstacle

RNG = np.random.default_rng(3)
WEIGHT, FILTER = RNG.standard_normal((7, 11)), RNG.standard_normal((4, 5, 3, 2))
APART: dict[str, tuple[str, list[tuple[Any, ...]], dict[str, Any]]] = {
    # the input, nodes (op, operands, attributes), constants
    "conv": ("N,5,9,7", [("Conv", "x f", {"pads": [1, 0, 1, 1]})], {"f": FILTER}),
    "flatten": ("N,3,4,7", [("Flatten", "x", {}), ("Relu", "t0", {})], {}),
    "rows": ("N,3,7", [("Reshape", "x s", {}), ("MatMul", "t0 w", {}), ("Reshape", "t1 u", {})],
             {"s": [-1, 7], "w": WEIGHT, "u": [-1, 3, 11]}),
    "turned": ("N,3,7", [("Transpose", "x", {"perm": [2, 0, 1]}), ("Softmax", "t0", {"axis": 0}),
                         ("Transpose", "t1", {"perm": [1, 0, 2]})], {}),
    "rows of A'": ("N,7", [("Transpose", "x", {"perm": [1, 0]}), ("Gemm", "t0 w", {"transA": 1})], {"w": WEIGHT}),
    "attention": ("N,3,7", [("Transpose", "x", {"perm": [0, 2, 1]}), ("MatMul", "x t0", {}), ("MatMul", "t1 x", {})],
                  {}),
    "columns": ("N,7", [("Transpose", "x", {"perm": [1, 0]}), ("MatMul", "w t0", {}),
                        ("Transpose", "t1", {"perm": [1, 0]})], {"w": WEIGHT.T}),
    "a vector": ("N,3,7", [("MatMul", "x v", {})], {"v": WEIGHT[:, 0]}),
    "means": ("N,3,7", [("ReduceMean", "x a", {"keepdims": 0}), ("ArgMax", "t0", {"axis": 1})], {"a": [2]}),
    "parts": ("N,6,7", [("Split", "x", {"axis": 1, "num_outputs": 2}), ("Concat", "x t0", {"axis": 1})], {}),
    "a slice": ("N,6,7", [("Slice", "x a b c", {}), ("Squeeze", "t0 c", {})], {"a": [2], "b": [3], "c": [1]}),
    "a border": ("N,3,7", [("Pad", "x p", {})], {"p": [0, 1, 2, 0, 0, 3]}),
    "looked up": ("N,3", [("Cast", "x", {"to": 7}), ("Clip", "t0 a b", {}), ("Gather", "w t1", {"axis": 0})],
                  {"a": np.int64(0), "b": np.int64(6), "w": WEIGHT}),
    "gathered": ("N,3,7", [("Gather", "x i", {"axis": 1})], {"i": [[2, 0], [1, 1]]}),
    "repeated": ("N,3,7", [("Tile", "x r", {}), ("Unsqueeze", "t0 z", {}), ("Expand", "t1 e", {})],
                 {"r": [1, 2, 1], "z": [1], "e": [1, 5, 1, 1]}),
    "shapes": ("N,3,7", [("Shape", "x", {}), ("ConstantOfShape", "t0", {}), ("Concat", "x t1", {"axis": 2})], {}),
    "resized": ("N,3,5,7", [("Resize", "x  s", {"mode": "linear"})], {"s": np.float32([1, 1, 2, 1.5])}),
    "ordered": ("N,9", [("TopK", "x k", {"axis": 1})], {"k": [4]}),
    "added up": ("N,9", [("CumSum", "x a", {})], {"a": np.int64(1)}),
    "triangles": ("N,5,7", [("Trilu", "x", {})], {}),
    "normalised": ("N,5,7", [("LayerNormalization", "x w", {"axis": -1})], {"w": WEIGHT[:, 0]}),
}  # fmt: skip
MIXED: dict[str, tuple[str, list[tuple[Any, ...]], dict[str, Any], str]] = {
    "mean": ("N,3,7", [("ReduceMean", "x a", {}), ("Sub", "x t0", {})], {"a": [0]}, "'n0' (ReduceMean) is not known"),
    "of all": ("N,3,7", [("ReduceMax", "x", {}), ("Div", "x t0", {})], {}, "'n0' (ReduceMax) is not known"),
    "softmax": ("N,7", [("Softmax", "x", {"axis": 0})], {}, "'n0' (Softmax) is not known"),
    "turned": ("N,3,4", [("Transpose", "x", {"perm": [1, 0, 2]}), ("Reshape", "t0 s", {})], {"s": [3, -1]},
               "output 't1' has the images of a batch along axis 1, not 0"),
    "taken together": ("N,3,4", [("Transpose", "x", {"perm": [1, 0, 2]}), ("Reshape", "t0 s", {})], {"s": [-1, 2]},
                       "'n1' (Reshape) is not known"),
    "first": ("N,3,7", [("Slice", "x a b c", {})], {"a": [0], "b": [1], "c": [0]}, "'n0' (Slice) is not known"),
    "backwards": ("N,3", [("Slice", "x a b c a", {})], {"a": [-1], "b": [-99], "c": [0]}, "'n0' (Slice) is not known"),
    "images joined": ("N,3", [("Concat", "x x", {"axis": 0})], {}, "'n0' (Concat) is not known"),
    "repeated": ("N,3", [("Tile", "x r", {})], {"r": [2, 1]}, "'n0' (Tile) is not known"),
    "gathered": ("N,3", [("Gather", "x i", {"axis": 0})], {"i": [0, 0]}, "'n0' (Gather) is not known"),
    "product": ("N,3", [("Transpose", "x", {"perm": [1, 0]}), ("MatMul", "t0 x", {})], {},
                "'n1' (MatMul) is not known"),
    "outer": ("N,3", [("Transpose", "x", {"perm": [1, 0]}), ("MatMul", "x t0", {})], {}, "'n1' (MatMul) is not known"),
    "its size": ("N,3", [("Shape", "x", {"end": 1}), ("Cast", "t0", {"to": 1}), ("Mul", "x t1", {})], {},
                 "the constant 't1' differs"),
    "places": ("N,3,5,7", [("MaxPool", "x", {"kernel_shape": [2, 2]}, 2)], {}, "(MaxPoolIndices) is not known"),
    "a pool of images": ("N,3,4", [("Transpose", "x", {"perm": [1, 2, 0]}),
                                   ("MaxPool", "t0", {"kernel_shape": [3], "pads": [1, 1]})], {},
                         "'n1' (MaxPool) is not known"),
}  # fmt: skip


def model_of(shape: str, nodes: list[tuple[Any, ...]], constants: dict[str, Any]) -> onnx.ModelProto:
    """Nodes n0, n1, … that make t0, t1, …: all of these are outputs; a fourth word counts the outputs of one."""
    made, outputs = [], []
    for i, (op, operands, attributes, *count) in enumerate(nodes):
        names = [f"t{i}", f"t{i}b"][: count[0] if count else 2 if op in ("Split", "TopK") else 1]
        made.append(helper.make_node(op, operands.split(" "), names, f"n{i}", **attributes))
        outputs += names
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    arrays = {name: a.astype(np.float32) if a.dtype == np.float64 else a for name, a in arrays.items()}
    read = {name for node in made for name in node.input}
    ends = [helper.make_empty_tensor_value_info(name) for name in outputs if name not in read]
    extents = [int(word) if word.isdigit() else word for word in shape.split(",")]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, extents)],
        ends,
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def why_not(model: onnx.ModelProto, few: int, many: int) -> str:
    return obstacle(import_model(model, batch=few), import_model(model, batch=many))


@pytest.mark.parametrize(("few", "many"), [(1, 2), (3, 6)])
@pytest.mark.parametrize("name", APART)
def test_images_apart(name: str, few: int, many: int) -> None:
    model = model_of(*APART[name])
    assert why_not(model, few, many) == ""
    x = 4 * RNG.standard_normal((7, *map(int, APART[name][0].split(",")[1:])))
    assert_by_image(model, {"x": x.astype(np.float32)}, few, 7)


@pytest.mark.parametrize(("few", "many"), [(1, 2), (3, 6)])
@pytest.mark.parametrize("name", MIXED)
def test_images_mixed(name: str, few: int, many: int) -> None:
    *words, reason = MIXED[name]
    assert reason in why_not(model_of(*words), few, many)


def test_inputs_of_different_batches() -> None:
    model = model_of("N,3", [("Relu", "x", {})], {})
    model.graph.input.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, []))
    model.graph.node.append(helper.make_node("Mul", ["t0", "z"], ["y"], "n1"))
    model.graph.output[0].name = "y"
    assert why_not(model, 1, 2) == "its inputs have no batch in common"


def assert_by_image(model: onnx.ModelProto, feeds: dict[str, Any], few: int, many: int) -> None:
    """The oracle gives for `many` images what it gives for them in parts of `few`, the last of which may overlap."""
    whole = reference(model, feeds)
    for first in range(0, many, few):
        first = min(first, many - few)
        part = reference(model, {name: value[first : first + few] for name, value in feeds.items()})
        for name, found in part.items():
            parts = [axis for axis, extent in enumerate(found.shape) if extent != whole[name].shape[axis]]
            (axis,) = parts or [0]
            ours = found.shape[axis] // few
            wanted = np.take(whole[name], range(first * ours, (first + few) * ours), axis)
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs(seed: int) -> None:
    """Whatever is proved of a random graph the oracle confirms, on values where one image betrays another."""
    proved = 0
    for drawn in draws(90 + seed, 60):
        batches = {value.shape[:1] for value in drawn.inputs.values()}
        if len(batches) != 1 or () in batches or 0 in batches.pop():
            continue
        batch = next(iter(drawn.inputs.values())).shape[0]
        opened = onnx.ModelProto()
        opened.CopyFrom(drawn.model)
        for value in opened.graph.input:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        for value in opened.graph.output:
            value.type.tensor_type.ClearField("shape")
        try:
            if why_not(opened, batch, 2 * batch):
                continue
        except TvmcnnError:  # the batch is in a constant
            continue
        others = {name: np.flip(value, 0) * value.dtype.type(1) for name, value in drawn.inputs.items()}
        feeds = {name: np.concatenate([value, others[name]]) for name, value in drawn.inputs.items()}
        assert_by_image(opened, feeds, batch, 2 * batch)
        proved += 1
    assert proved >= 5
