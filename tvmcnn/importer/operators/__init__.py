"""What each ONNX operator means to tvmcnn: one function a name, whose signature is the ONNX schema.

A function takes the node's inputs as Values (None where optional and left out) and its attributes as keywords with
ONNX's defaults; one that must know how many outputs the node has takes that as `outputs_`, one that must know which it
has as `wanted_`. It returns a Meaning: the operator, the operands that matter at run time, attributes with nothing left
implicit, and the output's shape and dtype; for a node with several outputs a tuple of them, for each output is computed
by itself. It raises Unsupported for what tvmcnn does not do, Undecided (one of these) for an operand that must be
constant and is not, and ModelError for what contradicts itself. To add an operator, add its function here, then its
tensor expression in ops/.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

from tvmcnn.importer.operators import (
    counted,
    dense,
    elementwise,
    fill,
    gather,
    move,
    norm,
    order,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    sample,
    scatter,
    shape,
    signal,
    unpool,
    windows,
)
from tvmcnn.importer.operators.meaning import DTYPES, OPERATORS, Meaning, Meanings, Undecided, Unsupported, Value

__all__ = [
    "DTYPES",
    "OPERATORS",
    "Meaning",
    "Meanings",
    "Schema",
    "Undecided",
    "Unsupported",
    "Value",
    "operators_page",
    "schema",
]

FAMILIES = (
    windows,
    unpool,
    dense,
    elementwise,
    norm,
    quantize,
    recurrent,
    reduce,
    regions,
    resize,
    sample,
    shape,
    signal,
    move,
    gather,
    scatter,
    order,
    counted,
    fill,
)  # importing them fills OPERATORS


# Operators that ONNX defines by others, all of which have kernels
DEFINED = frozenset(
    """
    Attention CausalConvWithState MeanVarianceNormalization RMSNormalization RotaryEmbedding SwiGLU
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Schema:
    """A supported operator for `tvmcnn ops`: its ONNX name, inputs and attributes with their defaults, and what it
    does."""

    name: str
    attributes: str
    summary: str


def schema(name: str) -> Schema:
    """The row of the operator `name`, from the signature and docstring of its function."""
    function = OPERATORS[name]
    words = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default in (inspect.Parameter.empty, None) else f"={parameter.default}"
        if parameter.name.endswith("_"):
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            words.append(f"{parameter.name}…")
        elif parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            words.append(f"[{parameter.name}]" if parameter.default is None else parameter.name)
        else:
            words.append(f"{parameter.name}{default}")
    summary = (function.__doc__ or "").splitlines()[0]
    return Schema(name, " ".join(words), summary.removeprefix(f"ONNX {name}").strip(" .,:;"))


def operators_page(rows: Sequence[Schema]) -> str:
    """The table as docs/operators.md has it."""
    head = f"""# Operators

Made by `tvmcnn ops --markdown`. These {len(rows)} operators of ONNX compile, of opset 7 and later; Upsample becomes
Resize. `tvmcnn ops --check MODEL` lists every node of a model that does not compile, with the reason.

An operand in brackets may be left out; an attribute is followed by its default. Tensors are float32, float64, integers
of 8 to 64 bits or bool, as far as ONNX allows; float16 is computed in float32, which compile says. Operands that decide
shapes must be constant.

Einsum is computed by these too, as MatMul, Transpose and ReduceSum; its equation has no ellipsis and no index twice in
one operand. So are Hardmax, as ArgMax and OneHot, and LpNormalization, as a reduction and a division.

If, Loop and Scan are spelled by these. Both branches of an If that values decide are computed, and must have one shape;
loops are unrolled, where constants tell a bound of their turns. Scan is that of opset 9 and later.

LSTM, GRU and RNN have all activations that ONNX names. What ONNX leaves open is as in onnxruntime: `clip` bounds what
the gates' activations are given, and the last states of a sequence of no steps are zero.

Computed by ONNX's own definition of them in these operators, where no operand before the last is left out:
{", ".join(sorted(DEFINED))}.

| operator | operands and attributes | meaning |
|---|---|---|"""
    lines = (f"| {row.name} | `{row.attributes}` | {row.summary.replace('|', chr(92) + '|')} |" for row in rows)
    return "\n".join([head, *lines])
