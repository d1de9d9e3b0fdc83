"""RoiAlign and MaxRoiPool: the compiled library and the reference against onnxruntime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import draw, model_of, node, one_node
from one_node import session

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError
from tvmcnn.importer import import_model
from tvmcnn.ops import regions

Array = np.ndarray[Any, Any]
U = 2.0**-24
SHAPE = (2, 3, 9, 13)
# Around a part of the image, past it, a point, an end before its start, whole pixels, all of it
CORNERS = [[2.3, 1.1, 9.7, 7.2], [-50, -30, 90, 70], [5, 5, 5, 5], [8, 7, 3, 2], [4, 2, 10, 8], [0, 0, 26, 18]]
IMAGES = [0, 1, 1, 0, 1, 0]
POOLED = {"output_height": 3, "output_width": 4}


def drawn(*shape: int, dtype: str = "float32") -> Array:
    return draw(np.random.default_rng(shape), *shape, dtype=dtype)


def aligned(channels: int = 3, dtype: str = "float32") -> list[Array | None]:
    """An image, regions and their images."""
    return [drawn(2, channels, *SHAPE[2:], dtype=dtype), np.array(CORNERS, dtype), np.array(IMAGES)]


def pooled(channels: int = 3, dtype: str = "float32") -> list[Array | None]:
    """An image, and regions after the numbers of their images."""
    rows = [[image, *corners] for image, corners in zip(IMAGES, CORNERS, strict=True)]
    return [drawn(2, channels, *SHAPE[2:], dtype=dtype), np.array(rows, dtype)]


def agree(op: str, opset: int, arrays: list[Array | None], roundings: float, **words: Any) -> None:
    """All three within so many roundings of the largest element."""
    model, feeds = one_node(op, opset, arrays, **words)
    (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
    exact, wanted = reference(model, feeds)["y0"], session(model).run(None, feeds)[0]
    unit = 2.0**-53 if ours.dtype == np.float64 else U
    bound = roundings * unit * max(1.0, float(np.abs(exact).max(initial=0)))
    assert (ours.shape, ours.dtype) == (exact.shape, exact.dtype) == (wanted.shape, wanted.dtype)
    assert np.abs(ours - exact).max(initial=0) <= bound, "the reference"
    assert np.abs(exact - wanted).max(initial=0) <= bound, "onnxruntime"


@pytest.mark.parametrize(("mode", "ratio"), [*itertools.product(("avg", "max"), (0, 1, 3))])
def test_roi_align(mode: str, ratio: int) -> None:
    """In plain layout and in blocks of channels, with as many samples as there are pixels or a number of them."""
    words = {"mode": mode, "sampling_ratio": ratio, "spatial_scale": 0.5, **POOLED}
    for channels, transform in ((3, "half_pixel"), (19, "output_half_pixel"), (16, "half_pixel")):
        agree("RoiAlign", 16, aligned(channels), 4e3, coordinate_transformation_mode=transform, **words)


def test_roi_align_before_opset_16() -> None:
    """No half pixel is taken off, and no region is smaller than one."""
    agree("RoiAlign", 10, aligned(), 4e3, spatial_scale=0.75, **POOLED)


def test_roi_align_of_doubles() -> None:
    """onnxruntime's own samples are float64 too."""
    agree("RoiAlign", 16, aligned(dtype="float64"), 4e3, spatial_scale=0.5, **POOLED)


def test_whole_bins_as_float32_scales_them() -> None:
    """140 · 0.1 is 14 in float32 and 14.0000002 in float64: bins of 2 pixels, and no third sample."""
    corners = np.array([[0, 0, 140, 70], [10, 30, 150, 100]], np.float32)
    arrays: list[Array | None] = [drawn(1, 17, 12, 17), corners, np.zeros(2, np.int64)]
    words = {
        "output_height": 7,
        "output_width": 7,
        "spatial_scale": 0.1,
        "coordinate_transformation_mode": "half_pixel",
    }
    model, feeds = one_node("RoiAlign", 16, arrays, **words)
    (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
    np.testing.assert_allclose(ours, session(model).run(None, feeds)[0], rtol=0, atol=1e-4)


def test_whole_bins_are_verified(tmp_path: Path) -> None:
    """The same through the comparison that compile makes, whose oracle sees the other side of each step."""
    corners = np.array([[0, 0, 140, 70], [10, 30, 150, 100]], np.float32)
    words = {"output_height": 7, "output_width": 7, "spatial_scale": 0.1}
    nodes = [node("Tanh", "x", "t"), node("RoiAlign", "t r b", "y", **words)]
    constants = {"r": corners, "b": np.zeros(2, np.int64)}
    proto = model_of(nodes, {"x": (1, 17, 12, 17)}, {"y": (None,) * 4}, constants, opset=16)
    compiled = tvmcnn.compile(proto, output=tmp_path / "x.so")
    assert compiled.verdict is not None
    assert compiled.verdict.passed, compiled.verdict


@pytest.mark.parametrize("channels", [3, 19])
def test_max_roi_pool(channels: int) -> None:
    """Halves of pixels, bins that share pixels, and bins outside the image."""
    for scale in (1.0, 0.5, 0.25):
        agree("MaxRoiPool", 13, pooled(channels), 0, pooled_shape=[3, 4], spatial_scale=scale)


@pytest.mark.parametrize("channels", [2, 16])
def test_no_regions(channels: int) -> None:
    arrays: list[Array | None] = [drawn(1, channels, 5, 6), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)]
    model, feeds = one_node("RoiAlign", 16, arrays, **POOLED)
    assert tvmcnn.backend.run_model(model, list(feeds.values()))[0].shape == (0, channels, 3, 4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_corners_that_are_no_numbers_read_inside() -> None:
    corners = np.array([[np.nan, 0, np.inf, 5], [-np.inf, np.nan, np.nan, 3e38]], np.float32)
    for ratio in (0, 2):
        arrays: list[Array | None] = [drawn(1, 3, 5, 6), corners, np.array([7, -9])]
        model, feeds = one_node("RoiAlign", 16, arrays, sampling_ratio=ratio, **POOLED)
        assert np.isfinite(tvmcnn.backend.run_model(model, list(feeds.values()))[0]).all()
    model, feeds = one_node(
        "MaxRoiPool", 13, [drawn(1, 3, 5, 6), np.c_[[np.nan, 9], corners].astype("f")], pooled_shape=[2, 3]
    )
    assert np.isfinite(tvmcnn.backend.run_model(model, list(feeds.values()))[0]).all()


@pytest.mark.parametrize("target", ["x86-64-v3", "native"])
@pytest.mark.parametrize(("op", "ratio"), [("RoiAlign", 0), ("RoiAlign", 2), ("MaxRoiPool", 0)])
def test_threads_and_random_regions(op: str, ratio: int, target: str, tmp_path: Path) -> None:
    """What compile draws is taken by the oracle, and any number of threads makes the same bits."""
    words = {"sampling_ratio": ratio, **POOLED} if op == "RoiAlign" else {"pooled_shape": [3, 4]}
    shapes: dict[str, Any] = {"x": (2, 40, 30, 31), "r": (20, 4 if op == "RoiAlign" else 5)}
    if op == "RoiAlign":
        shapes["b"] = np.zeros(20, np.int64)
    proto = model_of([node(op, [*shapes], "y", **words)], shapes, {"y": (None,) * 4}, opset=16)
    compiled = tvmcnn.compile(proto, target=target, output=tmp_path / "x.so")
    assert compiled.verdict is not None and compiled.verdict.passed, compiled.verdict
    corners = np.sort(np.random.default_rng(1).uniform(-3, 33, (20, 2, 2)), axis=1).reshape(20, 4)
    image = np.arange(20) % 2
    given = [drawn(2, 40, 30, 31), *([corners, image] if op == "RoiAlign" else [np.c_[image, corners]])]
    given[1] = given[1].astype(np.float32)
    one, several = (tvmcnn.load(tmp_path / "x.so", threads=n)(*given) for n in (1, 3))
    assert one.tobytes() == several.tobytes()
    assert np.abs(one).max() > 0


@pytest.mark.parametrize(
    ("op", "changes", "words", "sentence"),
    [
        ("RoiAlign", {}, {"mode": "min"}, "mode is 'min'; allowed are avg, max"),
        (
            "RoiAlign",
            {},
            {"coordinate_transformation_mode": "pixel"},
            "is 'pixel'; allowed are half_pixel, output_half",
        ),
        ("RoiAlign", {}, {"sampling_ratio": -1}, "sampling_ratio is -1; allowed are 0 to 1024"),
        ("RoiAlign", {}, {"output_height": 0}, "its output has [0, 1] rows and columns; both must be 1 at least"),
        ("RoiAlign", {1: np.zeros((6, 5), np.float32)}, {}, "rois 6x5; they must be N, C, H, W and R, 4"),
        ("RoiAlign", {2: np.array(IMAGES[:5])}, {}, "rois are 6x4 and batch_indices 5; one each"),
        ("MaxRoiPool", {}, {"pooled_shape": [3]}, "its output has [3] rows and columns"),
        (
            "MaxRoiPool",
            {1: np.zeros((6, 4), np.float32)},
            {"pooled_shape": [3, 4]},
            "rois 6x4; they must be N, C, H, W",
        ),
    ],
)
def test_mistakes(op: str, changes: dict[int, Array], words: dict[str, Any], sentence: str) -> None:
    arrays = aligned() if op == "RoiAlign" else pooled()
    for place, array in changes.items():
        arrays[place] = array
    model, _ = one_node(op, 16, arrays, **words)
    with pytest.raises(ModelError) as caught:
        import_model(model)
    assert sentence in str(caught.value)


def test_an_image_that_is_not_there_is_refused() -> None:
    constants = {"r": np.array(CORNERS[:2], np.float32), "b": np.array([0, 2])}
    nodes = [node("RoiAlign", "x r b", "y")]
    with pytest.raises(ModelError, match="batch index 2 is outside the 2 images of x"):
        import_model(model_of(nodes, {"x": SHAPE}, {"y": (None,) * 4}, constants, opset=16))


def test_a_sample_too_few_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"spatial_scale": 0.5, **POOLED}
    monkeypatch.setattr(regions._Side, "place", lambda self, region, b, i: right(self, region, b, i) + self.number(0.1))
    with pytest.raises(AssertionError, match="the reference"):
        agree("RoiAlign", 16, aligned(), 4e3, **words)


right = regions._Side.place
