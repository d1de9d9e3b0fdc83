"""Thousands of mutated models, by bytes and by fields: each is imported, or refused in words, in bounded time and
space.

tests/mutate_models.py does it in a process of its own, so that a crash of any library is seen, with its seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, Kind, graph_of, model_of, node
from data import LENET5, ROOT, TESTS
from mutate_models import mutate_fields, outcome

import tvmcnn
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import crash_guard, import_model

pytestmark = pytest.mark.slow

PROGRAM = TESTS / "mutate_models.py"
COUNT = 300  # of each model and kind: 2,400 in all, of which 70 % still parse; tools/fuzz.py tries more


def vision() -> onnx.ModelProto:
    """Convolutions of every kind, pools, normalisations, a residual, branches."""
    g = Graph(opset=18)
    x = g.input(1, 6, 12, 14)
    a = g.node("Relu", g.conv(x, 8, (3, 3), pads=[1, 1, 1, 1]))
    b = g.node("HardSwish", g.conv(a, 8, (3, 2), group=8, auto_pad="SAME_UPPER"))
    c = g.node("BatchNormalization", g.node("Add", a, b), *(g.constant(np.arange(1.0, 9) + n) for n in range(4)))
    d = g.node("MaxPool", c, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    e = g.node("ConvTranspose", d, g.draw(8, 4, 2, 2), strides=[2, 2], output_padding=[0, 0])
    f = g.node("Concat", e, g.node("LRN", x, size=3), axis=1)
    h = g.node("InstanceNormalization", f, g.draw(10), g.draw(10))
    g.output(g.node("AveragePool", h, kernel_shape=[3, 3], pads=[1, 0, 0, 1], count_include_pad=1))
    return g.model()


def moves() -> onnx.ModelProto:
    """What takes shapes, axes and indices from constants."""
    g = Graph(opset=18)
    x = g.input(2, 4, 6, 10)
    a = g.node("Pad", x, g.constant(np.array([0, 0, 1, 2, 0, 0, 2, 1])), mode="reflect")
    b = g.node("Slice", a, *(g.constant(np.array(v)) for v in ([0, 1], [9, 5], [2, 3], [2, 1])))
    c = g.node("Transpose", b, perm=[0, 2, 3, 1])
    d = g.node("Reshape", c, g.constant(np.array([0, -1, 4])))
    e = g.node("Gather", d, g.constant(np.array([[0, 2], [1, -1]])), axis=1)
    f = g.node(
        "Expand", g.node("ReduceMean", e, g.constant(np.array([1])), keepdims=1), g.constant(np.array([2, 3, 2, 4]))
    )
    h = g.node("Resize", x, "", "", g.constant(np.array([2, 4, 9, 7])), mode="linear")
    t = g.node("Tile", f, g.constant(np.array([1, 2, 1, 3])))
    s = g.node("Softmax", g.node("DepthToSpace", x, blocksize=2), axis=-2)
    g.output(t, g.node("ArgMax", h, axis=3), s)
    model = g.model()
    model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def arithmetic() -> onnx.ModelProto:
    """Element-wise operators, reductions, matrix products, types."""
    g = Graph(opset=20)
    x, y = g.input(3, 5, 7), g.input(5, 1)
    a = g.node("Mul", g.node("Clip", x, g.constant(-1.5), g.constant(2.5)), y)
    b = g.node("Where", g.node("Less", a, y), a, g.node("Pow", x, g.constant(2.0)))
    c = g.node("MatMul", b, g.draw(3, 7, 4))
    d = g.node("LayerNormalization", c, g.draw(4), axis=-1)
    e = g.node("Cast", g.node("Cast", d, to=6), to=1)
    f = g.node("Gemm", g.node("Flatten", e), g.draw(6, 20), g.draw(6), transB=1, alpha=0.5)
    g.output(g.node("ReduceL2", g.node("Sum", f, g.node("PRelu", f, g.draw(6))), g.constant(np.array([-1]))))
    return g.model()


def control() -> onnx.ModelProto:
    """Branches that values decide, loops of a known and of a computed number of turns, a scan, within each other."""
    given: dict[str, Kind] = {"i": (onnx.TensorProto.INT64, []), "go": (onnx.TensorProto.BOOL, []), "v": None}
    adds = [node("Add", "s p", "t"), node("Mul", "t c", "u")]
    turn = graph_of(adds, {"s": None, "p": None}, "t u", {"c": np.float32(2)})
    scan = node("Scan", "row x", "last all", "scan", body=turn, num_scan_inputs=1, scan_input_axes=[1])
    branches = graph_of([scan], {}, "last"), graph_of([node("Neg", "row", "less")], {}, "less")
    products = [node("Cast", "i", "n", to=1), node("Mul", "v n", "w")]
    below = [node("ReduceMax", "w", "top"), node("Less", "top ten", "on")]
    masked = graph_of([*products, *below], given, "on w")
    plain = graph_of([node("Abs", "v", "w"), node("Exp", "w", "z")], given, "go w z")
    nodes = [
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Greater", "sum ten", "flag"),
        node("If", "flag", "a", "choice", then_branch=branches[0], else_branch=branches[1]),
        node("Loop", "three yes a", "b", "masked", body=masked),
        node("Loop", "three  b", "y ys", "plain", body=plain),
    ]
    weights = {"three": np.array(3), "yes": np.array(True), "ten": np.float32(10)}
    return model_of(nodes, {"x": (2, 4, 5), "row": (2, 5)}, {"y": (2, 5), "ys": (3, 2, 5)}, weights)


MODELS = {
    "control": control,
    "lenet5": lambda: onnx.load(str(LENET5)),
    "vision": vision,
    "moves": moves,
    "arithmetic": arithmetic,
}


def run(path: Path, kind: str, first: int, count: int) -> list[dict[str, Any]]:
    """The outcomes of so many seeds. Fails with the seed at which the process ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(PROGRAM), str(path), kind, str(first), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    decoder, found = json.JSONDecoder(), []
    for line in lines:
        seed, end = decoder.raw_decode(line)
        if not line[end:].strip():
            pytest.fail(f"{path.stem}, {kind}: seed {seed['seed']} ended the process, status {done.returncode}")
        found.append(seed | json.loads(line[end:]))
    assert len(found) == count, f"status {done.returncode}: {done.stderr[-500:]}"
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["bytes", "fields"])
def test_mutated_models_are_imported_or_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(MODELS[name]().SerializeToString())
    found = run(path, kind, 0, COUNT)
    broken = [f"seed {each['seed']}: {each['broke']}" for each in found if "broke" in each]
    assert not broken, f"{len(broken)} of {COUNT}: {broken[:5]}"
    for each in found:
        if each.get("refused", "UnsupportedError") != "UnsupportedError":
            assert "\n" not in each["text"], each
    accepted = sum("accepted" in each for each in found)
    assert 0 < accepted < COUNT
    parsing = sum(each["parses"] for each in found)
    assert parsing >= (COUNT if kind == "fields" else COUNT // 4)  # together more than half


def cropped_away() -> onnx.ModelProto:
    """A Pad that crops more than there is, which leaves a negative extent, before a Slice: onnx's inference aborts."""
    g = Graph(opset=18)
    x = g.node("Pad", g.input(2, 4, 6), g.constant(np.array([0, 0, -7, 0, 0, 0])))
    g.outputs.append(g.node("Slice", x, *(g.constant(np.array([v])) for v in (1, 5, 2, 2))))
    g.shapes[g.outputs[0]] = (2, 4, 1)
    return g.model()


def test_what_ends_the_process_ends_another() -> None:
    with pytest.raises(tvmcnn.ModelError, match="onnx cannot infer its shapes, tried in a process that ended by SIG"):
        simplified(import_model(cropped_away()))
    network = simplified(import_model(moves()))  # which has a Slice too, of something computed
    assert any(node.op == "Slice" for node in network.nodes)


def test_a_weight_of_six_bits_that_is_too_long() -> None:
    """onnx takes it, and onnx-ir only finds out when it writes the model."""
    model = MODELS["lenet5"]()
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "conv3.bias")
    bias.data_type = 27  # float6 e2m3
    with pytest.raises(tvmcnn.ModelError, match="too large for the declared shape"):
        simplified(import_model(model))


def test_rows_of_billions_of_pixels() -> None:
    """Padding may be as large as it likes: whoever chooses a tile does not count through the columns."""
    g = Graph(opset=21)
    x = g.node("Conv", g.input(1, 3, 9, 11), g.draw(18, 3, 2, 2), pads=[0, 2**31, 0, 2**31])
    g.shapes[x] = (1, 18, 8, 10)
    g.outputs.append(g.node("Relu", x))
    g.shapes[g.outputs[0]] = g.shapes[x]
    found = outcome(g.model().SerializeToString())
    assert found["refused"] == "UnsupportedError" and "more than 2,147,483,647 elements" in found["text"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "lenet5"])
def test_accepted_mutations_compile_and_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six of them: the library gives what the reference gives, or the reference too refuses the model."""
    import random

    monkeypatch.setattr(
        crash_guard, "needs_rehearsal", lambda _: False
    )  # a second each, and no seed here ends a process

    data = MODELS[name]().SerializeToString()
    path, compiled, seed = tmp_path / "x.so", 0, 10_000
    while compiled < 6:
        seed += 1
        changed = mutate_fields(data, random.Random(seed))
        try:
            result = tvmcnn.compile(changed, output=path)
        except tvmcnn.VerifyError as error:
            pytest.fail(f"seed {seed}: {error}")
        except tvmcnn.TvmcnnError:
            continue
        compiled += 1
        assert result.verdict is not None, seed
        assert result.verdict.passed, seed


def test_a_crash_is_told_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted one: the memory limit is far too low to import anything."""
    program = tmp_path / "mutate_models.py"
    program.write_text(PROGRAM.read_text().replace("MEMORY = 6 << 30", "MEMORY = 1 << 26"))
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", program)
    path = tmp_path / "x.onnx"
    path.write_bytes(arithmetic().SerializeToString())
    with pytest.raises((pytest.fail.Exception, AssertionError), match=r"seed 0|status"):
        run(path, "fields", 0, 2)
