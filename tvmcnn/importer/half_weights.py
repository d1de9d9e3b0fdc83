"""Weights rounded to a half type, before anything is made of them: ONNX's own tensors, each once.

    y = Conv(x, w), w float32 0.1 …    -->    y = Conv(x, w), w float32 0.0999756 …

A weight is a constant that is the second operand of products and of nothing else, a tensor of the user's own file, so
that it can be announced by its name. What is constant under other names, inside of functions and loops, is not rounded;
nor is what something else is computed from, even if that is constant too: w in Conv(x, w·s) stays, w·s is a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx

from tvmcnn.errors import ModelError
from tvmcnn.half_weights import LARGEST, LEAST, PRODUCTS, WORDS, HalfWeights, errors, rounded
from tvmcnn.network import Array
from tvmcnn.onnx_file.repair import inner_graphs


def round_weights(
    graph: onnx.GraphProto, constants: Mapping[str, Array], kind: str, known: Set[str], label: str
) -> tuple[dict[str, Array], HalfWeights]:
    """The constants of a graph with the weights of its products rounded, and what became of these.

    `known` has the names of the user's file that were `weights` before anything was folded. Raises ModelError for a
    weight that the type has no room for.
    """
    made, tensors = dict(constants), dict[str, tuple[int, float, float]]()
    for name in sorted(weights(graph) & known) if kind != "fp32" else ():
        array = constants.get(name)
        if array is None or array.dtype != np.float32 or array.size < LEAST:
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


def weights(graph: onnx.GraphProto) -> set[str]:
    """The tensors that are the weight of every node that reads them, perhaps through an Identity, and no output."""
    others = {output.name for output in graph.output}
    others |= {name for inner in inner_graphs(graph.node) for node in inner.node for name in node.input}
    found: set[str] = set()
    for node in reversed(graph.node):  # those that read a tensor before the one that makes it
        for place, name in enumerate(node.input):
            weight = place == 1 and node.op_type in PRODUCTS
            weight |= node.op_type == "Identity" and node.output[0] in found - others
            (found if weight and not node.domain else others).add(name)
    return found - others
