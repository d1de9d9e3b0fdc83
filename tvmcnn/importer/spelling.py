"""Spelling: nodes of some operators become nodes of others that mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx

from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.onnx_file.repair import fresh, node_lists, tensor_names, title

Spelled: TypeAlias = Iterable[onnx.NodeProto]
New: TypeAlias = Callable[[str], str]  # name --> a name like it that no tensor has
Spell: TypeAlias = Callable[[onnx.NodeProto, New], Spelled]


def spell(proto: onnx.ModelProto, label: str, spellings: Mapping[tuple[str, str], Spell]) -> None:
    """Replace each node whose domain and operator `spellings` has, in place. The model is of opset 21 or later.

    Raises UnsupportedError where one raises ValueError, and ModelError for a node without an operand or an output.
    """
    reasons: list[str] = []
    taken = tensor_names(proto)
    for _, nodes in node_lists(proto):
        if not any((node.domain, node.op_type) in spellings for node in nodes):
            continue
        spelled: list[onnx.NodeProto] = []
        for node in nodes:
            make = spellings.get((node.domain, node.op_type))
            if make is not None and not (node.input and node.output and node.input[0] and node.output[0]):
                raise ModelError(f"{label}: {title(node)} has no operand or no output")
            try:
                spelled += [node] if make is None else make(node, lambda name: fresh(name, taken))
            except ValueError as error:
                reasons.append(f"{title(node)}: {error}")
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in spelled]
        del nodes[:]
        nodes.extend(copies)
    if reasons:
        raise UnsupportedError(label, reasons)


@dataclass
class Steps:
    """The nodes that one is spelled by so far, whose tensors are named after its result."""

    node: onnx.NodeProto
    new: New
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """A node; returns its tensor, a new one if it is not named."""
        name = output or self.new(f"{self.node.output[0]}.{op.lower()}")
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], name=self.node.name, **attributes))
        return name

    def constant(self, values: Any, dtype: type[np.generic] = np.int64) -> str:
        """A constant."""
        return self.add("Constant", value=onnx.numpy_helper.from_array(np.array(values, dtype)))
