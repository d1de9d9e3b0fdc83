"""Factors: which nodes of the ONNX file a library computes with rounded factors, as its manifest says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.check.reference import multiplying_nodes
from tvmcnn.network import Array, Network, Node
from tvmcnn.onnx_file import Model, allowed_folder
from tvmcnn.precision import error_growth

PRODUCTS = ("Conv", "Gemm", "MatMul")
MOVES = ("DepthToSpace", "Reshape", "Transpose", "Slice", "Frames")  # between a convolution and what ONNX knows of it


@dataclass(frozen=True)
class Factors:
    """What a check must know of a library's products.

    `narrow` has those that the oracle computes with rounded factors, by the ONNX file's name of what they make, and the
    weights that are rounded (see reference/narrow.py). `images` are their first factors, by the names that ONNX has for
    them: which of two neighbours one is rounded to is the library's decision where its own error reaches the middle.
    `growths` has how much larger a rounding error is in the output of other nodes: by Winograd, on tensor cores, and
    of factors that the oracle has no node for.
    """

    narrow: Mapping[str, Array | None] = field(default_factory=dict)
    images: frozenset[str] = frozenset()
    growths: Mapping[str, float] = field(default_factory=dict)


def factors_of(manifest: Mapping[str, Any], network: Network, model: Model) -> Factors:
    """The factors of a library, by its manifest."""
    growths: dict[str, float] = {}
    narrow: dict[str, str] = {}  # nodes of kernels that round, and to what
    for kernel in manifest["kernels"]:
        algorithm = ALGORITHMS[kernel["algorithm"]]
        growth = algorithm.growth(kernel["config"])
        growths |= {name.removesuffix("@parts"): growth for name in kernel["nodes"] if growth > 1}
        narrow |= dict.fromkeys(kernel["nodes"], algorithm.rounds) if algorithm.rounds else {}
    products = [node for node in network.nodes if node.op in PRODUCTS]
    by_output = {node.output: growths[node.name] for node in products if node.name in growths}
    rounded = {node.output: node for node in products if node.name in narrow}
    if not rounded:
        return Factors(growths=by_output)
    shown = {name: node for node in rounded.values() for name in _known(network, node)}
    known = multiplying_nodes(model, [*shown], external_data=allowed_folder(model))
    weights = {made: _weight(network, shown[name]) for made, name in known.items()}
    told = {shown[name].output for name in known.values()}
    loose = {name: error_growth(narrow[node.name]) for name, node in rounded.items() if name not in told}
    images = frozenset(network.known_name(node.inputs[0]) for node in rounded.values())
    return Factors(weights, images, by_output | loose)


def _known(network: Network, node: Node) -> Iterator[str]:
    """What ONNX may call the output of a convolution that import has made: its own name, or behind moves another's."""
    readers: dict[str, list[Node]] = {}
    for each in network.nodes:
        for name in each.inputs:
            readers.setdefault(name, []).append(each)
    yield network.known_name(node.output)
    following = readers.get(node.output, [])
    while len(following) == 1 and following[0].op in MOVES:
        yield network.known_name(following[0].output)
        following = readers.get(following[0].output, [])


def _weight(network: Network, node: Node) -> Array | None:
    """The weight of a convolution as import has made it, in float32."""
    array = network.constants.get(node.inputs[1])
    return None if array is None else array.astype(np.float32)
