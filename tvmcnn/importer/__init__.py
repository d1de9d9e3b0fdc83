"""Import: an ONNX file becomes a Network with closed shapes, explicit attributes and constant weights.

onnx, onnx-ir and onnxscript do what is ONNX's own (conversion of opsets, folding, shape inference); `operators/` says
what each node means to tvmcnn; pipeline.py has the steps in order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvmcnn.network import Array, Asked, Network

if TYPE_CHECKING:
    from tvmcnn.onnx_file import Model, Opened


def import_model(
    model: Model,
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    batch: int | None = None,
    values: Mapping[str, Array] | None = None,
    name: str | None = None,
    weights: str = "fp32",
) -> Network:
    """The Network of an ONNX model, every dimension bound and every constant folded.

    `input_shapes` binds open dimensions or overrides fixed ones; `batch` does so for every leading dimension. An open
    leading dimension that nobody binds, or that is None, becomes 1; `Network.notes` and `open_batch` say so. `values`
    makes inputs constants, which may decide shapes and are inputs no more. `name` prefixes the C symbols; the default
    is the file's stem. `weights` "fp16" or "bf16" rounds those of large products, see half_weights.py;
    `Network.half_weights` says which.

    Raises ModelError for what is no ONNX, is damaged or contradicts itself, UnsupportedError with every node that
    tvmcnn cannot compile.
    """
    # Here, since `tvmcnn ops` lists the operators of this package where onnx and onnx-ir are not installed.
    from tvmcnn.importer.crash_guard import needs_rehearsal, rehearse
    from tvmcnn.importer.pipeline import import_opened
    from tvmcnn.onnx_file import read_model

    label = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    opened = read_model(model)
    if needs_rehearsal(opened.proto):
        rehearse(opened, label, input_shapes or {}, batch, values or {})
    return import_opened(opened, label, input_shapes or {}, batch, values or {}, name, weights)


def unfolded(
    model: Model,
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    batch: int | None = None,
    values: Mapping[str, Array] | None = None,
) -> Opened:
    """The model as `import_model` has it before anything folds: its inputs bound, its nodes spelled as they are today.

    Raises ModelError.
    """
    from tvmcnn.importer.pipeline import close
    from tvmcnn.onnx_file import read_model

    opened = read_model(model)
    label = os.fspath(model) if isinstance(model, str | os.PathLike) else "the model"
    close(opened, label, input_shapes or {}, batch, values or {})
    return opened
