"""Renamed: tensors of the ONNX file that the library has under another name.

    t3 = Conv(x); t4 = MaxPool(t3); out = Identity(t3)    -->    out = Conv(x); t4 = MaxPool(out)

Import leaves out what copies, and the copy's name wins where it is an output. The oracle computes t4 from t3, which the
network does not know: without this, no rounding error and no decision of the library's would reach t4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tvmcnn.network import Array, Network

if TYPE_CHECKING:
    from tvmcnn.check.bounds import Follow


def renamed(network: Network, values: Mapping[str, Array]) -> dict[str, str]:
    """The network's names of tensors that it does not know by the oracle's, given the oracle's values of all.

    A tensor is taken for the first of the same values to the bit, which others copy or reshape. A Cast to the type
    that a tensor has already is such a copy, at which the oracle rounds.
    """
    known = [*(tensor.name for tensor in network.inputs), *network.makers]  # in the order that the network computes
    shown = [name for name in known if name in values]
    found = {}
    for name in values.keys() - set(known) - network.constants.keys():
        same = (k for k in shown if _equal(values[name], values[k], network.tensors[k].dtype))
        if (other := next(same, None)) is not None:
            found[name] = other
    return found


def under_known_names(follow: Follow, names: Mapping[str, str]) -> Follow:
    """`follow` for one evaluation of the oracle, each tensor shown once, by the name that the network has for it."""
    shown: dict[str, Array] = {}

    def once(name: str, value: Array) -> Array:
        known = names.get(name, name)
        if known not in shown:
            shown[known] = follow(known, value)
        return shown[known]

    return once


def _equal(one: Array, other: Array, dtype: str) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    with np.errstate(over="ignore"):
        return np.array_equal(one.astype(dtype), other.astype(dtype), equal_nan=True)
