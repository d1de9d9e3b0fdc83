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
from tvmcnn.importer import import_model, unfolded
from tvmcnn.importer.by_image import obstacle
from tvmcnn.importer.image_axes import RULES
from tvmcnn.importer.operators import OPERATORS

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
    "seq first": ("N,3,7", [("Transpose", "x", {"perm": [1, 0, 2]}), ("MatMul", "t0 w", {}),
                            ("Transpose", "t1", {"perm": [1, 0, 2]})], {"w": WEIGHT}),
    "views by shape": ("N,6,7", [("Shape", "x", {}), ("Gather", "t0 z", {}), ("Unsqueeze", "t1 z1", {}),
                                 ("Concat", "t2 r", {"axis": 0}), ("Reshape", "x t3", {})],
                       {"z": np.int64(0), "z1": [0], "r": [2, -1]}),
    "rows of all": ("N,6,7", [("Shape", "x", {"end": 2}), ("Relu", "x", {}), ("Gather", "t0 z", {}),
                              ("Mul", "t2 six", {}), ("Unsqueeze", "t3 z1", {}), ("Concat", "t4 r", {"axis": 0}),
                              ("Reshape", "x t5", {}), ("Div", "t3 six", {}), ("Unsqueeze", "t7 z1", {}),
                              ("Concat", "t8 r", {"axis": 0}), ("Reshape", "t6 t9", {})],
                    {"z": np.int64(0), "z1": [0], "six": np.int64(6), "r": [-1]}),
    "half its width": ("N,6,8", [("Shape", "x", {"start": 2}), ("Div", "t0 two", {}), ("Slice", "x zero t1 axis", {})],
                       {"two": [2], "zero": [0], "axis": [2]}),
    "tokens": ("N,3,7", [("Shape", "x", {"end": 1}), ("Concat", "t0 one", {"axis": 0}), ("Equal", "t1 minus", {}),
                         ("Where", "t2 ones t1", {}), ("Expand", "token t3", {}), ("Concat", "t4 x", {"axis": 1})],
               {"one": [1, 7], "minus": [-1], "ones": [1, 1, 1], "token": WEIGHT[:1, :7][None]}),
    "written over": ("N,5", [("Shape", "x", {"end": 1}), ("Concat", "t0 two", {"axis": 0}), ("Expand", "places t1", {}),
                             ("Slice", "x zero two one", {}), ("ScatterElements", "x t2 t3", {"axis": 1})],
                     {"two": [2], "zero": [0], "one": [1], "places": [[2, 3]]}),
    "pooled as channels": ("N,3,5,7", [("Transpose", "x", {"perm": [1, 0, 2, 3]}),
                                       ("MaxPool", "t0", {"kernel_shape": [2, 3]}), ("ReduceMean", "t1 hw", {}),
                                       ("Transpose", "t2", {"perm": [1, 0, 2, 3]})], {"hw": [2, 3]}),
    "spectrum": ("N,8,1", [("DFT", "x", {"axis": 1})], {}),
    "frames": ("N,32,1", [("STFT", "x step  length", {})], {"step": np.int64(8), "length": np.int64(16)}),
    "padded by NaN": ("N,3", [("Pad", "x p nan", {})], {"p": [0, 1, 0, 0], "nan": np.float32("nan")}),
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
    "the first four": ("N,3", [("Slice", "x a b a", {})], {"a": [0], "b": [4]}, "'n0' (Slice)"),
    "the last four": ("N,3", [("Slice", "x a b z", {})], {"a": [-4], "b": [2**40], "z": [0]}, "'n0' (Slice)"),
    "by a third": ("N,3", [("Shape", "x", {"end": 1}), ("Div", "t0 three", {}), ("Cast", "t1", {"to": 1}),
                           ("Add", "x t2", {})], {"three": [3]}, "'n1' (Div) computes with the number of images"),
    "two at least": ("N,3", [("Shape", "x", {"end": 1}), ("Max", "t0 two", {}), ("Cast", "t1", {"to": 1}),
                             ("Mul", "x t2", {})], {"two": [2]}, "'n1' (Max) computes with the number of images"),
    "rounded": ("N,3", [("Resize", "x  s", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"})],
                {"s": np.float32([1.3, 1])}, "(Resize)"),
    "numbered": ("N,3", [("Shape", "x", {}), ("Gather", "t0 z", {}), ("Range", "z t1 one", {}), ("Div", "t2 nine", {}),
                         ("Cast", "t3", {"to": 1}), ("Unsqueeze", "t4 ones", {}), ("Add", "x t5", {})],
                 {"z": np.int64(0), "one": np.int64(1), "nine": np.int64(9), "ones": [1]},
                 "'n2' (Range) computes with the number of images"),
    "counted by ones": ("N,3", [("Shape", "x", {"end": 1}), ("ConstantOfShape", "t0", {}), ("CumSum", "t1 z", {}),
                                ("Unsqueeze", "t2 one", {}), ("Add", "x t3", {})],
                        {"z": np.int64(0), "one": [1]}, "'n2' (CumSum) computes with constants that are as many as"),
    "shown": ("N,3", [("Shape", "x", {"end": 1}), ("Relu", "x", {})], {}, "is made of constants: it has no images"),
    "scaled by images": ("N,3,7", [("ReduceMean", "x a", {}), ("LayerNormalization", "x t0", {})], {"a": [1]},
                         "'n1' (LayerNormalization) is not known"),
    "its size": ("N,3", [("Shape", "x", {"end": 1}), ("Cast", "t0", {"to": 1}), ("Mul", "x t1", {})], {},
                 "'n1' (Cast) computes with the number of images"),
    "places": ("N,3,5,7", [("MaxPool", "x", {"kernel_shape": [2, 2]}, 2)], {}, "(MaxPoolIndices) is not known"),
    "a pool of images": ("N,3,4", [("Transpose", "x", {"perm": [1, 2, 0]}),
                                   ("MaxPool", "t0", {"kernel_shape": [3], "pads": [1, 1]})], {},
                         "'n1' (MaxPool) is not known"),
    "anchors": ("N,3", [("Identity", "c", {}), ("Relu", "x", {})], {"c": WEIGHT}, "'t0' is made of constants"),
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
    small, large = (import_model(model, batch=batch) for batch in (few, many))
    return obstacle(small, large, unfolded(model, batch=many))


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


def test_a_branch_that_the_batch_takes() -> None:
    """One branch for 1 image and for 2, the other for 3."""
    model = model_of("N,3", [("Shape", "x", {"end": 1}), ("Greater", "t0 two", {})], {"two": [2]})
    branches = {}
    for word, op in (("then_branch", "Neg"), ("else_branch", "Relu")):
        made = helper.make_tensor_value_info(word, onnx.TensorProto.FLOAT, None)
        branches[word] = helper.make_graph([helper.make_node(op, ["x"], [word])], word, [], [made])
    model.graph.node.append(helper.make_node("If", ["t1"], ["y"], "choice", **branches))
    model.graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("y"))
    assert "computes with the number of images" in why_not(model, 1, 2)


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


def test_operators_without_a_rule() -> None:
    """Each for its reason: an operator that is new has a rule, or is entered here."""
    others = "CenterCropPad Dropout DynamicQuantizeLinear Flatten Identity Split Squeeze Unsqueeze ScatterND".split()  # noqa: SIM905
    constant = "Constant ConstantOfShape EyeLike Range Shape Size".split()  # noqa: SIM905
    windows = ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")
    as_the_data_says = ("Compress", "NonMaxSuppression", "NonZero")
    by_number = ("MaxRoiPool", "RoiAlign", "MaxUnpool")  # whose operands count images, or elements of all of them
    without = {*others, *constant, *windows, *as_the_data_says, *by_number, "ReverseSequence"}
    assert without == set(OPERATORS) - set(RULES), "others are made of operators that have rules"


@pytest.mark.parametrize("seed", range(2))
def test_random_graphs(seed: int) -> None:
    """Whatever is proved of a random graph for 1 image and for 2 the oracle confirms for 5."""
    proved = 0
    for drawn in draws(90 + seed, 50):
        if any(not value.ndim or not value.shape[0] for value in drawn.inputs.values()) or not drawn.inputs:
            continue
        opened = onnx.ModelProto()
        opened.CopyFrom(drawn.model)
        for value in opened.graph.input:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
        for value in opened.graph.output:
            value.type.tensor_type.ClearField("shape")
        try:
            if why_not(opened, 1, 2):
                continue
        except TvmcnnError:  # the batch is in a constant
            continue
        feeds = {
            name: np.concatenate([np.roll(value, turn, -1) for turn in range(5)])[:5]
            for name, value in drawn.inputs.items()
        }
        assert_by_image(opened, feeds, 1, 5)
        proved += 1
    assert proved >= 5
