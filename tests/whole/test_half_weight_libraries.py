"""Libraries with weights in float16 or bfloat16: what they say, what stays float32, other commands, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph, model_of, node
from data import LENET5
from half_weight_models import KINDS, Build, direct, draws, made, normalised, scaled, with_rounded
from onnx import numpy_helper

import tvmcnn
from tvmcnn.artifact.container import read_manifest
from tvmcnn.artifact.lock import lock_of
from tvmcnn.check.bisect import RIGHT, bisect
from tvmcnn.check.reference import half_weights as oracle
from tvmcnn.check.verify import verify_library
from tvmcnn.cli import main
from tvmcnn.errors import LockError, ModelError, ToolError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_rounded_before(kind: str, tmp_path: Path) -> None:
    """A model whose weights are numbers of the type already is not changed: its library has the same weights."""
    model = made(normalised)
    first = tvmcnn.compile(model, "x86-64-v3", tmp_path / "a.so", weights=kind)
    before = with_rounded(model, kind, set(first.manifest["weights"]["rounded"]))
    again = tvmcnn.compile(before, "x86-64-v3", tmp_path / "b.so", weights=kind)
    assert again.manifest["made_of"]["weights"] == first.manifest["made_of"]["weights"]
    assert [facts[1:] for facts in again.manifest["weights"]["rounded"].values()] == [[0.0, 0.0]]
    assert first.manifest["weights"]["text"] != again.manifest["weights"]["text"]


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_lenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its library takes little more than half; the log, the manifest, `inspect` and the lock say why."""
    whole = tvmcnn.compile(LENET5, "x86-64-v3", tmp_path / "lenet5.so").path.stat().st_size
    lines: list[str] = []
    compiled = tvmcnn.compile(LENET5, "x86-64-v3", tmp_path / "half.so", weights="fp16", report=lines.append)
    manifest = read_manifest(compiled.path)
    weights = manifest["weights"]
    before, after = weights["bytes"]
    assert (weights["type"], weights["stored"], weights["large"], before) == ("float16", 3, 3, 2 * after)
    assert compiled.path.stat().st_size < whole - 0.9 * after
    says = (
        r"weights in float16: 3 tensors, 0.244 -> 0.122 MB, largest relative rounding error 4\.\de-04 \(of those below"
    )
    assert sum(bool(re.match(says, line)) for line in lines) == 1
    assert sum("weight=float16" in line for line in lines) == 3
    capsys.readouterr()
    assert main(["inspect", str(compiled.path)]) == 0
    assert weights["text"] in capsys.readouterr().out
    assert lock_of(manifest)["weights"] == "float16"
    assert [verdict.passed for verdict in verify_library(compiled.path, LENET5)] == [True]


def test_locked(tmp_path: Path) -> None:
    """A lock from before there were half weights is one of float32."""
    library, lock = tmp_path / "lenet5.so", tmp_path / "old.lock"
    manifest = tvmcnn.compile(LENET5, "x86-64-v3", library).path
    words = lock_of(read_manifest(manifest))
    assert words.pop("weights") == "float32"
    lock.write_text(json.dumps(words))
    tvmcnn.compile(LENET5, "x86-64-v3", library, locked=lock)
    with pytest.raises(LockError, match=r"weights is bfloat16, locked is float32; weights is"):
        tvmcnn.compile(LENET5, "x86-64-v3", library, locked=lock, weights="bf16")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = tmp_path / "half.so"
    assert main(["compile", str(LENET5), "--target", "x86-64-v3", "-o", str(library), "--weights", "bf16"]) == 0
    assert "weights in bfloat16: 3 tensors" in capsys.readouterr().out
    assert read_manifest(library)["weights"]["kind"] == "bf16"


# ---- what stays float32 ---------------------------------------------------------------------------------------------


def read_elsewhere(g: Graph) -> str:
    """A constant that a sum reads as well."""
    table, x = g.draw(40, 60), g.input(5, 40)
    return g.node(
        "Add", g.node("MatMul", x, table), g.node("ReduceMean", g.node("Sub", g.input(40, 60), table), axes=[0])
    )


def computed(g: Graph) -> str:
    """A constant that another weight is computed from: rounded, it would be another weight, and that rounded twice."""
    table, x = g.draw(40, 60), g.input(5, 40)
    return g.node("Add", g.node("MatMul", x, table), g.node("MatMul", x, g.node("Mul", table, g.draw(60))))


def through_identities(g: Graph) -> str:
    x, table = g.input(5, 40), g.node("Identity", g.node("Identity", g.draw(40, 60)))
    return g.node("MatMul", x, table)


def layer(g: Graph) -> str:
    return g.node("LSTM", g.input(7, 3, 46), g.draw(1, 160, 46), g.draw(1, 160, 40), hidden_size=40)


@pytest.mark.parametrize(
    ("build", "rounded_", "stored", "large"),
    [
        (scaled, ["c0"], 0, 1),
        (read_elsewhere, [], 0, 1),
        (computed, ["mul1"], 1, 2),
        (through_identities, ["identity1"], 1, 1),
        (layer, [], 0, 1),
    ],
)
def test_what_stays(build: Build, rounded_: list[str], stored: int, large: int, tmp_path: Path) -> None:
    compiled = tvmcnn.compile(made(build), "x86-64-v3", tmp_path / "x.so", weights="fp16")
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    weights = compiled.manifest["weights"]
    assert (weights["stored"], weights["large"]) == (stored, large)
    assert weights["text"].endswith("; 1 large one stays float32") == (stored < large)
    assert list(weights["rounded"]) == rounded_


def test_other_nodes(tmp_path: Path) -> None:
    """A weight in a model's own function is none of the file's tensors; one that is handed to it is."""
    body = [node("MatMul", "a b", "c"), node("Constant", "", "d", value=numpy_helper.from_array(draws(7, 30, 40)))]
    body.append(node("MatMul", "c d", "e"))
    function = onnx.helper.make_function("own", "twice", ["a", "b"], ["e"], body, [onnx.helper.make_opsetid("", 17)])
    given = {"w": draws(3, 50, 30)}
    model = model_of(
        [node("twice", "x w", "y", domain="own")], {"x": [5, 50]}, {"y": [5, 40]}, given, functions=[function]
    )
    compiled = tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights="fp16")
    assert list(compiled.manifest["weights"]["rounded"]) == ["w"]
    assert compiled.manifest["weights"]["text"].endswith("1 large one stays float32")


def test_by_name_in_a_branch(tmp_path: Path) -> None:
    """A name inside of a branch is not the tensor of that name outside: neither the oracle nor import mixes them up."""
    outside, inside = draws(3, 50, 30), draws(4, 50, 30)
    then = onnx.helper.make_graph(
        [node("MatMul", "x w", "t")], "then", [], [onnx.helper.make_empty_tensor_value_info("t")],
        [numpy_helper.from_array(inside, "w")],
    )  # fmt: skip
    otherwise = onnx.helper.make_graph(
        [node("Identity", "z", "f")], "otherwise", [], [onnx.helper.make_empty_tensor_value_info("f")]
    )
    nodes_ = [node("MatMul", "x w", "z"), node("ReduceSum", "x", "sum", keepdims=0), node("Cast", "sum", "test", to=9)]
    nodes_.append(node("If", "test", "y", then_branch=then, else_branch=otherwise))
    model = model_of(nodes_, {"x": [5, 50]}, {"y": [5, 30]}, {"w": outside})
    compiled = tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights="fp16")
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    assert list(compiled.manifest["weights"]["rounded"]) == ["w"]
    assert compiled.manifest["weights"]["stored"] == 1


def test_no_winograd(tmp_path: Path) -> None:
    """Filters transformed by Winograd are no such numbers, and four times as many: the library is smaller without."""
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 32, 28, 29), 48, (3, 3), pads=[1, 1, 1, 1])))
    sizes = {}
    for kind in ("fp32", "fp16"):
        compiled = tvmcnn.compile(g.model(), "x86-64-v4", tmp_path / f"{kind}.so", weights=kind, own_records=False)
        sizes[kind] = compiled.manifest["weights_bytes"]
        assert bool(compiled.manifest["winograd"]) == (kind == "fp32")
    assert sizes["fp32"] > 7 * sizes["fp16"]


def test_quantised(tmp_path: Path) -> None:
    """Integers are what they were."""
    g = Graph()
    scale, zero = g.constant(np.float32(0.05)), "zero"
    g.initializers.append(numpy_helper.from_array(np.array(113, np.uint8), zero))
    g.initializers.append(numpy_helper.from_array(g.rng.integers(-128, 128, (48, 40, 3, 2), np.int8), "w"))
    x = g.node("DequantizeLinear", g.node("QuantizeLinear", g.input(1, 40, 9, 11), scale, zero), scale, zero)
    y = g.node("Conv", x, g.node("DequantizeLinear", "w", scale))
    g.output(g.node("DequantizeLinear", g.node("QuantizeLinear", y, scale, zero), scale, zero))
    images_ = []
    for kind in ("fp32", "fp16"):
        compiled = tvmcnn.compile(g.model(), "x86-64-v3", tmp_path / f"{kind}.so", weights=kind)
        assert compiled.manifest["weights"]["rounded"] == {}
        images_.append(compiled.manifest["made_of"]["weights"])
    assert images_[0] == images_[1]


# ---- other commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_reweight(kind: str, tmp_path: Path) -> None:
    """Byte for byte what compiling the new model writes, whose rounding errors are told."""
    model, new = made(normalised), made(normalised)
    for tensor in new.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.float32(1.37) * array, tensor.name))
    (tmp_path / "fresh").mkdir()
    library = tvmcnn.compile(model, "x86-64-v3,x86-64-v4", tmp_path / "x.so", batch=[1, 3], weights=kind).path
    wanted = tvmcnn.compile(new, "x86-64-v3,x86-64-v4", tmp_path / "fresh" / "x.so", batch=[1, 3], weights=kind).path
    tvmcnn.reweight(library, new, tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == wanted.read_bytes()
    new.graph.initializer[6].CopyFrom(numpy_helper.from_array(1e6 * draws(3, 32, 18, 3, 2), "c6"))
    if kind == "fp16":
        with pytest.raises(ModelError, match="weight 'c6' has an element of size"):
            tvmcnn.reweight(library, new, tmp_path / "again.so")


def test_bisect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is built again without one of its choices has the same rounded weights."""
    model = made(direct)
    library = tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights="bf16").path
    assert bisect(library, model).first is None
    monkeypatch.setattr(oracle, "MANTISSA", {"bfloat16": 6})
    found = bisect(library, model)
    assert found.first is not None
    assert not found.guilty  # no choice is to blame
    assert all(each.outcome != RIGHT and not each.note for each in found.tried)


# ---- what is refused ------------------------------------------------------------------------------------------------


def test_no_room(tmp_path: Path) -> None:
    """The largest float16 is stored; a larger one is refused by name, of bfloat16 it is none."""
    weight = draws(3, 40, 30)
    weight[3, 4] = 65504
    model = model_of([node("MatMul", "x heavy", "y")], {"x": [5, 40]}, {"y": [5, 30]}, {"heavy": weight})
    assert tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights="fp16").verdict is not None
    weight[3, 4] = 65505
    model = model_of([node("MatMul", "x heavy", "y")], {"x": [5, 40]}, {"y": [5, 30]}, {"heavy": weight})
    says = r"weight 'heavy' has an element of size 65505; float16 has room for 65504: .* or choose bf16"
    with pytest.raises(ModelError, match=says):
        tvmcnn.compile(model, "x86-64-v3", tmp_path / "y.so", weights="fp16")
    assert not (tmp_path / "y.so").exists()
    assert tvmcnn.compile(model, "x86-64-v3", tmp_path / "y.so", weights="bf16").verdict is not None


def test_unknown(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="weights 'int4' are unknown; allowed are fp32, fp16, bf16"):
        tvmcnn.compile(LENET5, "x86-64-v3", tmp_path / "x.so", weights="int4")
    with pytest.raises(ToolError, match="weights fp16 are for CPUs; on GPUs --precision fp16"):
        tvmcnn.compile(LENET5, "cuda:sm_90", tmp_path / "x.so", weights="fp16")


def test_another_model(tmp_path: Path) -> None:
    """A weight that the library names and the model has not."""
    library = tvmcnn.compile(made(direct), "x86-64-v3", tmp_path / "x.so", weights="fp16").path
    other = made(direct)
    other.graph.initializer[0].name = other.graph.node[0].input[1] = "other"
    with pytest.raises(ModelError, match="has no tensor 'c0', which is a rounded weight of the library"):
        verify_library(library, other)
