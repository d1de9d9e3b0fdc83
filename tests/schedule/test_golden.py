"""The scheduled TVMScript of every rule on small fixed shapes: a change of a schedule is read before it is kept.

`pytest tests/schedule/test_golden.py --update-golden` writes the texts anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph
from onnx import helper, numpy_helper

import tvmcnn
from tvmcnn.choose import records
from tvmcnn.configs import DirectConfig, StreamedConfig

Build = Callable[[Graph], str]


def pooled(g: Graph, y: str, op: str = "MaxPool") -> str:
    return g.node(op, g.node("Relu", y), kernel_shape=[2, 2], strides=[2, 2])


def direct(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 17, 6, 11), 33, (3, 3), pads=[1, 1, 1, 1]))


winograd = direct_overlap = direct


def winograd_five(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 17, 6, 11), 33, (5, 5), pads=[2, 2, 2, 2]))


def streamed(g: Graph) -> str:
    return g.conv(g.input(1, 17, 6, 11), 31, (3, 3), pads=[1, 1, 1, 1])


def pixels(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 6, 5, 7), 9, (1, 1), group=3))


def few_maps(g: Graph) -> str:
    return g.node("Sigmoid", g.conv(g.input(1, 35, 37, 29), 3, (5, 2), pads=[2, 0, 2, 1]))


def direct_pool(g: Graph) -> str:
    return pooled(g, g.conv(g.input(1, 6, 14, 15), 16, (5, 4)))


def grouped_direct(g: Graph) -> str:
    return g.conv(g.input(2, 32, 5, 7), 64, (1, 1), group=2, strides=[2, 1])


def direct_half(g: Graph) -> str:
    return g.conv(g.input(2, 32, 9, 11), 64, (3, 1), group=2)


def depthwise(g: Graph) -> str:
    return g.conv(g.input(1, 18, 7, 9), 18, (3, 2), group=18)


def columns(g: Graph) -> str:
    return pooled(g, g.conv(g.input(1, 1, 14, 32), 6, (5, 5)))


def images(g: Graph) -> str:
    x = pooled(g, g.conv(g.input(16, 1, 28, 30), 6, (7, 7)))
    return g.node("Gemm", g.node("Flatten", x), g.draw(792, 25), g.draw(25))


def dense(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(1, 40), g.draw(40, 33), g.draw(33)))


dense_half = dense


def dense_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(2, 4, 18), g.draw(18, 32))


def dense_dots(g: Graph) -> str:
    return between_integers(g, "MatMul", (5, 19), (19, 37))


def bf16(g: Graph) -> str:
    return pooled(g, g.conv(g.input(1, 35, 6, 11), 37, (3, 2), pads=[1, 0, 1, 2]))


def amx_int8(g: Graph) -> str:
    return between_integers(g, "Conv", (1, 70, 6, 11), (37, 70, 3, 2), pads=[1, 0, 1, 1])


def amx_bf16(g: Graph) -> str:
    return pooled(g, g.conv(g.input(1, 35, 9, 15), 37, (3, 2), pads=[1, 0, 1, 2], strides=[2, 1]))


def dense_bf16(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(5, 131), g.draw(131, 133), g.draw(133)))


def dots(g: Graph) -> str:
    return between_integers(g, "Conv", (1, 35, 6, 11), (37, 35, 3, 2), pads=[1, 0, 1, 1])


def dots_of_a_channel(g: Graph) -> str:
    return between_integers(g, "Conv", (1, 35, 6, 11), (35, 1, 3, 5), pads=[1, 2, 1, 2], group=35)


def between_integers(g: Graph, op: str, image: tuple[int, ...], kernel: tuple[int, ...], **attributes: object) -> str:
    def stored(array: np.ndarray) -> str:
        g.initializers.append(numpy_helper.from_array(array, f"q{len(g.initializers)}"))
        return g.initializers[-1].name

    scale, zero = stored(np.array(0.05, np.float32)), stored(np.array(113, np.uint8))
    weight = g.node("DequantizeLinear", stored(g.rng.integers(-128, 128, kernel, np.int8)), scale)
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", g.input(*image), scale, zero), scale, zero)
    y = g.node("QuantizeLinear", g.node(op, x, weight, **attributes), scale, zero)
    return g.node("DequantizeLinear", y, scale, zero)


def pool(g: Graph) -> str:
    x = g.conv(g.input(1, 5, 9, 11), 31, (1, 1))
    return g.node("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])


def pool_of_frames(g: Graph) -> str:
    x = g.conv(g.input(1, 5, 4, 9, 11), 31, (1, 1, 1))
    return g.node("AveragePool", x, kernel_shape=[3, 3, 2], strides=[1, 2, 1], pads=[1, 1, 0, 1, 1, 1])


def unfold_frames(g: Graph) -> str:
    x = g.conv(g.input(2, 5, 4, 9, 11), 31, (1, 1, 1))
    return g.conv(x, 16, (3, 1, 1), pads=[1, 0, 0, 1, 0, 0])


def unfolded_frames(g: Graph) -> str:
    x = g.conv(g.input(1, 5, 4, 9, 11), 31, (1, 1, 1))
    return g.conv(x, 16, (3, 1, 1), strides=[2, 1, 1], pads=[1, 0, 0, 1, 0, 0])


def memory(g: Graph) -> str:
    return g.node("Concat", g.node("Transpose", g.node("Sigmoid", g.input(5, 17))), g.input(17, 3), axis=1)


def softmax(g: Graph) -> str:
    return g.node("Softmax", g.node("Softmax", g.input(3, 5, 17), axis=2), axis=1)


def matmul(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 33, 8), g.input(3, 8, 34))


def normalize(g: Graph) -> str:
    x = g.node("LayerNormalization", g.input(3, 5, 37), g.draw(37), g.draw(37))
    return g.node("InstanceNormalization", x, g.draw(5), g.draw(5))


def recurrent(g: Graph) -> str:
    x = g.node("LSTM", g.input(7, 3, 6), g.draw(1, 4 * 40, 6), g.draw(1, 4 * 40, 40), hidden_size=40)
    x = g.node("Squeeze", x, g.constant(np.array([1])))
    return g.node("GRU", x, g.draw(1, 3 * 10, 40), g.draw(1, 3 * 10, 10), hidden_size=10)


def rows(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 6, 8), g.input(8, 7))


def lanes(g: Graph) -> str:
    return g.node("ReduceMean", g.input(3, 5, 17), axes=[1, 2])


def in_order(g: Graph) -> str:
    x = g.node("CumSum", g.node("Tanh", g.input(3, 5, 17)), g.constant(np.array(1)), exclusive=1)
    x = g.node("ScatterND", x, g.constant(np.array([[1, 2], [0, -1]])), g.draw(2, 17), reduction="add")
    g.nodes.append(helper.make_node("TopK", [x, g.constant(np.array([4]))], ["values", "places"]))
    return "values"


def fallback(g: Graph) -> str:
    return g.node("GlobalLpPool", g.conv(g.input(1, 8, 5, 7), 12, (2, 3), group=4))


RULES = {
    "direct": "direct",
    "direct_overlap": "direct",
    "bf16": "pairs",
    "amx_int8": "amx",
    "amx_bf16": "amx",
    "dense_bf16": "dense_pairs",
    "winograd": "winograd",
    "winograd_five": "winograd",
    "streamed": "streamed",
    "pixels": "pixels",
    "direct_pool": "direct",
    "grouped_direct": "direct",
    "direct_half": "direct",
    "depthwise": "direct",
    "few_maps": "few_maps",
    "columns": "columns",
    "images": "images",
    "dense": "dense",
    "dense_half": "dense",
    "dense_rows": "dense",
    "dense_dots": "dense_dots",
    "dots": "dots",
    "dots_of_a_channel": "dots",
    "pool": "pool",
    "pool_of_frames": "pool",
    "unfold_frames": "memory",
    "unfolded_frames": "direct",
    "memory": "memory",
    "softmax": "softmax",
    "matmul": "matmul",
    "normalize": "normalize",
    "recurrent": "recurrent",
    "rows": "rows",
    "lanes": "lanes",
    "in_order": "in_order",
    "fallback": "fallback",
}


GIVEN = {
    "direct_overlap": DirectConfig(vectors=2, rows=4, columns=4, overlap=True),
    "streamed": StreamedConfig(2, 2, 2, vectors=2, tiles=6, prefetch=True),
}
HALF = {"direct_half": "fp16", "dense_half": "bf16"}  # the type of the weight: expanded for all tiles, or as it is read


ONLY = {  # rules that one class of CPUs has, and the precision that they are of
    "bf16": ("x86-64-v4-bf16", "bf16"),
    "dense_bf16": ("x86-64-v4-bf16", "bf16"),
    "amx_int8": ("x86-64-v4-amx", "fp32"),
    "amx_bf16": ("x86-64-v4-amx", "bf16"),
}
TEXTS = [(name, isa) for name in RULES if name not in ONLY for isa in ("x86-64-v3", "x86-64-v4")]
TEXTS += [
    *((name, isa) for name, (isa, _) in ONLY.items()),
    *((name, "x86-64-v4-vnni") for name in ("dense_dots", "dots", "dots_of_a_channel")),
]


@pytest.mark.parametrize(("name", "isa"), TEXTS)
def test_rule(
    name: str, isa: str, golden: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the shipped records: a measured config is no change of the rule."""
    config = GIVEN.get(name)
    monkeypatch.setattr(records.Records, "find", lambda self, kernel, rule: config and (config, records.GIVEN))
    monkeypatch.setattr(records.Records, "fastest", lambda self, kernel, rules: config and RULES[name])
    g = Graph()
    g.output(globals()[name](g))
    made: dict[str, Any] = {"verify": False, "activations": False, "exact": name == "direct"}
    made |= {"precision": ONLY[name][1]} if name in ONLY else {}
    compiled = tvmcnn.compile(g.model(), target=isa, output=tmp_path / "x.so", weights=HALF.get(name, "fp32"), **made)
    assert RULES[name] in {step.choice.rule for step in compiled.program.steps}
    golden("\n".join([*(f"# {step.choice}" for step in compiled.program.steps), "", compiled.code["tir"]()]))


def test_every_rule_has_a_text() -> None:
    from tvmcnn.schedule.x86 import RULES as ALL

    assert {*RULES.values(), "winograd_data"} == set(ALL)  # which stands in the text of "streamed"
