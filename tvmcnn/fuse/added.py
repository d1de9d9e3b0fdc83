"""What a pass adds to a network: tensors and constants under names that it has not yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tvmcnn.network import Array, Network, Node, Shape, Tensor


def fresh(network: Network, name: str) -> str:
    """The name, or one like it that no tensor and no constant has."""
    while name in network.tensors or name in network.constants:
        name += "'"
    return name


@dataclasses.dataclass(frozen=True)
class Additions:
    """A network whose tensors and constants grow."""

    network: Network

    def shape(self, name: str) -> Shape:
        """The shape of a tensor or a constant."""
        constant = self.network.constants.get(name)
        return constant.shape if constant is not None else self.network.tensors[name].shape

    def tensor(self, name: str, shape: Sequence[int], dtype: str) -> str:
        """A new tensor; returns its name."""
        name = fresh(self.network, name)
        self.network.tensors[name] = Tensor(name, tuple(shape), dtype)
        return name

    def constant(self, name: str, data: Array) -> str:
        """A new constant; returns its name."""
        name = fresh(self.network, name)
        self.network.constants[name] = data
        return name


def replaced(network: Network, ops: Sequence[str], parts: Callable[[Additions, Node], list[Node]]) -> Network:
    """The network with `parts` of each node of some operators in its place; the same object if there is none."""
    if all(node.op not in ops for node in network.nodes):
        return network
    grown = dataclasses.replace(network, constants=dict(network.constants), tensors=dict(network.tensors))
    added = Additions(grown)
    nodes = [each for node in network.nodes for each in (parts(added, node) if node.op in ops else [node])]
    read = {name for node in nodes for name in node.inputs}
    kept = {name: array for name, array in grown.constants.items() if name in read}
    return dataclasses.replace(grown, nodes=tuple(nodes), constants=kept)
