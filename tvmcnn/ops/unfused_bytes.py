"""Open variants of convolutions of bytes: the sums that a fused kernel rounds in its registers, in plain layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import te
from tvm.ir import Expr

from tvmcnn.blocks import BLOCK
from tvmcnn.configs import DotsConfig
from tvmcnn.network import Channel, Node, Pixel, Shape, Step
from tvmcnn.ops import amx, dots
from tvmcnn.ops.integers import rounded
from tvmcnn.ops.operands import Operands

TAPS: Mapping[str, Callable[..., Expr]] = {"dots": dots.filter_tap, "amx_int8": amx.filter_tap}  # by algorithm


def unfused_sums(step: Step, node: Node, shape: Shape, given: Operands, made: Mapping[str, te.Tensor]) -> te.Tensor:
    """What the convolution makes, in plain layout, of the same image and constants."""
    choice, layout = step.choice, step.choice.reads[0]
    weight, x, filter_tap = given.constants[node.inputs[1]], given.inputs[node.inputs[0]], TAPS[choice.algorithm]
    shift = choice.config.shift if isinstance(choice.config, DotsConfig) else 0
    depth = choice.kernel.inputs[0].shape[1] // node["group"]
    (sh, sw), (dh, dw), (top, left) = node["strides"], node["dilations"], node["pads"][:2]
    rc = te.reduce_axis((0, depth), "rc")
    rh, rw = (te.reduce_axis((0, size), name) for size, name in zip(node["kernel_shape"], ("rh", "rw"), strict=True))

    def tap(n: Any, o: Any, y: Any, z: Any) -> Expr:
        channel = Channel(o // (shape[1] // node["group"]) * depth + rc, 0, 1)
        pixel = Pixel(n, channel, y * sh + rh * dh - top, z * sw + rw * dw - left)  # perhaps in the halo
        value = x[layout.index(pixel)].astype("int32") + shift
        return te.sum(value * filter_tap(step, weight, o, rc, rh, rw).astype("int32"), axis=[rc, rh, rw])

    total = te.compute(shape, tap, name="qlinearconv_sum")

    def element(*i: Any) -> Expr:
        return rounded(dots.scaled(given, total[i], i[1] // BLOCK, i[1] % BLOCK), node).astype(made_type)

    made_type = choice.kernel.hidden[0].dtype
    return te.compute(shape, element, name="qlinearconv")
