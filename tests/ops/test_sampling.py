"""GridSample and DeformConv: the compiled library and the reference against onnxruntime, in every mode."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, draw, model_of, node, one_node
from one_node import session

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.importer import import_model, operators
from tvmcnn.ops import sample

Array = np.ndarray[Any, Any]
U = 2.0**-24
MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border", "reflection")


def drawn(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return draw(np.random.default_rng([seed, *shape]), *shape, dtype=dtype)


def agree(
    op: str, opset: int, arrays: list[Array | None], roundings: float, *, alone: bool = False, **more: Any
) -> Array:
    """The library, the reference and onnxruntime within so many roundings of the largest element; `alone`, where
    onnxruntime has no such kernel, the first two."""
    model, feeds = one_node(op, opset, arrays, **more)
    (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
    exact = reference(model, feeds)["y0"]
    unit = 2.0**-53 if ours.dtype == np.float64 else U
    bound = roundings * unit * max(1.0, float(np.abs(exact).max(initial=0)))
    assert (ours.shape, ours.dtype) == (exact.shape, exact.dtype)
    assert np.abs(ours - exact).max(initial=0) <= bound, "the reference"
    if not alone:
        wanted = session(model).run(None, feeds)[0]
        assert np.abs(exact - wanted).max(initial=0) <= bound, "onnxruntime"
    return np.asarray(ours)


# ---- GridSample -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "padding"), [*itertools.product(MODES, PADDINGS)])
def test_grid_sample(mode: str, padding: str) -> None:
    """Also past the borders, where an image is mirrored several times."""
    x, grid = drawn(2, 3, 5, 7), 1.5 * drawn(2, 4, 9, 2)
    grid[0, 0, :2] = [[-7.3, 5.9], [1, -1]]
    words = {"mode": mode, "padding_mode": padding}
    for corners in (0, 1):
        agree("GridSample", 20, [x, grid], 0 if mode == "nearest" else 1e3, align_corners=corners, **words)


def test_grid_sample_in_blocks() -> None:
    """Whole blocks of channels and part of one, with a grid of another size."""
    for mode in MODES:
        agree("GridSample", 20, [drawn(2, 37, 6, 5), drawn(2, 3, 8, 2)], 1e3, mode=mode)


@pytest.mark.parametrize(("mode", "word"), [("linear", "bilinear"), ("cubic", "bicubic"), ("nearest", "nearest")])
def test_the_words_of_opset_16(mode: str, word: str) -> None:
    arrays: list[Array | None] = [drawn(1, 2, 5, 7), drawn(1, 3, 4, 2)]
    old, new = (agree("GridSample", opset, arrays, 1e3, mode=m) for opset, m in ((16, word), (20, mode)))
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("mode", MODES)
def test_volumes_and_signals(mode: str) -> None:
    """Five axes and three; onnxruntime has no cubic of the first, and none of the others."""
    arrays: list[Array | None] = [drawn(2, 3, 4, 5, 6), drawn(2, 3, 2, 7, 3)]
    for padding in PADDINGS:
        agree("GridSample", 20, arrays, 4e3, alone=mode == "cubic", mode=mode, padding_mode=padding)
    agree("GridSample", 20, [drawn(2, 3, 9), drawn(2, 5, 1)], 1e3, alone=True, mode=mode)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int8", "uint8", "int32", "int64", "uint64", "bool"])
def test_element_types(dtype: str) -> None:
    """Any by nearest; a float64 image is sampled as exactly as a float32 grid says."""
    values = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7) * 37 % 101
    x, grid = (values % 2 == 1 if dtype == "bool" else values.astype(dtype)), drawn(2, 4, 3, 2)
    model, feeds = one_node("GridSample", 20, [x, grid], mode="nearest", padding_mode="border")
    (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
    assert ours.dtype == x.dtype
    np.testing.assert_array_equal(ours, reference(model, feeds)["y0"])
    if dtype == "float64":
        for mode in MODES:
            agree("GridSample", 20, [x, grid], 1e3, alone=True, mode=mode)
            agree("GridSample", 20, [x, grid.astype("float64")], 1e3, alone=True, mode=mode)


def test_ties_go_to_even_pixels() -> None:
    """Every place halfway between two pixels, or beside it only as float32 rounds: in float32 as onnxruntime has it."""
    places = (np.arange(-3, 20) * np.float32(2 / 9)).astype(np.float32) - 1
    grid = np.stack(np.meshgrid(places, np.linspace(-1, 1, 9, dtype=np.float32)), axis=-1)[None]
    x = np.arange(2 * 4 * 9, dtype=np.float32).reshape(1, 2, 4, 9)
    for padding, corners in itertools.product(PADDINGS, (0, 1)):
        model, feeds = one_node(
            "GridSample", 20, [x, grid], mode="nearest", padding_mode=padding, align_corners=corners
        )
        (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
        np.testing.assert_array_equal(ours, session(model).run(None, feeds)[0])


def test_a_grid_of_ties_is_verified(tmp_path: Path) -> None:
    """A constant grid halfway between the pixels, as of an affine transform: no chance is in it, nothing is excused."""
    along, down = (np.arange(1, n).astype(np.float32) * np.float32(2 / n) - 1 for n in (13, 11))
    grid = np.stack(np.meshgrid(along, down), axis=-1)[None]
    g = Graph(opset=20)
    x = g.node("Tanh", g.input(1, 3, 11, 13))
    g.output(g.node("GridSample", x, g.constant(grid), mode="nearest", align_corners=0))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so")
    assert compiled.verdict is not None
    assert compiled.verdict.passed, compiled.verdict
    assert compiled.verdict.excused == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_places_that_are_no_numbers_read_inside() -> None:
    """NaN and the infinities, in every mode, as the reference has them."""
    grid = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0], np.float32)
    grid = np.stack(np.meshgrid(grid, grid), axis=-1)[None]
    for mode, padding in itertools.product(MODES, ("zeros", "border")):
        agree("GridSample", 20, [drawn(1, 3, 5, 7), grid], 64, alone=True, mode=mode, padding_mode=padding)
    for mode in MODES:  # mirrored how often, float32 cannot tell
        model, feeds = one_node("GridSample", 20, [drawn(1, 3, 5, 7), grid], mode=mode, padding_mode="reflection")
        (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
        assert np.isfinite(ours).all()


def test_an_infinite_pixel_does_not_reach_the_padding() -> None:
    """The corner that is clamped to beside the image: 0 times it would be NaN."""
    x = np.full((1, 17, 3, 3), np.inf, np.float32)
    grid = np.full((1, 2, 3, 2), 4, np.float32)
    model, feeds = one_node("GridSample", 20, [x, grid])
    assert not tvmcnn.backend.run_model(model, list(feeds.values()))[0].any()


def test_nothing_to_sample() -> None:
    assert agree("GridSample", 20, [drawn(2, 3, 4, 5), drawn(2, 0, 3, 2)], 0, alone=True).shape == (2, 3, 0, 3)
    assert agree("GridSample", 20, [drawn(2, 0, 4, 5), drawn(2, 2, 3, 2)], 0, alone=True).shape == (2, 0, 2, 3)


@pytest.mark.parametrize(
    ("x", "grid", "attributes", "sentence"),
    [
        ((1, 2, 5, 7), (1, 3, 4, 2), {"mode": "lanczos"}, "mode is 'lanczos'; allowed are bilinear, linear, nearest"),
        ((1, 2, 5, 7), (1, 3, 4, 2), {"padding_mode": "wrap"}, "padding_mode is 'wrap'; allowed are zeros, border"),
        ((1, 2, 5, 7), (2, 3, 4, 2), {}, "x is 1x2x5x7 and grid 2x3x4x2; they must be N, C, … and N, …, r"),
        ((1, 2, 5, 7), (1, 3, 4, 3), {}, "x is 1x2x5x7 and grid 1x3x4x3; they must be N, C, … and N, …, r"),
    ],
)
def test_mistakes_of_grids(x: tuple[int, ...], grid: tuple[int, ...], attributes: Any, sentence: str) -> None:
    proto = model_of([node("GridSample", "x g", "y", **attributes)], {"x": x, "g": grid}, {"y": (None,) * 4}, opset=20)
    with pytest.raises(ModelError) as caught:
        import_model(proto)
    assert sentence in str(caught.value)


def test_an_image_without_pixels_is_refused() -> None:
    x, grid = operators.Value("x", (1, 2, 0, 7), "float32"), operators.Value("g", (1, 3, 4, 2), "float32")
    with pytest.raises(ModelError, match="x is 1x2x0x7, which has nothing to sample"):
        operators.OPERATORS["GridSample"](x, grid)


def test_integers_are_not_interpolated() -> None:
    model, _ = one_node("GridSample", 20, [np.ones((1, 2, 5, 7), np.int32), drawn(1, 3, 4, 2)])
    with pytest.raises(UnsupportedError, match="is int32; supported are float32, float64"):
        import_model(model)


def test_a_flipped_weight_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays: list[Array | None] = [drawn(1, 3, 5, 7), drawn(1, 4, 6, 2)]
    agree("GridSample", 20, arrays, 1e3, mode="cubic")
    right = sample._cubic_weights
    monkeypatch.setattr(sample, "_cubic_weights", lambda t: right(t)[::-1])
    with pytest.raises(AssertionError, match="the reference"):
        agree("GridSample", 20, arrays, 1e3, mode="cubic")


# ---- DeformConv -----------------------------------------------------------------------------------------------------


def deformed(x: tuple[int, ...], w: tuple[int, ...], *, bias: bool, mask: bool, **words: Any) -> list[Array | None]:
    """Operands of such shapes; an offset moves a tap by more than a pixel."""
    rank, kernel = len(x) - 2, w[2:]
    strides, dilations = words.get("strides", [1] * rank), words.get("dilations", [1] * rank)
    pads, groups = words.get("pads", [0] * 2 * rank), words.get("offset_group", 1)
    sizes = [
        (x[2 + a] + pads[a] + pads[a + rank] - dilations[a] * (kernel[a] - 1) - 1) // strides[a] + 1
        for a in range(rank)
    ]
    taps = groups * math.prod(kernel)
    offset = 1.5 * drawn(x[0], taps * rank, *sizes)
    return [drawn(*x), drawn(*w), offset, drawn(w[0]) if bias else None, drawn(x[0], taps, *sizes) if mask else None]


FORMS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 6, 7, 5), (4, 3, 3, 2), {"group": 2}),
    ((2, 6, 9, 7), (4, 6, 3, 2), {"offset_group": 3, "strides": [2, 1], "pads": [1, 2, 0, 1], "dilations": [2, 1]}),
    ((1, 32, 5, 7), (20, 32, 3, 2), {"offset_group": 2, "pads": [1, 0, 1, 1]}),
    ((1, 64, 5, 4), (6, 32, 2, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
]


@pytest.mark.parametrize(("x", "w", "words"), FORMS, ids=str)
def test_deform_conv(x: tuple[int, ...], w: tuple[int, ...], words: dict[str, Any]) -> None:
    for bias, mask in ((True, True), (False, False), (False, True)):
        agree("DeformConv", 19, deformed(x, w, bias=bias, mask=mask, **words), 4e3, **words)


def test_deform_conv_of_volumes_and_doubles() -> None:
    words = {"group": 2, "offset_group": 2, "strides": [1, 1, 2], "pads": [1, 0, 1, 0, 1, 0], "dilations": [1, 1, 2]}
    agree(
        "DeformConv",
        22,
        deformed((1, 4, 4, 5, 6), (4, 2, 2, 3, 2), bias=True, mask=True, **words),
        4e3,
        alone=True,
        **words,
    )
    arrays = deformed((1, 4, 5, 6), (3, 4, 2, 3), bias=True, mask=True)
    doubles = [None if array is None else array.astype("float64") for array in arrays]
    agree("DeformConv", 22, doubles, 4e3, alone=True)


@pytest.mark.parametrize("target", ["x86-64-v3", "native"])
def test_constant_weights_are_a_convolution_in_blocks(target: str, tmp_path: Path) -> None:
    """Samples, then the convolution with what fuses into it; every tensor is verified."""
    _, w, offset, b, mask = deformed((1, 32, 6, 7), (20, 32, 3, 3), bias=True, mask=True, pads=[1, 1, 1, 1])
    assert offset is not None and mask is not None
    g = Graph(opset=19)
    given, moves, scale = g.input(1, 32, 6, 7), g.input(*offset.shape), g.input(*mask.shape)
    y = g.node("DeformConv", given, g.constant(w), moves, g.constant(b), g.node("Sigmoid", scale), pads=[1, 1, 1, 1])
    g.output(g.node("Relu", y))
    compiled = tvmcnn.compile(g.model(), target=target, output=tmp_path / "x.so")
    assert compiled.verdict is not None and compiled.verdict.passed, compiled.verdict
    steps = {step.choice.kernel.anchor.op: step.choice for step in compiled.program.steps}
    assert (steps["DeformColumns"].algorithm, steps["DeformColumns"].makes.block) == ("deform_columns", 16)
    assert [each.op for each in steps["Conv"].kernel.nodes] == ["Conv", "Relu"]


@pytest.mark.parametrize(
    ("words", "changed", "sentence"),
    [
        ({"offset_group": 4}, None, "offset_group is 4; it must divide the 6 channels of its input"),
        ({}, 2, "its offset is 2x12x5x3; it must be 2x12x5x4"),
        ({}, 4, "its mask is 2x6x5x3; it must be 2x6x5x4"),
        ({"group": 3}, None, "the input has 6 channels and the weight is 4x3x3x2"),
    ],
)
def test_mistakes_of_offsets(words: dict[str, Any], changed: int | None, sentence: str) -> None:
    arrays = deformed((2, 6, 7, 5), (4, 3, 3, 2), bias=False, mask=True)
    if changed is not None:
        array = arrays[changed]
        assert array is not None
        arrays[changed] = array[..., :-1]
    model, _ = one_node("DeformConv", 19, arrays, **{"group": 2, **words})
    with pytest.raises(ModelError) as caught:
        import_model(model)
    assert sentence in str(caught.value)
