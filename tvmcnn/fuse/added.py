"""What a pass adds to a network: tensors and constants under names that it has not yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from tvmcnn.network import Array, Network, Node, Original, Shape, Tensor


class Additions:
    """The tensors and constants of a network, and those that a pass adds."""

    def __init__(self, network: Network) -> None:
        self.tensors, self.constants = dict(network.tensors), dict(network.constants)

    def shape(self, name: str) -> Shape:
        """The shape of a tensor or a constant."""
        constant = self.constants.get(name)
        return constant.shape if constant is not None else self.tensors[name].shape

    def tensor(self, name: str, shape: Sequence[int], dtype: str) -> str:
        """A new tensor; returns its name."""
        name = self._fresh(name)
        self.tensors[name] = Tensor(name, tuple(shape), dtype)
        return name

    def constant(self, name: str, data: Array) -> str:
        """A new constant; returns its name."""
        name = self._fresh(name)
        self.constants[name] = data
        return name

    def applied(
        self, network: Network, nodes: Sequence[Node], originals: Mapping[str, Original] | None = None
    ) -> Network:
        """The network with other nodes, the tensors, those constants that are read, and what is behind new names."""
        read = {name for node in nodes for name in node.inputs}
        return dataclasses.replace(
            network,
            nodes=tuple(nodes),
            tensors=self.tensors,
            constants={name: array for name, array in self.constants.items() if name in read},
            originals={**network.originals, **(originals or {})},
        )

    def _fresh(self, name: str) -> str:
        while name in self.tensors or name in self.constants:
            name += "'"
        return name


def replaced(network: Network, ops: Sequence[str], parts: Callable[[Additions, Node], list[Node]]) -> Network:
    """The network with `parts` of each node of some operators in its place; the same object if there is none."""
    if all(node.op not in ops for node in network.nodes):
        return network
    added = Additions(network)
    nodes = [each for node in network.nodes for each in (parts(added, node) if node.op in ops else [node])]
    return added.applied(network, nodes)
