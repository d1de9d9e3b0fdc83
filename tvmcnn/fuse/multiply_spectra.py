"""Fourier transforms become products with a constant matrix, which import has made."""

from __future__ import annotations

import math

from tvmcnn.fuse.added import Additions, replaced
from tvmcnn.network import Network, Node


def multiply_spectra(network: Network) -> Network:
    """The network with each DFT and STFT as one product, of a length of some hundreds faster than a fast transform.

    y (…, K, 2) = DFT(x (…, n, c), m (n·c, K·2))  -->  y = Gemm(x as (…, n·c), m)
    y (N, F, K, 2) = STFT(x (N, n, c), m (l·c, K·2))  -->  y = Gemm(Frames(x) as (N·F, l·c), m)

    Another axis than the last before the parts of a number changes places with that, and back.
    """
    return replaced(network, ("DFT", "STFT"), lambda added, node: (_dft if node.op == "DFT" else _stft)(added, node))


def _dft(added: Additions, node: Node) -> list[Node]:
    x, matrix = node.inputs
    output, shape, axis = added.tensors[node.output], added.shape(x), node["axis"]
    nodes: list[Node] = []
    last, dtype = len(shape) - 2, output.dtype
    perm = list(range(len(shape)))
    perm[axis], perm[last] = last, axis

    def turned(source: str, target: str) -> Node:
        return Node("Transpose", node.name, (source,), target, {"perm": tuple(perm)})

    made = [output.shape[place] for place in perm]
    if axis != last:
        before = added.tensor(f"{output.name}.turned", [shape[place] for place in perm], dtype)
        nodes.append(turned(x, before))
        x, shape = before, added.shape(before)
    rows = math.prod(shape[:-2])
    target = output.name if axis == last else added.tensor(f"{output.name}.spectrum", made, dtype)
    nodes += _product(added, node, x, matrix, rows, target)
    return nodes if axis == last else [*nodes, turned(target, output.name)]


def _stft(added: Additions, node: Node) -> list[Node]:
    x, matrix, *window = node.inputs
    output = added.tensors[node.output]
    batch, frames = output.shape[:2]
    parts, length = added.shape(x)[2], node["frame_length"]
    name = added.tensor(f"{output.name}.frames", (batch, frames, length, parts), output.dtype)
    nodes = [Node("Frames", node.name, (x,), name, {"step": node["frame_step"]})]
    if window:
        column = added.tensor(f"{output.name}.window", (length, 1), output.dtype)
        weighed = added.tensor(f"{output.name}.weighed", (batch, frames, length, parts), output.dtype)
        nodes += [
            Node("Reshape", node.name, tuple(window), column),
            Node("Mul", node.name, (name, column), weighed),
        ]
        name = weighed
    return [*nodes, *_product(added, node, name, matrix, batch * frames, output.name)]


def _product(added: Additions, node: Node, x: str, matrix: str, rows: int, target: str) -> list[Node]:
    """The rows of x times the matrix, as the tensor `target`."""
    dtype, (terms, columns) = added.tensors[target].dtype, added.shape(matrix)
    flat = added.tensor(f"{node.output}.rows", (rows, terms), dtype)
    product = added.tensor(f"{node.output}.product", (rows, columns), dtype)
    return [
        Node("Reshape", node.name, (x,), flat),
        Node("Gemm", node.name, (flat, matrix), product),
        Node("Reshape", node.name, (product,), target),
    ]
