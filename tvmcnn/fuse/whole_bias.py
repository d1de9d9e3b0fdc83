"""What is added to sums of integers, and what they are multiplied by, as integers of their scale and one factor.

y = QuantizeLinear(BatchNormalization(Conv(DequantizeLinear(x), DequantizeLinear(w), b), s, t))
  -->
y = QLinearConv(x, w, scale of x · scale of w · s / scale of y, the integer nearest b and t in steps of the sums)

A bias of int32 of the scale of the sums is taken as it is; any other is rounded, which moves y by half a factor at
most. docs/quantised.md has the contract.
"""

from __future__ import annotations

import numpy as np

from tvmcnn.fuse.dequantised import LIMIT, Finder, Integers, NoForm, Norm
from tvmcnn.network import Array, Node

NEAR = 1e-5  # of the scale of a bias to the product of those of its operands, as onnxruntime has it
LARGEST_FACTOR = 0.25  # of sums whose bias is rounded: y moves by an eighth of a step at most


def norm_of(finder: Finder, node: Node) -> Norm | None:
    """The numbers of a BatchNormalization; None where they come at run time."""
    found = [finder.network.constants.get(name) for name in node.inputs[1:]]
    scale, shift = (*found, None, None)[:2]
    if len(found) != 2 or scale is None or shift is None:
        return None
    return Norm(scale.astype(np.float32).reshape(-1), shift.astype(np.float32).reshape(-1))


def factor_and_bias(
    finder: Finder, node: Node, scale: Array, maps: int, to: Integers, norm: Norm | None
) -> tuple[Array, Array | None]:
    """What sums of a scale (float32) are multiplied by (float32), and the integers that are added to them before.

    Raises NoForm where there are none.
    """
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    with np.errstate(all="ignore"):  # what is not finite is refused
        factor = (scale if norm is None else scale * norm.scale) / to.step
        given = _of_scale(finder, name, scale, maps) if name else None
        if norm is None and (given is not None or not name):
            return factor, given
        steps = np.zeros(maps) if given is None else given.astype(np.float64)
        if name and given is None:
            steps = _reals(finder, name, maps) / scale.astype(np.float64)
        if norm is not None:
            steps = steps + norm.shift.astype(np.float64) / (scale.astype(np.float64) * norm.scale.astype(np.float64))
        bias = np.rint(steps)
        if not (np.abs(bias) < LIMIT).all():
            raise NoForm(f"what is added to its sums ('{name or node.output}') is not within int32 in their scale")
        if not (np.abs(factor) <= LARGEST_FACTOR).all():
            raise NoForm(
                f"a step of its sums is {np.abs(factor).max():.3g} of one of its result, too large a one to round what"
                f" is added to them; {LARGEST_FACTOR:g} is allowed"
            )
    return factor, np.broadcast_to(bias, (maps,)).astype(np.int32)


def _of_scale(finder: Finder, name: str, scale: Array, maps: int) -> Array | None:
    """A bias of int32 whose scale is that of the sums; None for any other."""
    found = finder.integers(name)
    array = finder.array(found)
    if found is None or array is None or found.dtype != "int32" or found.zero.any():
        return None
    own = found.scale.reshape(-1)
    if not _is_per_map(array, maps) or own.size not in (1, maps) or (np.abs(own - scale) > NEAR * scale).any():
        return None
    return np.broadcast_to(array.reshape(-1), (maps,))


def _reals(finder: Finder, name: str, maps: int) -> Array:
    """A constant bias in float64, which is exactly what float32 holds."""
    array, found = finder.network.constants.get(name), finder.integers(name)
    if (integers := finder.array(found)) is not None and found is not None:
        wide = (integers.astype(np.float64) - found.zero) * found.scale.astype(np.float64)
        array = wide.astype(np.float32)
    if array is None or array.dtype != np.float32:
        raise NoForm(f"its bias '{name}' is not constant")
    if not _is_per_map(array, maps):
        raise NoForm(f"its bias '{name}' is not one value an output channel")
    return np.broadcast_to(array.reshape(-1), (maps,)).astype(np.float64)


def _is_per_map(array: Array, maps: int) -> bool:
    return array.size in (1, maps) and array.shape[-1:] in ((), (1,), (maps,))
