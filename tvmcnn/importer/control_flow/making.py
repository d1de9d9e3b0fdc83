"""Making: what branches and loops have in common while their nodes are put in their places."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from tvmcnn.errors import UnsupportedError
from tvmcnn.importer.control_flow.scopes import Scopes, graphs_of
from tvmcnn.importer.spelling import Steps

CHOICE = "tvmcnn.choice"  # domain of (condition, a, b) -> a or b, until it is known that their shapes are equal
LIMIT = 10_000  # nodes that the turns of all loops may become


class Making:
    """Control flow in the making."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.scopes = Scopes()
        self.notes: dict[str, None] = {}  # a set in order
        self.made = 0
        self.constants: list[onnx.TensorProto] = []  # those of inner graphs, which all turns share

    def graph(self, node: onnx.NodeProto, word: str, inputs: int, outputs: int) -> onnx.GraphProto:
        """A graph of a node. Raises ValueError where its inputs or outputs are not those of the node."""
        graph = graphs_of(node)[word]
        if len(graph.input) != inputs or len(graph.output) < outputs:
            found = f"{len(graph.input)} inputs and {len(graph.output)} outputs"
            raise ValueError(f"its {word} has {found}; it must have {inputs} and at least {outputs}")
        return graph

    def inlined(
        self, steps: Steps, graph: onnx.GraphProto, given: Sequence[str], prefix: str, wanted: Sequence[str] = ()
    ) -> list[str]:
        """The outputs of a graph whose nodes are put here; its constants are kept once."""
        self.constants += graph.initializer
        del graph.initializer[:]
        nodes, outputs = self.scopes.inlined(graph, given, prefix, wanted)
        steps.nodes += nodes
        return outputs

    def count(self, node: onnx.NodeProto, turns: int, each: int) -> None:
        """Refuse a loop that would become too many nodes, before they are made."""
        made = self.made + turns * max(1, each)
        if made > LIMIT:
            reason = f"it would be unrolled to {made:,} nodes; allowed are {LIMIT:,} of all loops"
            raise UnsupportedError(self.label, [f"{self.scopes.title(node)}: {reason}"])
        self.made = made

    def tell(self, node: onnx.NodeProto, what: str) -> None:
        """Note what compile prints and the manifest stores, once for all copies of a node."""
        self.notes[f"{self.scopes.title(node)}: {what}"] = None

    def choose(
        self, steps: Steps, condition: str, first: Sequence[str], second: Sequence[str], outputs: Sequence[str]
    ) -> None:
        """Outputs that are each one of two tensors; whether that is a Where is known once their shapes are."""
        for one, other, output in zip(first, second, outputs, strict=False):
            if output:
                steps.add(steps.node.op_type, condition, one, other, output=output, domain=CHOICE)
                self.scopes.name(output, steps.node)


def stem(node: onnx.NodeProto) -> str:
    """What the names of a node's copies begin with."""
    return node.name or next(filter(None, node.output), node.op_type)
