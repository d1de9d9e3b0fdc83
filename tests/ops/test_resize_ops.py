"""Resize and Upsample: the compiled library and the reference against onnxruntime, in every mode and every opset."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from builders import Graph, draw, model_of, node

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model, operators

Array = np.ndarray[Any, Any]
U = 2.0**-24
SHAPE = (2, 3, 5, 7)
SIZES = ([2, 3, 11, 9], [2, 3, 4, 13], [2, 3, 10, 14])
COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def model(op: str, opset: int, inputs: list[Array | None], shape: tuple[int, ...] = SHAPE, **attributes: Any) -> Any:
    """One node whose operands but the first are constants; None leaves one out."""
    names = [f"c{i}" if array is not None else "" for i, array in enumerate(inputs)]
    constants = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    nodes = [node(op, ["x", *names], "y", **attributes)]
    return model_of(nodes, {"x": shape}, {"y": [None] * len(shape)}, constants, opset=opset)


def agree(proto: onnx.ModelProto, shape: tuple[int, ...] = SHAPE) -> None:
    """All three within the roundings of at most 16 taps a pixel and axis of the largest element."""
    x = draw(7, *shape, outliers=1 / 16)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"x": x})[0]
    (ours,) = tvmcnn.backend.run_model(proto, [x])
    exact = reference(proto, {"x": x})["y"]
    assert ours.shape == wanted.shape == exact.shape
    bound = 64 * U * np.abs(x).max()
    if not ours.size:
        return
    assert np.abs(ours - exact).max() <= bound, "the reference"
    assert np.abs(ours - wanted).max() <= bound, "onnxruntime"


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("coordinates", [*COORDINATES, "half_pixel_symmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(mode: str, coordinates: str, sizes: list[int]) -> None:
    cubic = {"cubic_coeff_a": -0.5, "exclude_outside": int(sizes[2] == 4)} if mode == "cubic" else {}
    operands = [None, None, np.array(sizes)]
    agree(model("Resize", 19, operands, mode=mode, coordinate_transformation_mode=coordinates, **cubic))


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_nearest(coordinates: str, rounding: str) -> None:
    for sizes in SIZES:
        attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        agree(model("Resize", 13, [None, None, np.array(sizes)], **attributes))


@pytest.mark.parametrize("scales", [(2, 3), (1.6, 2.3), (0.6, 0.7), (1, 0.5)], ids=str)
def test_scales(scales: tuple[float, float]) -> None:
    """Scales like 0.6, by which a whole coordinate is reached only as float32 rounds."""
    given = np.array([1, 1, *scales], np.float32)
    for mode, coordinates in itertools.product(("nearest", "linear"), ("asymmetric", "half_pixel")):
        agree(model("Resize", 13, [None, given], mode=mode, coordinate_transformation_mode=coordinates))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias(mode: str) -> None:
    agree(model("Resize", 18, [None, None, np.array([2, 3, 3, 4])], mode=mode, antialias=1))


def test_crop(tmp_path: Path) -> None:
    """Outside the input the value is extrapolated."""
    roi = np.array([0, 0, 0.3, -0.4, 1, 1, 1.2, 0.7], np.float32)
    attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.5}
    for mode in ("nearest", "linear"):
        agree(model("Resize", 13, [roi, None, np.array([2, 3, 6, 8])], mode=mode, **attributes))


@pytest.mark.parametrize(
    ("shape", "rounding", "attributes", "operands"),
    [
        ((6, 11), "round_prefer_floor", {"coordinate_transformation_mode": "tf_crop_and_resize"}, (0.05, 0.66, 6)),
        ((7, 11), "round_prefer_floor", {"coordinate_transformation_mode": "tf_crop_and_resize"}, (0.05, 0.95, 20)),
        ((9, 11), "ceil", {"coordinate_transformation_mode": "half_pixel_symmetric"}, (0.5,)),
        ((6, 3), "ceil", {"coordinate_transformation_mode": "half_pixel_symmetric"}, (0.6,)),
    ],
    ids=str,
)
def test_ties(shape: tuple[int, int], rounding: str, attributes: dict[str, str], operands: tuple[float, ...]) -> None:
    """Coordinates halfway or whole only as float32 rounds: in float64 another pixel would be the nearest."""
    roi, scales, sizes = None, None, None
    if len(operands) == 3:
        begin, end, size = operands
        roi, sizes = np.array([0, begin, 1, end], np.float32), np.array([shape[0] + 4, size], np.int64)
    else:
        scales = np.array([2.5, *operands], np.float32)
    agree(model("Resize", 19, [roi, scales, sizes], shape, nearest_mode=rounding, **attributes), shape)


@pytest.mark.parametrize("coordinates", ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "asymmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_coordinates_of_doubles_are_exact(mode: str, coordinates: str) -> None:
    """Coordinates at scale 3, which float32 would cut by 2e-9 of a pixel: float64 shows it."""
    scales = np.array([3, 7 / 4], np.float32)
    nodes = [node("Resize", ["x", "", "scales"], "y", mode=mode, coordinate_transformation_mode=coordinates)]
    doubles = onnx.TensorProto.DOUBLE
    infos = {"x": (doubles, (5, 9))}, {"y": (doubles, (None, None))}
    proto = model_of(nodes, *infos, {"scales": scales}, opset=19)
    x = draw(7, 5, 9).astype(np.float64)
    (found,) = tvmcnn.backend.run_model(proto, [x])
    size = 15, 15
    exact = reference(proto, {"x": x})["y"]
    assert found.shape == exact.shape == size
    assert np.abs(found - exact).max() <= 64 * 2.0**-53 * np.abs(x).max()
    if coordinates != "half_pixel_symmetric" and mode == "linear":  # a pixel of the middle, by hand
        at = [(7 + 0.5) / scale - 0.5 if "half" in coordinates else 7 / scale for scale in scales.astype(np.float64)]
        (i, j), (u, v) = np.floor(at).astype(int), np.mod(at, 1)
        by_hand = np.array([1 - u, u]) @ x[i : i + 2, j : j + 2] @ np.array([1 - v, v])
        assert abs(found[7, 7] - by_hand) <= 16 * 2.0**-53 * np.abs(x).max()


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners"])
def test_nothing_left(coordinates: str) -> None:
    """One row by half is none."""
    scales = np.array([3, 0.5], np.float32)
    agree(model("Resize", 13, [None, scales], (3, 1), coordinate_transformation_mode=coordinates), (3, 1))


def test_taps_all_outside() -> None:
    """A crop far outside, no tap of which counts, is extrapolated without a word of a division by 0."""
    attributes = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.5}
    roi = np.array([0, 0, 1, 3], np.float32)
    proto = model("Resize", 13, [roi, None, np.array([4, 11])], (3, 7), mode="cubic", exclude_outside=1, **attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = import_model(proto)
    assert all(np.isfinite(array).all() for array in network.constants.values())


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_axes_and_aspect_ratio(policy: str) -> None:
    for axes in ([2, 3], [3, 2]):
        attributes = {"axes": axes, "keep_aspect_ratio_policy": policy, "mode": "linear"}
        agree(model("Resize", 18, [None, None, np.array([8, 9])], **attributes))


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_before_opset_11(op: str, opset: int, mode: str) -> None:
    """Place i of the output lies at i / scale there."""
    for scales in ([1, 1, 2, 3], [1, 1, 1.6, 2.3], *([[1, 1, 0.6, 0.7]] if op == "Resize" else [])):
        given = np.array(scales, np.float32)
        more = {"scales": given.tolist()} if opset == 7 else {}
        agree(model(op, opset, [] if opset == 7 else [given], mode=mode, **more))


@pytest.mark.parametrize("shape", [(9,), (4, 7), (2, 3, 5), (2, 3, 4, 5, 6)], ids=str)
def test_other_ranks(shape: tuple[int, ...]) -> None:
    sizes = np.array([*shape[:-2], *(extent * 2 - 1 for extent in shape[-2:])])
    if len(shape) > 1:  # which onnxruntime does not interpolate
        agree(model("Resize", 13, [None, None, sizes], shape, mode="linear"), shape)
    agree(model("Resize", 13, [None, None, sizes], shape), shape)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "linear"},
        {"mode": "cubic"},
        {"mode": "nearest"},
        {"mode": "nearest", "coordinate_transformation_mode": "align_corners"},
    ],
    ids=str,
)
def test_between_convolutions(attributes: dict[str, str], tmp_path: Path) -> None:
    """In blocks of channels, 31 of which leave a padding lane; nothing is reordered."""
    g = Graph(opset=13)
    x = g.conv(g.input(2, 16, 5, 7), 31, (1, 1))
    y = g.node("Resize", x, "", g.constant(np.array([1, 1, 2, 3], np.float32)), **attributes)
    g.output(g.conv(y, 16, (3, 2)))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    (step,) = [step for step in compiled.program.steps if step.choice.kernel.anchor.op == "Resize"]
    assert (step.choice.algorithm, step.choice.writes.block) == ("resize", 16)


def test_whole_factors_need_no_table(tmp_path: Path) -> None:
    network = simplified(import_model(model("Resize", 13, [None, np.array([1, 1, 2, 3], np.float32)])))
    assert network.nodes[0].attributes["factors"] == (1, 1, 2, 3)
    assert not network.constants


@pytest.mark.parametrize(
    ("operands", "attributes", "sentence"),
    [
        ([None, np.array([1, 1, 0, 2], np.float32)], {}, "its scales are [1.0, 1.0, 0.0, 2.0]; they must be above 0"),
        ([None, np.array([1, 2], np.float32)], {}, "2 scales or sizes and 0 bounds of roi for 4 axes"),
        ([None, None, None], {}, "its scales and sizes are both given or both left out; it must have one of them"),
        (
            [None, None, np.array(SIZES[0])],
            {"mode": "lanczos"},
            "mode is 'lanczos'; allowed are nearest, linear, cubic",
        ),
    ],
)
def test_mistakes(operands: list[Array | None], attributes: dict[str, str], sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(model("Resize", 13, operands, **attributes))
    assert sentence in str(caught.value)


def test_shrinking_and_enlarging_at_opset_10_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="shrink and enlarge at once"):
        import_model(model("Resize", 10, [np.array([1, 1, 2, 0.5], np.float32)]))


def test_a_wrong_table_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a pixel to the right."""
    proto = model("Resize", 13, [None, None, np.array(SIZES[1])], mode="linear")
    agree(proto)
    right = operators.resize.COORDINATES["half_pixel"]
    monkeypatch.setitem(operators.resize.COORDINATES, "half_pixel", lambda axis, x: right(axis, x) + 0.5)
    with pytest.raises(AssertionError, match="the reference"):
        agree(proto)
