"""The operators of the NumPy reference, written to be read beside the ONNX operator page.

One file a family, one function an operator, named after it, whose signature is the ONNX schema: inputs by position in
schema order (None where an optional one is left out), attributes by keyword with ONNX's defaults. A second function,
with the opset in its name, stands where an opset changed the meaning. Slowness is welcome and cleverness is not:
windows are loops over the kernel's offsets with one array slice each, and similar operators repeat themselves.

Floats arrive as float64 and are never rounded here, but in `cast`. In the docstrings N is the batch, C the channels, M
the output channels, and s... the spatial axes: one, two or three of them.

A function raises NotImplementedError for what this project leaves out (training) and ValueError for a node that
contradicts itself; the evaluator adds the node's name.
"""

from __future__ import annotations

from tvmcnn.check.reference_ops import (
    activation,
    arithmetic,
    constant,
    logic,
    matrix,
    microsoft,
    move,
    norm,
    quantised,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    sample,
    windows,
)
from tvmcnn.check.reference_ops.registry import OPERATORS, Array, Ints, is_float, known_dtype, lookup

__all__ = ["OPERATORS", "Array", "Ints", "is_float", "known_dtype", "lookup"]

FAMILIES = (
    activation, arithmetic, constant, logic, matrix, microsoft, move, norm, quantize, quantised, recurrent, reduce,
    regions, resize, sample, windows,
)  # fmt: skip
