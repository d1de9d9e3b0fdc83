"""Weights in float16 and bfloat16: every rule with its own network, both ways to expand, and what is refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph, model_of, node
from data import LENET5
from helpers import TARGETS, feeds, use_target
from onnx import numpy_helper

import tvmcnn
from tvmcnn import half_weights
from tvmcnn.artifact.container import read_manifest
from tvmcnn.artifact.lock import lock_of
from tvmcnn.check.bisect import RIGHT, bisect
from tvmcnn.check.reference import half_weights as oracle
from tvmcnn.check.reference import reference
from tvmcnn.check.verify import verify_library
from tvmcnn.cli import main
from tvmcnn.compiler import Compiled
from tvmcnn.errors import LockError, ModelError, ToolError, VerifyError
from tvmcnn.half_weights import STORED, HalfWeights, narrowed, rounded
from tvmcnn.importer import half_weights as importing
from tvmcnn.importer import nodes
from tvmcnn.ops import operands

Build = Callable[[Graph], str]
Plant = Callable[[pytest.MonkeyPatch], None]
pytestmark = pytest.mark.slow

KINDS = ("fp16", "bf16")


# ---- rounding -------------------------------------------------------------------------------------------------------


def by_hand(array: np.ndarray, kind: str) -> np.ndarray:
    """The nearest numbers of a half type, found among the neighbours below and above, ties to the even one."""
    if kind == "fp16":
        return array.astype(np.float16).astype(np.float32)  # NumPy's own
    bits = array.astype(np.float32).view(np.uint32)
    below = (bits & 0xFFFF0000).view(np.float32).astype(np.float64)
    above = ((bits & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    exact, odd = array.astype(np.float64), (bits >> 16 & 1).astype(bool)
    up = (abs(above - exact) < abs(exact - below)) | ((abs(above - exact) == abs(exact - below)) & odd)
    return np.where(up, above, below).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding(kind: str) -> None:
    """Ties, subnormal numbers, zeros and any bits: the compiler's, the oracle's and that by hand agree."""
    rng = np.random.default_rng(3)
    any_bits = rng.integers(0, 1 << 32, 200_000, np.uint64).astype(np.uint32).view(np.float32)
    ties = (rng.integers(0, 1 << 19, 50_000).astype(np.uint32) << 12 | 1 << 12).view(np.float32)
    others = (rng.integers(0, 1 << 16, 50_000).astype(np.uint32) << 16 | 1 << 15).view(np.float32)
    small = np.float32(2.0**-24) * np.arange(-40, 40, dtype=np.float32) / 4
    named = np.float32([0, -0.0, 65504, 1, 1 + 2**-11, 1 + 2**-8, 1 + 3 * 2**-8])
    array = np.concatenate([any_bits, ties, others, small, named])
    array = array[np.abs(array) <= np.float32(half_weights.LARGEST[kind])]
    found, wanted = rounded(array, kind), by_hand(array, kind)
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))
    np.testing.assert_array_equal(oracle.to_half(array, half_weights.WORDS[kind]), wanted)
    special = rounded(np.array([np.nan, np.inf, -np.inf], np.float32), kind)
    assert np.isnan(special[0])
    assert special[1:].tolist() == [np.inf, -np.inf]
    assert not half_weights.holds(kind, np.full(2000, 1 + 2**-13, np.float32))
    assert half_weights.holds(kind, np.full(2000, 1.5, np.float32))
    assert not half_weights.holds(kind, np.full(20, 1.5, np.float32))
    assert not half_weights.holds("fp32", np.full(2000, 1.5, np.float32))


def test_errors() -> None:
    """Of normal numbers relative, of smaller ones absolute."""
    array = np.float32([1 + 2**-11, 3 * 2.0**-26, 1.5])
    assert half_weights.errors(array, "fp16") == (2**-11 / (1 + 2**-11), 2.0**-26)


@pytest.mark.parametrize("kind", KINDS)
def test_parts(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large weight is looked through in parts: none is left out, whatever is at its end."""
    array = rounded(draws(3, 41, 50), kind)
    array[-1, -1] = np.float32(1 + 2**-12)
    whole = half_weights.errors(array, kind), oracle.to_half(array, half_weights.WORDS[kind])
    assert whole[0][0] > 0
    for module in (half_weights, oracle):
        monkeypatch.setattr(module, "PART", 77)
    assert not half_weights.holds(kind, array)
    assert half_weights.errors(array, kind) == whole[0]
    np.testing.assert_array_equal(oracle.to_half(array, half_weights.WORDS[kind]), whole[1])
    array[-1, -1] = 1
    assert half_weights.holds(kind, array)


# ---- every rule -----------------------------------------------------------------------------------------------------


def direct(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 35, 14, 16), 64, (3, 2), pads=[1, 0, 1, 1]))


def cut_tile(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 35, 5, 7), 81, (3, 2)))


def normalised(g: Graph) -> str:
    """A BatchNormalization stays behind the convolution whose weight is rounded, and goes into the small one's."""
    x = normalise(g, g.conv(g.input(1, 3, 14, 17), 18, (3, 3)), 18)
    return g.node("Relu", normalise(g, g.conv(x, 32, (3, 2)), 32))


def normalise(g: Graph, x: str, maps: int) -> str:
    variance = g.constant(np.abs(g.rng.standard_normal(maps)) + 0.5)
    return g.node("BatchNormalization", x, g.draw(maps), g.draw(maps), g.draw(maps), variance)


def with_prologue(g: Graph) -> str:
    x = g.node("MaxPool", g.conv(g.input(1, 3, 14, 15), 64, (1, 1)), kernel_shape=[2, 2])
    return g.conv(g.node("Relu", normalise(g, x, 64)), 48, (1, 1))


def pooled(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 6, 14, 15), 17, (5, 4)))
    return g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def grouped(g: Graph) -> str:
    return g.conv(g.input(2, 32, 15, 17), 64, (3, 3), group=2)


def depthwise(g: Graph) -> str:
    return g.conv(g.input(1, 120, 9, 11), 120, (3, 3), group=120)


def together(g: Graph) -> str:
    return g.conv(g.input(1, 77, 9, 11), 154, (3, 2), group=7)


def columns(g: Graph) -> str:
    return g.conv(g.input(2, 9, 14, 32), 6, (5, 4))


def pixels(g: Graph) -> str:
    return g.conv(g.input(1, 60, 25, 27), 81, (1, 1), group=3)


def images(g: Graph) -> str:
    x = g.node("MaxPool", g.conv(g.input(16, 5, 28, 30), 6, (7, 7)), kernel_shape=[2, 2], strides=[2, 2])
    return g.node("Gemm", g.node("Flatten", x), g.draw(792, 25), g.draw(25))


def dense(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(1, 40), g.draw(33, 40), g.draw(33), transB=1))


def dense_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(2, 40, 18), g.draw(18, 132))


def covering(g: Graph) -> str:
    return g.conv(g.input(2, 18, 4, 5), 33, (4, 5))


def matmul(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 33, 18), g.draw(3, 18, 34))


def rows(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 6, 58), g.draw(3, 58, 7))


def transposed(g: Graph) -> str:
    return g.node("ConvTranspose", g.input(1, 24, 9, 11), g.draw(24, 20, 4, 4), strides=[2, 2])


def transposed_plain(g: Graph) -> str:
    return g.node("ConvTranspose", g.input(1, 6, 9, 11), g.draw(6, 20, 4, 3), strides=[3, 2], dilations=[2, 1])


def sequence(g: Graph) -> str:
    return g.conv(g.input(1, 24, 99), 40, (5,))


def volume(g: Graph) -> str:
    return g.conv(g.input(1, 14, 9, 10, 11), 20, (3, 3, 2))


def turned(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 40), g.node("Transpose", g.draw(99, 40), perm=[1, 0]))


EXPANDED = {normalised, with_prologue, pooled, grouped, together, columns, pixels, images, dense_rows, rows}
EXPANDED |= {transposed_plain, sequence, volume}
INLINED = {depthwise, dense, covering, matmul, turned}
BY_TILE = {direct, cut_tile, transposed}  # as the maps are whole tiles of them or not
RULES = sorted(EXPANDED | INLINED | BY_TILE, key=lambda build: build.__name__)


def made(build: Build) -> onnx.ModelProto:
    g = Graph()
    g.output(build(g))
    return g.model()


def with_rounded(model: onnx.ModelProto, kind: str, names: set[str]) -> onnx.ModelProto:
    """The model with these weights rounded by hand."""
    model = copy.deepcopy(model)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = by_hand(numpy_helper.to_array(tensor), kind)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def halves(compiled: Compiled, kind: str) -> list[str]:
    """The weights that are stored in a half type."""
    packed = (pair for step in compiled.program.steps for pair in step.packed.items())
    return [name for name, tensor in packed if tensor.dtype == STORED[kind]]


@pytest.mark.parametrize(("kind", "target"), zip(KINDS, TARGETS, strict=True))
@pytest.mark.parametrize("build", RULES, ids=lambda build: build.__name__)
def test_rule(build: Build, kind: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library computes, and shows, what NumPy makes of the rounded weights; nothing of the unrounded ones."""
    model, target = made(build), use_target(target, monkeypatch)
    compiled = tvmcnn.compile(model, target, tmp_path / "x.so", weights=kind, own_records=False)
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    assert halves(compiled, kind)
    expanded = any(step.choice.expanded for step in compiled.program.steps)
    assert build in BY_TILE or expanded == (build in EXPANDED)
    names = set(compiled.manifest["weights"]["rounded"]) - {"transpose0"}
    names |= {"c0"} if build is turned else set()
    given, net = feeds(model), tvmcnn.load(compiled.path, threads=2)
    (wanted,) = reference(with_rounded(model, kind, names), given).values()
    (exact,) = reference(model, given).values()
    found, scale = net.run(None, given)[0], np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 3e-6 * scale
    assert np.abs(found - exact).max() > 3e-5 * scale


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


def scaled(g: Graph) -> str:
    return g.node("Gemm", g.input(3, 40), g.draw(99, 40), g.draw(99), transB=1, alpha=0.3)


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


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


# ---- planted bugs ---------------------------------------------------------------------------------------------------


def rounded_twice(patch: pytest.MonkeyPatch) -> None:
    """Through a type of one more bit: a number just above a tie becomes one, and goes to the even side."""
    right = importing.rounded

    def twice(array: np.ndarray, kind: str) -> np.ndarray:
        bits = array.view(np.uint32) + np.uint32(1 << 11 if kind == "fp16" else 1 << 14)
        return right((bits & np.uint32(0xFFFFF000 if kind == "fp16" else 0xFFFF8000)).view(np.float32), kind)

    patch.setattr(importing, "rounded", twice)


def toward_zero(patch: pytest.MonkeyPatch) -> None:
    masks = {"fp16": 0xFFFFE000, "bf16": 0xFFFF0000}
    cut = lambda array, kind: (array.view(np.uint32) & np.uint32(masks[kind])).view(np.float32)  # noqa: E731
    patch.setattr(importing, "rounded", cut)


def unrounded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importing, "rounded", lambda array, kind: array)


def unannounced(patch: pytest.MonkeyPatch) -> None:
    right = importing.round_weights

    def silent(*given: object) -> tuple[dict[str, np.ndarray], HalfWeights]:
        constants, made_ = right(*given)  # type: ignore[arg-type]
        return constants, HalfWeights(made_.kind)

    patch.setattr(nodes, "round_weights", silent)


def stored_rounded_again(patch: pytest.MonkeyPatch) -> None:
    """Packing that does not ask whether the weight is a number of the type: here of one that was scaled."""
    from tvmcnn import layout

    patch.setattr(layout, "holds", lambda kind, array: kind != "fp32")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("plant", "build"),
    [
        (rounded_twice, direct),
        (toward_zero, direct),
        (unrounded, direct),
        (unannounced, direct),
        (rounded_twice, dense),
        (toward_zero, transposed),
        (stored_rounded_again, scaled),
    ],
)
def test_planted(
    plant: Plant,
    build: Build,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Right without the bug; refused with it."""
    model = made(build)
    assert tvmcnn.compile(model, "x86-64-v3", tmp_path / "x.so", weights=kind).verdict is not None
    plant(monkeypatch)
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is"):
        tvmcnn.compile(model, "x86-64-v3", tmp_path / "y.so", weights=kind)
    assert not (tmp_path / "y.so").exists()


def test_planted_shift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of a bfloat16 one place too low."""
    monkeypatch.setenv("TVMCNN_CACHE", "off")  # whose kernels are known by their sources, not by what is patched
    right = operands.tirx.const

    def lower(value: float, dtype: str) -> object:
        return right(15 if (value, dtype) == (16, "uint32") else value, dtype)

    monkeypatch.setattr(operands.tirx, "const", lower)
    with pytest.raises(VerifyError, match="first tensor that differs from NumPy is"):
        tvmcnn.compile(made(direct), "x86-64-v3", tmp_path / "x.so", weights="bf16", jobs=1)


def test_narrowed_is_lossless() -> None:
    """What is stored, expanded again, is what was rounded: bit for bit."""
    for kind in KINDS:
        array = rounded(draws(5, 999), kind)
        stored = narrowed(array, kind)
        assert stored.dtype == STORED[kind]
        np.testing.assert_array_equal(half_weights.expanded(stored, kind), array)
