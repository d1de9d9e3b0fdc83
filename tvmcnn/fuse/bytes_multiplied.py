"""Bytes multiplied: which products of matrices of integers of 8 bits have kernels that multiply them as they are."""

from __future__ import annotations

import numpy as np

from tvmcnn.fuse.bytes_convolved import LIMIT, SHIFTED
from tvmcnn.network import BYTES, Network, Node

TERMS = 4  # products that one instruction adds, at most: a row that is shorter holds no whole group of them


def multiplies_rows(network: Network, node: Node) -> bool:
    """True for the product of rows by a constant matrix, none of whose sums can leave int32, however they are taken
    apart.
    """
    if node.op != "QLinearMatMul" or node["other"] != 0:
        return False
    rows, weight = network.tensors.get(node.inputs[0]), network.constants.get(node.inputs[1])
    if rows is None or weight is None or rows.dtype not in BYTES or weight.ndim != 2 or not rows.shape:
        return False
    if weight.dtype not in ("int8", "int16") or weight.shape[0] < TERMS or not network.tensors[node.output].size:
        return False
    bias = network.constants[node.inputs[3]] if len(node.inputs) > 3 else np.zeros(1)
    sums = np.abs(weight.astype(np.int64)).sum(axis=0) * 2 * SHIFTED + np.abs(bias.astype(np.int64))
    return bool(sums.max(initial=0) < LIMIT)
