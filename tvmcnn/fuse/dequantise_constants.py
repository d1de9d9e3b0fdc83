"""Constants behind a DequantizeLinear that float32 kernels read, as float32."""

from __future__ import annotations

import dataclasses

import numpy as np

from tvmcnn.network import Array, Network, Node, Tensor


def dequantise_constants(network: Network) -> Network:
    """The network with constants dequantised, and products with such as if the file had them in float32.

    f = DequantizeLinear(constant); y = MatMul(x, f)    -->    y = Gemm(x, constant in float32)
    """
    constants, tensors, folded = dict(network.constants), dict(network.tensors), dict(network.folded)
    nodes = []
    kept = {tensor.name for tensor in network.outputs}
    for node in network.nodes:
        if node.op == "DequantizeLinear" and node.inputs[0] in constants and node.output not in kept:
            array, scale, zero = (constants[name] for name in node.inputs)
            wide = array.astype(np.float64) - zero.astype(np.float64)
            constants[node.output] = np.broadcast_to(wide * scale, tensors[node.output].shape).astype(np.float32)
            del tensors[node.output]
            folded[node.output] = "constant: computed at compile time"
        else:
            nodes.append(_as_gemm(node, constants, tensors))
    read = {name for node in nodes for name in node.inputs}
    return dataclasses.replace(
        network,
        nodes=tuple(nodes),
        tensors=tensors,
        folded=folded,
        constants={name: array for name, array in constants.items() if name in read},
    )


def _as_gemm(node: Node, constants: dict[str, Array], tensors: dict[str, Tensor]) -> Node:
    """A product with a constant matrix as import writes it: (K, N), and no attributes."""
    given = node.attributes
    if node.op not in ("MatMul", "Gemm") or (node.op == "Gemm" and not given) or node.inputs[0] in constants:
        return node
    b = constants.get(node.inputs[1])
    if b is None or b.dtype != np.float32 or b.ndim != 2 or not b.shape[0]:
        return node
    if node.op == "MatMul":
        return dataclasses.replace(node, op="Gemm")
    columns = tensors[node.output].shape[-1]
    bias = [constants.get(name) for name in node.inputs[2:]]
    plain = given["alpha"] == given["beta"] == 1.0 and not given["transA"]
    if not plain or not all(c is not None and (c.size == 1 or c.shape in ((columns,), (1, columns))) for c in bias):
        return node
    names = [node.inputs[0], f"{node.output}.weight", *(f"{node.output}.bias" for _ in bias)]
    while any(name in constants or name in tensors for name in names[1:]):
        names[1:] = [f"{name}'" for name in names[1:]]
    constants[names[1]] = np.ascontiguousarray(b.T) if given["transB"] else b
    constants |= {
        name: np.broadcast_to(c.reshape(-1), (columns,)).copy()
        for name, c in zip(names[2:], bias, strict=True)
        if c is not None
    }
    return Node("Gemm", node.name, tuple(names), node.output)
