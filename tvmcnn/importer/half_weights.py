"""Weights rounded to a half type, before anything is made of them: ONNX's own tensors, each once.

    y = Conv(x, w), w float32 0.1 …    -->    y = Conv(x, w), w float32 0.0999756 …

A weight is a constant that is the second operand of products and of nothing else, a tensor of the user's own file, so
that it can be announced by its name. Of what is a constant by other names, such as those inside of functions and loops,
none is rounded; nor is what integers were dequantised to, which are smaller already.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx

from tvmcnn.errors import ModelError
from tvmcnn.half_weights import LARGEST, LEAST, PRODUCTS, WORDS, HalfWeights, errors, rounded
from tvmcnn.network import Array


def round_weights(
    graph: onnx.GraphProto, constants: Mapping[str, Array], kind: str, known: Collection[str], label: str
) -> tuple[dict[str, Array], HalfWeights]:
    """The constants of a graph with the weights of its products rounded, and what became of these.

    `known` has the names of the user's file. Raises ModelError for a weight that the type has no room for.
    """
    made, tensors = dict(constants), dict[str, tuple[int, float, float]]()
    for name in _weights(graph) if kind != "fp32" else ():
        array = constants.get(name)
        if array is None or name not in known or array.dtype != np.float32 or array.size < LEAST:
            continue
        size = float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))
        if size > LARGEST[kind]:
            raise ModelError(
                f"{label}: weight '{name}' has an element of size {size:.6g}; {WORDS[kind]} has room for"
                f" {LARGEST[kind]:.6g}: leave out --weights {kind}{', or choose bf16' * (kind == 'fp16')}"
            )
        made[name] = rounded(array, kind)
        tensors[name] = (array.size, *errors(array, kind))
    return made, HalfWeights(kind, tensors)


def _weights(graph: onnx.GraphProto) -> Iterator[str]:
    """The operands that are the weight of every node that reads them, and no output."""
    weights: dict[str, None] = {}
    others = {output.name for output in graph.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if place == 1 and node.op_type in PRODUCTS and not node.domain:
                weights[name] = None
            else:
                others.add(name)
        for attribute in node.attribute:
            inner = [attribute.g, *attribute.graphs]
            others |= {name for each in inner for node in each.node for name in node.input}
    yield from (name for name in weights if name and name not in others)
