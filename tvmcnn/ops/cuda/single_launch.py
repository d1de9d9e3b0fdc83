"""A chain of kernels as one expression, for GPUs: what one makes is a stage that the next reads, inside a block.

k0_conv, k1_conv, k2_gemm    -->    one kernel: out = gemm(conv(conv(x)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import te

from tvmcnn.configs import WholeConfig
from tvmcnn.network import PLAIN, Choice, Shape, Step
from tvmcnn.ops.operands import Operands, extents, unravel

Expression = Callable[[Step, Operands], te.Tensor]


def whole(expressions: Mapping[str, Expression], step: Step, given: Operands) -> te.Tensor:
    """The parts of the step's config, each by its expression in `expressions`. The last stage of each is an "out"."""
    made: dict[str, te.Tensor] = dict(given.inputs)
    for part in step.choice.numbers(WholeConfig).parts:
        packed = {name: step.packed[name] for name in part.kernel.constants}
        made[part.kernel.output.name] = expressions[part.algorithm](
            Step(part, packed, ()), _operands(part, made, given)
        )
    return made[step.choice.kernel.output.name]


def _operands(part: Choice, made: Mapping[str, te.Tensor], given: Operands) -> Operands:
    """What a part reads: stages of others, and constants of the whole."""
    kernel = part.kernel
    pairs = list(zip(kernel.inputs, part.sources, strict=True))
    inputs = {tensor.name: _seen(made[source.name], source.shape) for tensor, source in pairs}
    layouts, shapes = {t.name: PLAIN for t, _ in pairs}, {t.name: source.shape for t, source in pairs}
    return Operands(inputs, layouts, shapes, {name: given.constants[name] for name in kernel.constants}, kernel.scalars)


def _seen(stage: te.Tensor, shape: Shape) -> te.Tensor:
    """A stage under another shape, images first in both."""
    stored = extents(stage)
    if stored == shape:
        return stage

    def element(n: Any, *indices: Any) -> Any:
        flat = indices[0]
        for index, extent in zip(indices[1:], shape[2:], strict=True):
            flat = flat * extent + index
        return stage[(n, *unravel(flat, stored[1:]))]

    return te.compute(shape, element, name="seen")
