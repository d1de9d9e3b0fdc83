"""Operators that ONNX defines by others run by these, and agree with the oracle, which computes them as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import model_of, node

import tvmcnn
from tvmcnn.errors import UnsupportedError
from tvmcnn.importer.operators import DEFINED

Shapes = tuple[tuple[int, ...], ...]
HEADS = ((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 11))  # queries, keys and values: batch, heads, length, size
JOINED = ((2, 5, 24), (2, 7, 24), (2, 7, 33))

CASES: list[tuple[str, int, Shapes, dict[str, Any], dict[str, Any], tuple[int, ...]]] = [
    ("Attention", 23, HEADS, {}, {}, (2, 3, 5, 11)),
    ("Attention", 23, HEADS, {}, {"is_causal": 1, "scale": 0.25}, (2, 3, 5, 11)),
    ("Attention", 23, (*HEADS, (5, 7)), {}, {"softcap": 2.0}, (2, 3, 5, 11)),
    ("Attention", 23, JOINED, {}, {"q_num_heads": 3, "kv_num_heads": 3}, (2, 5, 33)),
    ("Attention", 24, ((2, 6, 5, 8), *HEADS[1:]), {}, {}, (2, 6, 5, 11)),  # two heads of queries share one of keys
    ("MeanVarianceNormalization", 9, ((2, 3, 5, 7),), {}, {}, (2, 3, 5, 7)),
    ("MeanVarianceNormalization", 13, ((2, 3, 5, 7),), {}, {"axes": [1, 3]}, (2, 3, 5, 7)),
    ("RMSNormalization", 23, ((2, 3, 5), (5,)), {}, {}, (2, 3, 5)),
    ("RMSNormalization", 23, ((2, 3, 5), (3, 5)), {}, {"axis": 1, "epsilon": 0.125}, (2, 3, 5)),
    ("RotaryEmbedding", 23, ((2, 3, 5, 8), (2, 5, 4), (2, 5, 4)), {}, {}, (2, 3, 5, 8)),
    ("RotaryEmbedding", 23, ((2, 3, 5, 8), (2, 5, 4), (2, 5, 4)), {}, {"interleaved": 1}, (2, 3, 5, 8)),
]


@pytest.mark.parametrize(("op", "opset", "shapes", "constants", "attributes", "output"), CASES)
def test_defined(
    op: str,
    opset: int,
    shapes: Shapes,
    constants: dict[str, Any],
    attributes: dict[str, Any],
    output: tuple[int, ...],
    tmp_path: Path,
) -> None:
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    nodes = [node(op, [*inputs, *constants], ["y"], **attributes)]
    model = model_of(nodes, inputs, {"y": output}, constants, opset=opset)
    compiled = tvmcnn.compile(model, output=tmp_path / "x.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    assert op not in {each for step in compiled.program.steps for each in step.choice.kernel.ops.split("+")}


def test_every_one_is_tried() -> None:
    left = {"CausalConvWithState", "SwiGLU"}  # which the oracle's onnx.reference has under opsets to come
    assert {op for op, *_ in CASES} == DEFINED - left


def test_an_operand_left_out(tmp_path: Path) -> None:
    """onnx 1.23 has no definition without its type."""
    nodes = [node("Attention", ["q", "k", "v", "", "past_key", "past_value"], ["y", "key", "value"])]
    inputs = dict(zip(("q", "k", "v"), HEADS, strict=True)) | {"past_key": (2, 3, 4, 8), "past_value": (2, 3, 4, 11)}
    model = model_of(nodes, inputs, {"y": (2, 3, 5, 11)}, opset=23)
    with pytest.raises(UnsupportedError, match="operator Attention is not supported"):
        tvmcnn.compile(model, output=tmp_path / "x.so")
