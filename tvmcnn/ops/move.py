"""Operators that put elements elsewhere: parts, borders, repetitions, blocks of pixels.

The stage "out" need not have the output's shape, only its elements in order: where a factored shape saves a division,
it has that. Its annotation "run" counts the last axes that may be walked as one: along them neighbours of the output
are neighbours of the operand, or one and the same element. 0 means not even the last axis is such.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from tvmcnn.network import Channel, Node, Pixel, Step, Tensor
from tvmcnn.ops.operands import Operands, extents, float32, literal, output_pixel


def moved(shape: Sequence[int], element: Callable[..., Expr], run: int, **attrs: int) -> te.Tensor:
    """The stage "out" with its annotations."""
    return te.compute(tuple(shape), element, name="out", attrs={"run": run, **attrs})


def slice_(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX Slice, a part of Split, Gather of one index: y[i_0, …] = x[start_0 + step_0·i_0, …]."""
    starts, steps, sizes = node["starts"], node["steps"], node["sizes"]
    run = 0
    for size, step, extent in reversed(list(zip(sizes, steps, extents(x), strict=True))):
        if step != 1:
            break
        run += 1
        if size < extent:
            break

    def element(*indices: Any) -> Expr:
        return x[tuple(start + step * i for start, step, i in zip(starts, steps, indices, strict=True))]

    return moved(sizes, element, run)


def slice_blocks(step: Step, given: Operands) -> te.Tensor:
    """ONNX Slice of an image in NCHW16c, from the first channel of a block on."""
    choice = step.choice
    node, layout, name = choice.kernel.anchor, choice.makes, choice.kernel.anchor.inputs[0]
    (n0, c0, h0, w0), (sn, _, sh, sw) = node["starts"], node["steps"]

    def element(*indices: Any) -> Expr:
        n, channel, h, w = output_pixel(layout, *indices)
        channel = channel._replace(block=channel.block + c0 // layout.block)
        return given.read(name, Pixel(n0 + sn * n, channel, h0 + sh * h, w0 + sw * w))

    return te.compute(layout.physical(choice.kernel.output.shape), element, name="out")


def frames(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """The frames of ONNX STFT, which may overlap: y[n, f, t, part] = x[n, f·step + t, part]."""
    return moved(output.shape, lambda n, f, t, part: x[n, f * node["step"] + t, part], 2)


def unfold_frames(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """The frames that a window along them meets, as channels of one image: y[n·D' + d, k·C' + c, h, w] =
    x[n·D + d·s + k·dil − p, c, h, w], zeros outside the volume and in the channels from C to C'.
    """
    (_, made), taps = node["frames"], node["taps"]
    images, channels, height, width = output.shape
    given, rounded = int(x.shape[1]), channels // taps

    def element(n: Any, d: Any, k: Any, c: Any, h: Any, w: Any) -> Expr:
        frame, tests = unfolded_frame(node, n * made + d, k)
        tests += [c < given] if rounded > given else []
        value = x[frame, c, h, w]
        return tirx.if_then_else(tirx.all(*tests), value, literal(0, x.dtype)) if tests else value

    return moved((images // made, made, taps, rounded, height, width), element, 2)


def unfold_frames_blocks(step: Step, given: Operands) -> te.Tensor:
    """As "UnfoldFrames" of whole blocks of channels for each frame."""
    choice = step.choice
    node, layout = choice.kernel.anchor, choice.makes
    name, shape = node.inputs[0], choice.kernel.output.shape
    blocks = -(-shape[1] // node["taps"] // layout.block)  # of a frame

    def element(*indices: Any) -> Expr:
        to = output_pixel(layout, *indices)
        frame, tests = unfolded_frame(node, to.n, to.channel.block // blocks)
        channel = Channel(to.channel.block % blocks, to.channel.lane, layout.block)
        value = given.read(name, Pixel(frame, channel, to.h, to.w))
        return tirx.if_then_else(tirx.all(*tests), value, float32(0.0)) if tests else value

    return te.compute(layout.physical(shape), element, name="out")


def unfolded_frame(node: Node, image: Any, tap: Any) -> tuple[Any, list[Expr]]:
    """The frame of which an image of UnfoldFrames has tap `tap`, and the tests that the volume has it."""
    frames, made = node["frames"]
    place = image % made * node["stride"] + tap * node["dilation"] - node["begin"]
    last = (made - 1) * node["stride"] + (node["taps"] - 1) * node["dilation"] - node["begin"]
    tests = [*([place >= 0] if node["begin"] > 0 else []), *([place < frames] if last >= frames else [])]
    return image // made * frames + place, tests


# ---- borders --------------------------------------------------------------------------------------------------------


def pad(node: Node, output: Tensor, x: te.Tensor, *value: te.Tensor) -> te.Tensor:
    """ONNX Pad; a negative begin or end crops before the border is filled.

    constant: the value. edge: the nearest element. reflect: x[−i] = x[i], without repeating the edge. wrap: x[i mod n].
    """
    begins, mode = node["begins"], node["mode"]
    axes = [_Axis(*bounds) for bounds in zip(extents(x), begins, output.shape, strict=True)]
    run = 0
    for axis in reversed(axes):
        if axis.bordered:
            break
        run += 1
        if axis.size < axis.extent:
            break
    fill = value[0][(0,) * len(value[0].shape)] if value else literal(node["value"], x.dtype)
    if mode == "constant" and 0 in extents(x):
        return moved(output.shape, lambda *indices: fill, len(axes))

    def element(*indices: Any) -> Expr:
        if mode != "constant":
            return x[tuple(axis.source(i, mode) for axis, i in zip(axes, indices, strict=True))]
        inner = x[tuple(i - axis.begin for axis, i in zip(axes, indices, strict=True))]
        tests = [test for axis, i in zip(axes, indices, strict=True) for test in axis.tests(i)]
        return tirx.if_then_else(tirx.all(*tests), inner, fill) if tests else inner

    return moved(output.shape, element, run)


class _Axis:
    """One axis of a Pad: operand index = output index − begin, inside [low, high)."""

    def __init__(self, extent: int, begin: int, size: int) -> None:
        self.extent, self.begin, self.size = extent, begin, size
        end = size - begin - extent
        self.low, self.high = max(0, -begin), extent + min(0, end)
        self.before, self.after = max(0, begin), max(0, end)

    @property
    def bordered(self) -> bool:
        return self.before > 0 or self.after > 0

    def tests(self, index: Any) -> list[Expr]:
        """That output index `index` is no border."""
        before = [index >= self.before] if self.before else []
        return before + ([index < self.size - self.after] if self.after else [])

    def source(self, index: Any, mode: str) -> Any:
        """The operand index that output index `index` repeats."""
        place, count = index - self.before, self.high - self.low
        if not self.bordered:
            return place + self.low
        past, reach = count - 1, max(self.before, self.after)
        if mode == "edge" or count == 1:
            under, over = 0, past
        elif mode == "wrap":
            place = place if reach <= count else tirx.floormod(place, count)
            under, over = place + count, place - count
        else:
            place = place if reach < count else tirx.floormod(place, 2 * past)  # reflected more than once
            under, over = -place, 2 * past - place
        if self.after:
            place = tirx.if_then_else(place > past, over, place)
        if self.before:
            place = tirx.if_then_else(place < 0, under, place)
        return place + self.low


# ---- repetitions ----------------------------------------------------------------------------------------------------


def expand(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX Expand: NumPy's broadcast."""
    given = (1,) * (len(output.shape) - len(x.shape)) + extents(x)
    first = len(output.shape) - len(x.shape)
    return repeated(
        x,
        [
            (size, axis - first if extent == size else None)
            for axis, (extent, size) in enumerate(zip(given, output.shape, strict=True))
        ],
    )


def tile(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX Tile: y[r_0, i_0, r_1, i_1, …] = x[i_0, i_1, …], r_a < repeats[a]."""
    factors: list[tuple[int, int | None]] = []
    for axis, (count, extent) in enumerate(zip(node["repeats"], extents(x), strict=True)):
        factors += [(count, None), (extent, axis)]
    return repeated(x, factors)


def repeated(x: te.Tensor, factors: Sequence[tuple[int, int | None]]) -> te.Tensor:
    """The output's extents from the outside in, each with the axis of `x` that it walks, or None where it repeats."""
    wide = [(size, axis) for size, axis in factors if size != 1]
    run = next((i for i, f in enumerate(reversed(wide)) if (f[1] is None) != (wide[-1][1] is None)), len(wide))

    def element(*indices: Any) -> Expr:
        source = {axis: i for (_, axis), i in zip(wide, indices, strict=True)}
        return x[tuple(source.get(axis, 0) for axis in range(len(x.shape)))]

    return moved([size for size, _ in wide], element, run)


# ---- channels and pixels --------------------------------------------------------------------------------------------


def depth_to_space(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX DepthToSpace: y[n, c, h, i, w, j] = x[n, (i, j, c) or (c, i, j), h, w], by mode DCR or CRD.

    Rows and columns may have a blocksize each, and frames too; "begin" is the first of each in the result that is kept:
    see fuse/split_transposed.py.
    """
    n, c, height, width = output.shape
    whole = int(x.shape[1]) // math.prod(node["blocksize"])  # of a phase, some of which may be left out
    *_, b, d = node["blocksize"]
    *_, top, left = node.attributes.get("begin", (0, 0))
    if "frames" in node.attributes or top % b or left % d or height % b or width % d:  # all of mode DCR

        def pixel(n: Any, c_: Any, h: Any, w: Any) -> Expr:
            image, phase, h, w = _of_phase(node, n, h, w)
            return x[image, phase * whole + c_, h, w]

        return moved(output.shape, pixel, 0)

    def element(n: Any, c_: Any, h: Any, i: Any, w: Any, j: Any) -> Expr:
        return x[n, _channel(node, whole, c_, i, j), h + top // b, w + left // d]

    return moved((n, c, height // b, b, width // d, d), element, 0)


def depth_to_space_blocks(step: Step, given: Operands) -> te.Tensor:
    """DepthToSpace by mode DCR of whole blocks of channels: a pixel of one becomes a pixel of another."""
    choice = step.choice
    node, layout, shape = choice.kernel.anchor, choice.makes, choice.kernel.output.shape
    blocks = -(-shape[1] // layout.block)

    def element(*indices: Any) -> Expr:
        to = output_pixel(layout, *indices)
        frame, phase, h, w = _of_phase(node, to.n, to.h, to.w)
        channel = Channel(phase * blocks + to.channel.block, to.channel.lane, layout.block)
        return given.read(node.inputs[0], Pixel(frame, channel, h, w))

    return te.compute(layout.physical(shape), element, name="out")


def _of_phase(node: Node, n: Any, h: Any, w: Any) -> tuple[Any, Any, Any, Any]:
    """The image that DepthToSpace by mode DCR reads for a pixel of its output, the phase, and the pixel's place there.
    Of volumes images are frames, of which an input and an output have so many each."""
    *_, b, d = node["blocksize"]
    *_, top, left = node.attributes.get("begin", (0, 0))
    h, w, phase = h + top, w + left, 0
    if "frames" in node.attributes:
        (read, made), depth = node["frames"], node["blocksize"][0]
        frame = n % made + node["begin"][0]
        n, phase = n // made * read + frame // depth, frame % depth
    return n, (phase * b + h % b) * d + w % d, h // b, w // d


def space_to_depth(node: Node, output: Tensor, x: te.Tensor) -> te.Tensor:
    """ONNX SpaceToDepth: y[n, (i, j, c) or (c, i, j), h, w] = x[n, c, h·b + i, w·b + j], by mode DCR or CRD."""
    (b, d), (n, _, height, width) = node["blocksize"], output.shape
    c = int(x.shape[1])
    if node["mode"] == "DCR":
        shape = (n, b, d, c, height, width)
        return moved(shape, lambda n, i, j, c, h, w: x[n, c, h * b + i, w * d + j], 0)
    shape = (n, c, b, d, height, width)
    return moved(shape, lambda n, c, i, j, h, w: x[n, c, h * b + i, w * d + j], 0)


def _channel(node: Node, channels: int, c: Any, i: Any, j: Any) -> Any:
    """The channel of DepthToSpace's operand that holds pixel (i, j) of channel c."""
    b, d = node["blocksize"]
    return (i * d + j) * channels + c if node["mode"] == "DCR" else (c * b + i) * d + j


EXPRESSIONS: dict[str, Callable[..., te.Tensor]] = {
    "Slice": slice_,
    "Frames": frames,
    "UnfoldFrames": unfold_frames,
    "Pad": pad,
    "Expand": expand,
    "Tile": tile,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
