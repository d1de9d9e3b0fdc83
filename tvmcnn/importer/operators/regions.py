"""Operators that pool regions of interest, whose corners may arrive at run time."""

from __future__ import annotations

from collections.abc import Sequence

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import FLOATS, Meaning, Value, alike, operator, typed
from tvmcnn.network import dims

TRANSFORMS = ("half_pixel", "output_half_pixel")
MOST_SAMPLES = 1 << 10  # sampling_ratio: those of a bin are its square


def _checked(x: Value, rois: Value, columns: int, output: Sequence[int]) -> None:
    """Refuse operands that are no images and no regions of so many numbers each, and an output without pixels."""
    alike(FLOATS, x, rois)
    if len(x.shape) != 4 or len(rois.shape) != 2 or rois.shape[1] != columns:
        raise ModelError(f"x is {dims(x.shape)} and rois {dims(rois.shape)}; they must be N, C, H, W and R, {columns}")
    if len(output) != 2 or min(output) < 1:
        raise ModelError(f"its output has {list(output)} rows and columns; both must be 1 at least")
    if rois.shape[0] and 0 in (x.shape[0], *x.shape[2:]):
        raise ModelError(f"x is {dims(x.shape)}, which has nothing to pool")


@operator
def roi_align(
    x: Value,
    rois: Value,
    batch_indices: Value,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Meaning:
    """ONNX RoiAlign: the mean or maximum of samples of each bin of the regions (x1, y1, x2, y2), each of an image.

    Without a sampling_ratio a bin has as many samples a side as it has pixels, rounded up.
    """
    if mode not in ("avg", "max"):
        raise ModelError(f"mode is '{mode}'; allowed are avg, max")
    if coordinate_transformation_mode not in TRANSFORMS:
        raise ModelError(
            f"coordinate_transformation_mode is '{coordinate_transformation_mode}'; allowed are {', '.join(TRANSFORMS)}"
        )
    if not 0 <= sampling_ratio <= MOST_SAMPLES:
        raise ModelError(f"sampling_ratio is {sampling_ratio}; allowed are 0 to {MOST_SAMPLES}")
    _checked(x, rois, 4, (output_height, output_width))
    typed(("int64",), batch_indices)
    if batch_indices.shape != rois.shape[:1]:
        raise ModelError(f"rois are {dims(rois.shape)} and batch_indices {dims(batch_indices.shape)}; one each")
    if batch_indices.data is not None and batch_indices.data.size:
        low, high = int(batch_indices.data.min()), int(batch_indices.data.max())
        if low < 0 or high >= x.shape[0]:
            raise ModelError(f"batch index {low if low < 0 else high} is outside the {x.shape[0]} images of x")
    attributes = {
        "coordinate_transformation_mode": coordinate_transformation_mode,
        "mode": mode,
        "output_height": output_height,
        "output_width": output_width,
        "sampling_ratio": sampling_ratio,
        "spatial_scale": spatial_scale,
    }
    shape = (rois.shape[0], x.shape[1], output_height, output_width)
    return Meaning("RoiAlign", (x, rois, batch_indices), shape, attributes)


@operator
def max_roi_pool(x: Value, rois: Value, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> Meaning:
    """ONNX MaxRoiPool: the maximum of each bin of the regions (image, x1, y1, x2, y2), 0 of a bin outside the image.

    Corners are rounded to pixels, halves away from 0, and both belong to the region; its bins may share pixels.
    """
    _checked(x, rois, 5, pooled_shape)
    shape = (rois.shape[0], x.shape[1], *pooled_shape)
    attributes = {"pooled_shape": tuple(pooled_shape), "spatial_scale": spatial_scale}
    return Meaning("MaxRoiPool", (x, rois), shape, attributes)
