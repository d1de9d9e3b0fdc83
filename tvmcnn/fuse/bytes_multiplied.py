"""Bytes multiplied: which products of matrices of integers of 8 bits have kernels that multiply them as they are."""

from __future__ import annotations

from tvmcnn.fuse.bytes_convolved import largest_sums
from tvmcnn.fuse.dequantised import LIMIT, less_zeros
from tvmcnn.network import BYTES, Array, Network, Node

TERMS = 4  # products that one instruction adds, at most: a row that is shorter holds no whole group of them


def multiplies_rows(network: Network, node: Node) -> bool:
    """True for the product of rows by a constant matrix, none of whose sums can leave int32, however they are taken
    apart.
    """
    if node.op not in ("QLinearMatMul", "MatMulInteger"):
        return False
    rows, weight = network.tensors.get(node.inputs[0]), matrix_less_zero(network, node)
    if rows is None or weight is None or rows.dtype not in BYTES or weight.ndim != 2 or not rows.shape:
        return False
    if weight.shape[0] < TERMS or not network.tensors[node.output].size:
        return False
    has_bias = node.op == "QLinearMatMul" and len(node.inputs) > 3
    bias = network.constants[node.inputs[3]] if has_bias else None
    return bool(largest_sums(weight, (0,), bias).max(initial=0) < LIMIT)


def matrix_less_zero(network: Network, node: Node) -> Array | None:
    """The constant matrix of a product less its zero points, int8 where they fit, else int16; None for one that
    arrives.
    """
    weight = network.constants.get(node.inputs[1])
    if node.op == "QLinearMatMul":  # of which fuse/integers.py has taken constant ones
        return weight if node["other"] == 0 else None
    zero = network.constants.get(node.inputs[3])
    if weight is None or zero is None:
        return None
    return less_zeros(weight, zero.reshape(zero.shape if zero.size > 1 else ()))
