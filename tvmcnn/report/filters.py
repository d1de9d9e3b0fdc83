"""Filters, as the compiled code has them: its answer to one pixel.

A convolution is linear, so that of an image with a single 1 its output is the filter, turned around, and the bias. No
packing needs to be known, and what is shown is what runs: direct, Winograd's or any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tvmcnn.network import Array
from tvmcnn.run.runner import Runner, _Frame

MAX_RUNS = 512  # runs of a kernel for one picture


def filters(net: Runner, index: int) -> Array | None:
    """The filters (M, C/g, kH, kW) of kernel `index`.

    None for one that is no convolution of images, has a prologue, reads a reshaped tensor, hides what was not compiled
    in, or would take more than MAX_RUNS runs.
    """
    kernel = net.manifest["kernels"][index]
    attributes = kernel["attributes"]
    if kernel["ops"][0] != "Conv" or len(attributes.get("kernel_shape", ())) != 2 or not _shows(net, kernel):
        return None
    source = _source(net, kernel["reads"][0])
    if not _fits(attributes, source["shape"], _shape(kernel)):
        return None
    rows, columns = (_cover(kernel["attributes"], axis, source["shape"], _shape(kernel)) for axis in (0, 1))
    maps, depth = _shape(kernel)[1], source["shape"][1] // kernel["attributes"]["group"]
    if not rows or not columns or depth * len(rows) * len(columns) > MAX_RUNS:
        return None
    found = np.zeros((maps, depth, *kernel["attributes"]["kernel_shape"]), np.float32)
    at_rest = _answer(net, index, source, np.zeros(source["shape"], np.float32))
    for channel in range(depth):
        for row, row_taps in rows:
            for column, column_taps in columns:
                image = np.zeros(source["shape"], np.float32)
                image[0, channel::depth, row, column] = 1  # of every group: its maps read no other
                answer = _answer(net, index, source, image) - at_rest
                for u, i in row_taps:
                    for v, j in column_taps:
                        found[:, channel, u, v] = answer[:, i, j]
    return found


def _fits(attributes: Mapping[str, Any], image: tuple[int, ...], output: tuple[int, ...]) -> bool:
    """Whether the stored tensor has the image's own shape: one that was reshaped in place is stored under another."""
    if len(image) != 4 or len(output) != 4 or image[0] != output[0] or image[1] % attributes["group"]:
        return False
    for axis in (0, 1):
        pads = attributes["pads"][axis] + attributes["pads"][axis + 2]
        reach = attributes["dilations"][axis] * (attributes["kernel_shape"][axis] - 1) + 1
        if (image[2 + axis] + pads - reach) // attributes["strides"][axis] + 1 != output[2 + axis]:
            return False
    return True


def _shows(net: Runner, kernel: Mapping[str, Any]) -> bool:
    return bool(net.manifest["activations"] or not kernel["hidden"])


def _shape(kernel: Mapping[str, Any]) -> tuple[int, ...]:
    """Shape of the convolution's own output, before an epilogue's pool."""
    tensor = kernel["hidden"][0] if kernel["hidden"] else kernel["output"]
    return tuple(tensor["shape"])


def _source(net: Runner, name: str) -> Mapping[str, Any]:
    """Where the convolution finds its image: as an input of the network, or as a kernel left it."""
    for place, entry in enumerate(net.manifest["inputs"]):
        if entry["name"] == name:
            return {"space": "input", "index": place, "shape": tuple(entry["shape"])}
    outputs = (kernel["output"] for kernel in net.manifest["kernels"])
    found = next(output for output in outputs if output["name"] == name)
    if 0 < found["pitch"] * found["block"] < found["shape"][1]:
        return {**found, "shape": ()}  # images that share memory, as those of unfolded frames: none can be put there
    return {**found, "shape": tuple(found["shape"])}


def _cover(
    attributes: Mapping[str, Any], axis: int, image: tuple[int, ...], output: tuple[int, ...]
) -> list[tuple[int, list[tuple[int, int]]]]:
    """Pixels of one axis whose answers show all taps: each with its (tap, place in the output) pairs.

    The answer to a 1 at `a` has tap u at (a + pad - u * dilation) / stride. Empty if a tap never meets the image.
    """
    size, stride = attributes["kernel_shape"][axis], attributes["strides"][axis]
    dilation, pad = attributes["dilations"][axis], attributes["pads"][axis]
    found, left = [], set(range(size))
    pixels = sorted(range(image[2 + axis]), key=lambda a: abs(a - image[2 + axis] // 2))
    while left:
        seen = {
            a: [(u, i) for u in left if (i := _place(a + pad - u * dilation, stride, output[2 + axis])) >= 0]
            for a in pixels
        }
        best = max(pixels, key=lambda a: len(seen[a]))
        if not seen[best]:
            return []
        found.append((best, seen[best]))
        left -= {u for u, _ in seen[best]}
    return found


def _place(offset: int, stride: int, extent: int) -> int:
    place, rest = divmod(offset, stride)
    return place if rest == 0 and 0 <= place < extent else -1


def _answer(net: Runner, index: int, source: Mapping[str, Any], image: Array) -> Array:
    """What the convolution makes of an image, (M, H, W), before its epilogue."""
    kernel = net.manifest["kernels"][index]
    arrays = [np.zeros(info.shape, info.dtype) for info in net.inputs]
    if source["space"] == "input":
        arrays[source["index"]] = image
    with _Frame(net, arrays, net._allocate()) as frame:
        if source["space"] != "input":
            frame.write(source, image)
        if kernel["hidden"]:
            made = frame.hidden(index, kernel["hidden"])[kernel["hidden"][0]["name"]]
        else:
            frame.step(index)
            made = frame.read(kernel["output"], kernel["output"])
        return np.array(made[0])
