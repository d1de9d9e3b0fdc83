"""Factors: which nodes of the ONNX file a library computes with rounded factors, as its manifest says."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.check.bounds import PRODUCTS
from tvmcnn.check.reference import multiplying_nodes
from tvmcnn.check.reference.narrow import Narrow, bfloat16, rounded_weight
from tvmcnn.network import Array, Network, Node
from tvmcnn.onnx_file import Model, allowed_folder
from tvmcnn.precision import error_growth

# Between a convolution and what ONNX knows of it
MOVES = ("Concat", "DepthToSpace", "Reshape", "Transpose", "Slice", "Frames")


@dataclass(frozen=True)
class Product:
    """A product whose factors are rounded: its weight, as import has made it, and the name of its image. One that
    is made in its own kernel is not stored, and may be another in the open variant that shows it."""

    weight: Array | None
    image: str
    stored: bool


@dataclass(frozen=True)
class Factors:
    """What a check must know of a library's products.

    `rounded` has those that the oracle computes with rounded factors, by the ONNX file's name of what they make.
    `stored` has the tensors that the library stores in bfloat16, by the file's names.
    `growths` has how much larger a rounding error is in the output of other nodes: by Winograd, on tensor cores, and
    of factors that the oracle has no node for.
    """

    rounded: Mapping[str, Product] = field(default_factory=dict)
    growths: Mapping[str, float] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()

    def images(self, shown: Collection[str]) -> frozenset[str]:
        """The first factors among `shown`. An error that reaches the middle of two neighbours makes one of these
        another: that is the library's decision, which the oracle follows."""
        return frozenset(product.image for product in self.rounded.values()) & {*shown}


@dataclass(frozen=True)
class Rounding:
    """Factors as the oracle rounds them. In disturbed runs the stored images that it follows the library in are those
    of the run before them: what their errors do by rounding is decided, and nothing else comes of such an error."""

    factors: Factors
    followed: Collection[str]  # images, the network's own inputs among them
    kept: dict[str, Array] = field(default_factory=dict)

    def narrow(self) -> Narrow:
        """For the oracle."""
        return {made: functools.partial(self._rounded, made, product) for made, product in self.factors.rounded.items()}

    def _rounded(self, made: str, product: Product, x: Array, weight: Array) -> tuple[Array, Array]:
        if not product.stored or product.image not in self.followed:
            return bfloat16(x), rounded_weight(weight, product.weight)
        if made not in self.kept:
            self.kept[made] = bfloat16(x).astype(np.float32)  # which holds them exactly
        return self.kept[made].astype(np.float64), rounded_weight(weight, product.weight)


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
    hidden = {tensor["name"] for kernel in manifest["kernels"] for tensor in kernel["hidden"]}
    found = {made: _product(network, shown[name], hidden) for made, name in known.items()}
    told = {shown[name].output for name in known.values()}
    loose = {name: error_growth(narrow[node.name]) for name, node in rounded.items() if name not in told}
    stored = [kernel["stores"] for kernel in manifest["kernels"] if kernel["output"]["narrow"]]
    return Factors(found, by_output | loose, frozenset(each["name"] for each in itertools.chain(*stored)))


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


def _product(network: Network, node: Node, hidden: Collection[str]) -> Product:
    array, image = network.constants.get(node.inputs[1]), network.known_name(node.inputs[0])
    return Product(None if array is None else array.astype(np.float32), image, stored=image not in hidden)
