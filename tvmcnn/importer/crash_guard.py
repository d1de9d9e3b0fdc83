"""Crash guard: what could end this process is done in another one first.

onnx infers shapes in C++, whose assertions abort the process. Mutated models found one: a Slice of an extent that an
earlier node made negative (a Pad that crops more than there is) clamps an index to an empty range. Inference runs in
onnx's converter of opsets and within onnxscript's folding, so that only a whole import shows that it is harmless.
Models without a Slice of something computed, which most CNNs are, skip this; the others pay a second once.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
import onnx

from tvmcnn.errors import ModelError, TvmcnnError
from tvmcnn.importer.pipeline import import_opened
from tvmcnn.network import Array, Asked, Shape
from tvmcnn.onnx_file import Opened
from tvmcnn.worker_process import Isolated, LostError

_harmless: set[bytes] = set()  # hashes of what has been rehearsed: compile, verify and bisect import it again


def needs_rehearsal(proto: onnx.ModelProto) -> bool:
    """Whether a node slices what another node made: the extents of inputs and weights are checked before."""
    made: set[str] = set()
    for node in proto.graph.node:
        if node.op_type == "Slice" and node.input and node.input[0] in made:
            return True
        if any(attribute.HasField("g") for attribute in node.attribute):  # a branch may have one
            return True
        made.update(node.output)
    return bool(proto.functions)


def rehearse(
    opened: Opened, label: str, shapes: Mapping[str, Asked], batch: int | None, values: Mapping[str, Array]
) -> None:
    """Import the model in another process. Raises ModelError if that ends it; whatever else it raises comes again."""
    large = {name: (array.shape, array.dtype) for name, array in opened.weights.items()}
    arguments = (opened.proto.SerializeToString(), large, label, dict(shapes), batch, dict(values))
    if (digest := hashlib.sha256(pickle.dumps(arguments)).digest()) in _harmless:
        return
    with closing(Isolated(quiet=True)) as process:
        try:
            process.call("tvmcnn.importer.crash_guard:perform", *arguments)
        except LostError as error:
            raise ModelError(f"{label}: onnx cannot infer its shapes, tried in a process that {error}") from error
    _harmless.add(digest)


def perform(
    proto: bytes,
    large: Mapping[str, tuple[Shape, np.dtype[Any]]],
    label: str,
    shapes: Mapping[str, Asked],
    batch: int | None,
    values: Mapping[str, Array],
) -> None:
    """The import, for its effect on the process. The `large` weights are zeros here: no shape depends on them."""
    weights = {name: np.zeros(shape, dtype) for name, (shape, dtype) in large.items()}
    try:
        import_opened(Opened(onnx.load_model_from_string(proto), weights), label, shapes, batch, values)
    except TvmcnnError:
        return  # the caller will find the same
