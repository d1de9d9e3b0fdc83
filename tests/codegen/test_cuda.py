"""Libraries for GPUs, whole, on a CPU: cuda_shim/ stands in for nvcc and CUDA's runtime, and runs the text that ships.

Every library is compared with NumPy by `compile` itself, in several orders of a block's threads.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, lenet, mnist8
from data import NVCC
from helpers import feeds, short_reduction, without_compiler
from models import make

import tvmcnn
from tvmcnn.artifact.package import write_package
from tvmcnn.check.reference import reference
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cpu.defaults import winograd_fits
from tvmcnn.choose.cuda import single_launch
from tvmcnn.choose.cuda.defaults import MMA_TILES
from tvmcnn.choose.records import NONE, read_records
from tvmcnn.codegen.cuda import kernel as cuda
from tvmcnn.codegen.cuda import nvcc
from tvmcnn.codegen.cuda.chain import Device
from tvmcnn.codegen.cuda.kernel import device_code
from tvmcnn.compiler import Compiled
from tvmcnn.configs import GemmConfig, MmaConfig
from tvmcnn.errors import ArtifactError, InputError, TargetError, ToolError, VerifyError
from tvmcnn.fuse import fuse, multiply_accumulates
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.ops import norm
from tvmcnn.ops.cuda import gemm, winograd_planes
from tvmcnn.precision import ON_GPUS, rounded
from tvmcnn.run.gpu_runner import GpuRunner
from tvmcnn.targets import Gpu
from tvmcnn.tuning import gpu as tuning
from tvmcnn.winograd import MATRICES

pytestmark = pytest.mark.slow

TARGET = "cuda:sm_80,sm_90"
CUDA = 2  # DLPack's number of it
ORDERS = ("0", "1", "7")  # of the threads of a block: ascending, descending, shuffled

Array = np.ndarray[Any, Any]
Build = Callable[[Graph], str]


@pytest.fixture(autouse=True)
def shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", str(NVCC))


def check(model: onnx.ModelProto | Path, folder: Path, orders: Sequence[str] = ORDERS, **options: Any) -> Compiled:
    """Compiled and compared with NumPy; and the same bits in every order of threads."""
    compiled = tvmcnn.compile(model, TARGET, folder / "network.so", **options)
    assert compiled.verdict is not None and compiled.verdict.passed
    net = tvmcnn.load(compiled.path)
    arrays = [np.full(info.shape, 0.1, info.dtype) for info in net.inputs]
    found = []
    for order in orders:
        ctypes.CDLL(None).setenv(b"CUDA_SHIM_ORDER", order.encode(), 1)  # os.environ is not where libraries look
        found.append(net.run(None, dict(zip((info.name for info in net.inputs), arrays, strict=True))))
    ctypes.CDLL(None).unsetenv(b"CUDA_SHIM_ORDER")
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)
    return compiled


# ---- rules ----------------------------------------------------------------------------------------------------------


def conv(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 5, 11, 14), 19, (3, 2), pads=[1, 0, 2, 1], strides=[2, 1]))


def dilated(g: Graph) -> str:
    return g.conv(g.input(2, 7, 13, 9), 70, (2, 3), dilations=[3, 2], bias=False)


def pointwise(g: Graph) -> str:
    x = g.conv(g.input(1, 3, 9, 13), 24, (1, 1))
    return g.node("Relu", g.node("Add", g.conv(g.node("Relu", x), 24, (1, 1)), x))


def prologue(g: Graph) -> str:
    x = g.input(1, 48, 6, 10)
    statistics = [g.draw(48), g.draw(48), g.draw(48), g.constant(g.rng.uniform(0.5, 2, 48))]
    return g.conv(g.node("Relu", g.node("BatchNormalization", x, *statistics)), 33, (1, 1))


def max_pool(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 4, 21, 12), 17, (2, 3)))
    return g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def average_pool(g: Graph) -> str:
    x = g.node("Sigmoid", g.conv(g.input(2, 4, 10, 13), 9, (3, 2)))
    return g.node("AveragePool", x, kernel_shape=[2, 3], strides=[2, 3])


def split(g: Graph) -> str:
    x = g.input(1, 130, 5, 6)
    y = g.node("Relu", g.conv(x, 67, (3, 3), pads=[1, 1, 1, 1]))
    return g.node("Relu", g.node("Add", g.conv(y, 130, (2, 3), pads=[0, 1, 1, 1]), x))


def split_pool(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(2, 90, 9, 8), 36, (3, 2), group=2, pads=[1, 0, 1, 1]))
    return g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def split_prologue(g: Graph) -> str:
    x = g.input(1, 300, 6, 5)
    statistics = [g.draw(300), g.draw(300), g.draw(300), g.constant(g.rng.uniform(0.5, 2, 300))]
    return g.conv(g.node("Relu", g.node("BatchNormalization", x, *statistics)), 33, (1, 1))


def grouped(g: Graph) -> str:
    return g.conv(g.input(2, 24, 5, 9), 36, (3, 3), group=2, pads=[1, 1, 1, 1])


def depthwise(g: Graph) -> str:
    return g.node("Clip", g.conv(g.input(1, 18, 7, 12), 18, (3, 2), group=18, strides=[1, 2], pads=[1, 0, 1, 1]))


def narrow_groups(g: Graph) -> str:
    return g.conv(g.input(1, 12, 6, 7), 20, (1, 3), group=4)


def row(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(1, 77), g.draw(77, 45), g.draw(45)))


def few_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(5, 300), g.draw(300, 34))


def rows(g: Graph) -> str:
    return g.node("Gemm", g.input(41, 23), g.draw(67, 23), g.draw(67), transB=1)


def full_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(41, 64), g.draw(64, 29))


def stack(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 14, 20), g.draw(20, 9))


def covering(g: Graph) -> str:
    return g.conv(g.input(2, 6, 5, 4), 50, (5, 4))


def three_by_three(g: Graph) -> str:
    x = g.conv(g.input(2, 32, 11, 14), 37, (3, 3), pads=[1, 0, 1, 1])
    return g.node("Relu", g.node("Add", g.node("Relu", x), g.input(2, 37, 11, 13)))


def three_by_three_pool(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 19, 12, 9), 21, (3, 3), pads=[2, 1, 1, 0]))
    return g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def tiny(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 3, 9, 12), 7, (3, 2)))
    return g.node("Gemm", g.node("Flatten", x), g.draw(539, 13), g.draw(13))


def softmax(g: Graph) -> str:
    return g.node("Softmax", g.input(3, 133), axis=1)


def softmax_of_maps(g: Graph) -> str:
    return g.node("LogSoftmax", g.input(2, 11, 5, 6), axis=1)


def global_average(g: Graph) -> str:
    return g.node("GlobalAveragePool", g.input(2, 9, 12, 7))


def global_max(g: Graph) -> str:
    return g.node("GlobalMaxPool", g.input(1, 9, 4, 3))


def reduction(g: Graph) -> str:
    return g.node("ReduceL2", g.input(3, 5, 37, 2), axes=[2, 3], keepdims=0)


def reduced_columns(g: Graph) -> str:
    return g.node("ReduceMean", g.input(4, 9, 5), axes=[1])


def pool(g: Graph) -> str:
    return g.node("AveragePool", g.input(1, 5, 9, 8), kernel_shape=[3, 2], pads=[1, 0, 1, 1], strides=[2, 1])


def joined(g: Graph) -> str:
    x = g.input(1, 16, 5, 7)
    return g.node("Concat", x, g.conv(x, 32, (1, 1)), g.node("Tanh", x), axis=1)


def resized(g: Graph) -> str:
    x = g.input(1, 3, 6, 8)
    return g.node("Resize", x, "", g.constant([1.0, 1.0, 2.5, 1.5]), mode="linear")


def turned(g: Graph) -> str:
    return g.node("Transpose", g.input(2, 13, 5, 9), perm=[0, 2, 3, 1])


def normalised(g: Graph) -> str:
    return g.node("LayerNormalization", g.input(6, 40), g.draw(40), g.draw(40))


def broadcast(g: Graph) -> str:
    return g.node("Mul", g.input(2, 5, 7, 6), g.node("Sigmoid", g.input(5, 1, 6)))


def lstm(g: Graph) -> str:
    weights = (g.draw(2, 4 * 37, 6), g.draw(2, 4 * 37, 37), g.draw(2, 8 * 37))
    return g.node("LSTM", g.input(5, 3, 6), *weights, direction="bidirectional", hidden_size=37)


def gru(g: Graph) -> str:
    return g.node("GRU", g.input(5, 3, 6), g.draw(1, 3 * 37, 6), g.draw(1, 3 * 37, 37), hidden_size=37)


RULES: dict[Build, str] = {
    **dict.fromkeys((conv, dilated, prologue, max_pool, average_pool, grouped, rows, stack), "gemm"),
    **dict.fromkeys((row, few_rows, covering), "gemv"),
    **dict.fromkeys((softmax, global_average, reduction), "rows"),
    **dict.fromkeys((depthwise, narrow_groups, softmax_of_maps, global_max, reduced_columns, pool), "threads"),
    **dict.fromkeys((turned, broadcast), "threads"),
    **dict.fromkeys((lstm, gru), "gemm recurrent"),
    **dict.fromkeys((resized, normalised), "fallback"),
    **dict.fromkeys((joined, pointwise, split, split_pool, split_prologue), "gemm threads"),
}


@pytest.mark.parametrize("build", RULES, ids=lambda build: build.__name__)
def test_rules_at_awkward_sizes(build: Build, tmp_path: Path, golden: Callable[[str], None]) -> None:
    g = Graph()
    g.output(build(g))
    compiled = check(g.model(), tmp_path)
    assert {step.choice.rule for step in compiled.program.steps} == set(RULES[build].split())
    golden(compiled.code["tir"]())


def test_steps_in_order(tmp_path: Path) -> None:
    """A scatter that adds, one whose indices are constant, a running sum and a heap: a thread has a column of each."""
    g = Graph(opset=18)
    x = g.node("Tanh", g.input(3, 5, 17))
    places = g.constant(g.rng.integers(-5, 5, (3, 9, 17)))
    y = g.node("ScatterElements", x, places, g.draw(3, 9, 17), axis=1, reduction="add")
    y = g.node("ScatterND", y, g.constant(np.array([[1, 2], [0, 4]])), g.draw(2, 17), reduction="max")
    y = g.node("ScatterND", y, g.constant(np.array([[2], [0]])), g.draw(2, 5, 17))
    y = g.node("CumSum", y, g.constant(2), reverse=1)
    g.nodes.append(onnx.helper.make_node("TopK", [y, g.constant([3])], ["values", "places"], name="top", axis=1))
    g.output("values")
    compiled = check(g.model(), tmp_path)
    assert [step.choice.algorithm for step in compiled.program.steps].count("in_order") == 4


def test_floats_are_no_real_numbers(tmp_path: Path) -> None:
    """What TVM would take for 0 or stop at; nvcc takes the address of no literal."""
    g = Graph()
    x, zero = g.input(5, 7), g.constant(np.float32(0))
    g.output(g.node("Mul", g.node("Sub", g.node("Add", x, x), x), zero))
    g.output(g.node("Div", x, zero))
    net = tvmcnn.load(tvmcnn.compile(g.model(), TARGET, tmp_path / "n.so", verify=False).path)
    array = np.resize(np.float32([np.nan, np.inf, 0, -2, 3]), (5, 7))
    product, quotient = net.run(None, {net.inputs[0].name: array})
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(product, (array + array - array) * 0)
        np.testing.assert_array_equal(quotient, array / np.float32(0))


# ---- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("build", [lenet, mnist8])
def test_small_networks_are_one_launch(
    build: Callable[[int], onnx.ModelProto], batch: int, tmp_path: Path, golden: Callable[[str], None]
) -> None:
    compiled = check(build(batch), tmp_path)
    (step,) = compiled.program.steps
    assert step.choice.rule == "whole"
    kernels = fuse(simplified(import_model(build(batch))))
    macs = sum(multiply_accumulates(compiled.program.network, kernel) for kernel in kernels)
    assert tvmcnn.load(compiled.path).manifest["kernels"][0]["macs"] == macs
    golden(compiled.code["tir"]())


@pytest.mark.parametrize(("build", "batch", "images"), [(lenet, 16, 8), (lenet, 6, 2), (mnist8, 8, 4), (lenet, 7, 1)])
def test_images_of_a_block(
    build: Callable[[int], onnx.ModelProto], batch: int, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as divide the batch, fit, and leave blocks enough: here for a GPU of one multiprocessor."""
    monkeypatch.setattr(single_launch, "PROCESSORS", 1)
    compiled = check(build(batch), tmp_path)
    (step,) = compiled.program.steps
    assert step.choice.config.images == images


def test_one_image_is_computed_once() -> None:
    """A block makes each element of its image once: its loops cover what it stores, up to whole rounds of threads."""
    network = simplified(import_model(lenet(9)))
    (step,) = lay_out(network, gpu.choose(network, fuse(network)), Weights()).steps
    text = cuda.scheduled(step).script()
    rounds = [int(n) for n in re.findall(r"fused_0 in range\((\d+)\)", text)]
    assert rounds[0] == math.ceil(6 * 14 * 14 / step.choice.config.threads), rounds


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 48), ("mobilenet_v2", 40), ("squeezenet", 48), ("resnet50", 32), ("vgg16", 32)]
)
def test_networks(name: str, size: int, tmp_path: Path) -> None:
    """Compared with NumPy; their rules are run in every order above."""
    check(make(name, (size, size)), tmp_path, orders=())


@pytest.mark.parametrize("name", ["mnist-8", "lenet5-ccoltong"])
def test_trained_networks(name: str, test_data: Path, tmp_path: Path) -> None:
    check(test_data / "models" / name / "model.onnx", tmp_path)


@pytest.fixture
def winograd(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Convolutions of 3 x 3 take a tile of Winograd's, which by estimate pays for larger ones alone."""
    return lambda tile: monkeypatch.setattr(gpu, "configs", lambda network, choice: [GemmConfig(32, 64, winograd=tile)])


@pytest.mark.parametrize("tile", [4, 2])
@pytest.mark.parametrize("build", [three_by_three, three_by_three_pool], ids=lambda build: build.__name__)
def test_winograd(
    build: Build, tile: int, winograd: Callable[[int], None], tmp_path: Path, golden: Callable[[str], None]
) -> None:
    """Three kernels, within the bound of their tile."""
    winograd(tile)
    g = Graph()
    g.output(build(g))
    compiled = check(g.model(), tmp_path)
    assert [step.choice.algorithm for step in compiled.program.steps] == [
        "winograd_in",
        "winograd_gemm",
        "winograd_out",
    ]
    golden(compiled.code["tir"]())


def test_winograd_by_estimate() -> None:
    """Where there are many pixels; of 7 x 7 its tiles are few, and the sum is better split."""
    network = simplified(import_model(make("resnet18")))
    found = {
        choice.kernel.output.shape[2]: choice.config
        for choice in gpu.decided(network, fuse(network), NONE)
        if choice.kernel.anchor.op == "Conv" and winograd_fits(choice.kernel)
    }
    assert [found[rows].winograd for rows in (56, 7)] == [4, 0]
    assert found[7].split > 1


MMA = (prologue, dilated, max_pool, rows, stack, grouped, split, split_pool)  # products that fill tiles of tensor cores


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("build", MMA, ids=lambda build: build.__name__)
def test_tensor_cores(build: Build, precision: str, tmp_path: Path, golden: Callable[[str], None]) -> None:
    """As far from NumPy as rounded factors may be, and farther than float32 is."""
    g = Graph()
    g.output(build(g))
    lines: list[str] = []
    compiled = check(g.model(), tmp_path, precision=precision, report=lines.append)
    assert "mma" in {step.choice.rule for step in compiled.program.steps}
    assert any(line.startswith("tensor cores: ") for line in lines)
    assert compiled.verdict is not None and compiled.verdict.as_json()["error"] > 5e-5
    if build in (split, rows):
        golden(compiled.code["tir"]())


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
@pytest.mark.parametrize("tile", MMA_TILES, ids=str)
def test_tiles_of_tensor_cores(
    tile: tuple[int, ...], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MmaConfig(*tile, precision=precision)
    monkeypatch.setattr(gpu, "mma_configs", lambda network, choice, precision: [config])
    g = Graph()
    g.output(three_by_three_pool(g))
    assert check(g.model(), tmp_path, precision=precision).program.steps[0].choice.config == config


def test_where_tensor_cores_are_not(tmp_path: Path) -> None:
    """A pool's window that divides no tile, and a network of one launch, multiply in float32, which is said."""
    g = Graph()
    g.output(average_pool(g))
    for model in (g.model(), lenet(1)):
        lines: list[str] = []
        compiled = tvmcnn.compile(model, TARGET, tmp_path / "n.so", precision="fp16", report=lines.append)
        assert "tensor cores: 0 of 1 kernels with products; the others multiply in float32" in lines
        assert compiled.verdict is not None and compiled.verdict.as_json()["error"] < 1e-6


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("x86-64-v3", "tf32", "precision tf32 is for tensor cores, target cuda:sm_…; x86-64-v3 computes in fp32"),
        (TARGET, "int8", "precision 'int8' is unknown; allowed are fp32, tf32, fp16, bf16"),
        (TARGET, "bf16", "precision bf16 is for CPUs with AVX512-BF16; GPUs compute in fp32, tf32 or fp16"),
        ("x86-64-v4-bf16", "fp16", "target cuda:sm_…; x86-64-v4-bf16 computes in fp32 or bf16"),
        (
            "x86-64-v4-bf16,x86-64-v4,x86-64-v3",
            "bf16",
            "precision bf16 needs AVX512-BF16, which x86-64-v4, x86-64-v3 has not; targets with it: x86-64-v4-bf16,"
            " x86-64-v4-amx",
        ),
        ("cuda:sm_75,sm_80", "tf32", "precision tf32 needs sm_80 or later; the target has sm_75: choose fp16 for it"),
    ],
)
def test_precisions_that_are_none(target: str, precision: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=re.escape(words)):
        tvmcnn.compile(lenet(1), target, tmp_path / "network.so", precision=precision)


def test_archs_are_numbers(tmp_path: Path) -> None:
    """sm_100 is later than sm_80, whatever comes first in the alphabet."""
    g = Graph()
    g.output(full_rows(g))
    compiled = tvmcnn.compile(g.model(), "cuda:sm_100,sm_80", tmp_path / "net.so", precision="tf32", verify=False)
    assert isinstance(compiled.target, Gpu)
    assert compiled.target.archs == ("sm_80", "sm_100")


def test_rounding() -> None:
    """To 10 bits of mantissa, ties away from zero; the largest that float16 has is 65504."""
    given = np.array([1, 1 + 2**-10, 1 + 2**-11, -1 - 2**-11, 1 + 2**-12, 0, -3e38], np.float32)
    wanted = [1, 1 + 2**-10, 1 + 2**-10, -1 - 2**-10, 1, 0]
    found = rounded(given, "tf32")
    np.testing.assert_array_equal(found[:-1], wanted)
    assert abs(found[-1] / given[-1] - 1) < 2**-11
    np.testing.assert_array_equal(rounded(np.array([65504, 7e4], np.float32), "fp16"), [65504, np.inf])


def test_exact_has_no_winograd() -> None:
    network = simplified(import_model(make("resnet18")))
    found = gpu.choose(network, fuse(network), exact=True)
    assert not {choice.algorithm for choice in found} & {"winograd_in", "winograd_gemm", "winograd_out"}
    assert "winograd_gemm" in {choice.algorithm for choice in gpu.choose(network, fuse(network))}


# ---- mistakes in a kernel -------------------------------------------------------------------------------------------

BARRIER = "__syncthreads();"
MISTAKES: dict[str, tuple[Callable[[str], str], str]] = {
    "no barrier before": (lambda text: text.replace(BARRIER, "", 1), "wrong"),
    "no barrier behind": (lambda text: "".join(text.rsplit(BARRIER, 1)), "wrong"),
    "a barrier for some": (lambda text: text.replace(BARRIER, f"if (threadIdx.x < 7) {BARRIER}", 1), "barrier"),
    "a wrong predicate": (lambda text: text.replace("(1 <= ", "(0 <= ", 1), "wrong"),
    "no predicate": (lambda text: re.sub(r"if \(.*\) \{(?=\n *a03_out_ptr)", "if (true) {", text), "died"),
    "a local index too large": (lambda text: re.sub(r"sum_local_ptr\[16\]", "sum_local_ptr[15]", text), "died"),
    "a shared index too large": (lambda text: re.sub(r"(w0_shared_ptr)\[(\d+)\];", r"\1[\2 / 2];", text), "died"),
    "a global index too large": (lambda text: text.replace("a03_out_ptr[", "a03_out_ptr[(1 << 28) + ", 1), "died"),
}


def outcome(library: Path, order: str, x: Array) -> tuple[str, Array]:
    """How a library ends in a process of its own, which a mistake may end, and its output."""
    given, made = library.with_suffix(".x.npy"), library.with_suffix(".y.npy")
    np.save(given, x)
    code = f"import tvmcnn, numpy as np; np.save({str(made)!r}, tvmcnn.load({str(library)!r})(np.load({str(given)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "CUDA_SHIM_ORDER": order}
    )
    if done.returncode == 0:
        return "", np.load(made)
    return ("barrier" if "barrier" in done.stderr else "died"), np.empty(0)


def wrong(y: Array, expected: Array) -> bool:
    return not np.allclose(y, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("mistake", ["", *MISTAKES])
def test_mistakes_are_seen(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In some order of threads the results are wrong, or the shim ends the process; without an edit they are right."""
    g = Graph()
    g.output(conv(g))
    (x,) = feeds(g.model()).values()
    (expected,) = reference(g.model(), feeds(g.model())).values()
    edit, wanted = MISTAKES.get(mistake, (lambda text: text, "right"))
    real = device_code

    def changed(*arguments: Any) -> Device:
        device = real(*arguments)
        assert (edit(device.text) != device.text) == bool(mistake)
        return dataclasses.replace(device, text=edit(device.text))

    monkeypatch.setattr(cuda, "device_code", changed)
    library = tvmcnn.compile(g.model(), TARGET, tmp_path / "network.so", verify=False).path
    ends = [outcome(library, order, x) for order in ORDERS]
    seen = {end or ("wrong" if wrong(y, expected) else "right") for end, y in ends}
    assert wanted in seen and (mistake or seen == {"right"}), seen


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load and store of the kernels is judged, see cuda_shim/races.h."""
    monkeypatch.setenv("NVCC", f"{NVCC} --races")


def test_no_rule_races(judged: None, winograd: Callable[[int], None], tmp_path: Path) -> None:
    """Kernels of every rule, in one library; and a network in one launch."""
    g = Graph()
    for build in RULES:
        g.output(build(g))
    compiled = tvmcnn.compile(g.model(), TARGET, tmp_path / "rules.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    rules = {step.choice.rule for step in compiled.program.steps}
    winograd(4)
    planes = Graph()
    planes.output(three_by_three(planes))
    rules |= {step.choice.rule for step in tvmcnn.compile(planes.model(), TARGET, tmp_path / "n.so").program.steps}
    for precision in ("tf32", "fp16"):
        products = Graph()
        for build in MMA:
            products.output(build(products))
        compiled = tvmcnn.compile(products.model(), TARGET, tmp_path / f"{precision}.so", precision=precision)
        rules |= {step.choice.rule for step in compiled.program.steps}
    alone = tvmcnn.compile(lenet(2), TARGET, tmp_path / "lenet.so")
    assert rules | {step.choice.rule for step in alone.program.steps} == {*cuda.RULES}


@pytest.mark.parametrize("barrier", ["before", "behind", ""])
def test_races_are_seen(barrier: str, judged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the order of threads, where a barrier is missing; and blocks that write one element."""
    edit = MISTAKES[f"no barrier {barrier}"][0] if barrier else (lambda text: re.sub(r"blockIdx\.x", "0", text))
    g = Graph()
    g.output(conv(g))
    real = device_code
    monkeypatch.setattr(cuda, "device_code", lambda *a: dataclasses.replace(d := real(*a), text=edit(d.text)))
    library = tvmcnn.compile(g.model(), TARGET, tmp_path / "network.so", verify=False).path
    code = f"import tvmcnn, numpy as np; tvmcnn.load({str(library)!r})(np.zeros((1, 5, 11, 14), np.float32))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"two {'threads' if barrier else 'blocks'} race" in done.stderr


def lost_part(patch: pytest.MonkeyPatch) -> None:
    """The last part of a split sum is not added."""
    real = gemm.extents
    patch.setattr(gemm, "extents", lambda t: (real(t)[0] - 1, *real(t)[1:]) if len(t.shape) == 5 else real(t))


def next_pixel(patch: pytest.MonkeyPatch) -> None:
    """Every term gathers the next pixel."""
    real = gemm._gather
    patch.setattr(gemm, "_gather", lambda *given: lambda i, g, q, p: real(*given)(i, g, q, p + 1))


def wrong_matrix(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The last row of a transform is twice too large."""
    real = MATRICES[4, 3]
    rows = (*getattr(real, name)[:-1], tuple(2 * factor for factor in getattr(real, name)[-1]))
    return lambda patch: patch.setattr(winograd_planes, "MATRICES", {(4, 3): dataclasses.replace(real, **{name: rows})})


# Of "prologue" and "full_rows" the terms fill their tiles: a short sum loses a term and not a zero.
EDITS: dict[str, tuple[Build, Callable[[pytest.MonkeyPatch], None]]] = {
    "gemm_conv": (prologue, short_reduction(gemm)),
    "gemm_partial": (split, next_pixel),
    "gemm_sum": (split, lost_part),
    "grouped_conv": (depthwise, short_reduction(gemm)),
    "gemm_dense": (full_rows, short_reduction(gemm)),
    "gemv": (row, short_reduction(gemm)),
    "softmax_along": (softmax, short_reduction(norm)),
    "whole": (tiny, short_reduction(gemm)),
    "mma": (split, next_pixel),
    "winograd_in": (three_by_three, wrong_matrix("bt")),
    "winograd_gemm": (three_by_three, short_reduction(winograd_planes)),
    "winograd_out": (three_by_three, wrong_matrix("at")),
}


@pytest.mark.parametrize("algorithm", EDITS)
def test_planted_bug_is_caught(
    algorithm: str, winograd: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real edit of each expression that is for GPUs: nothing is written. Without it the same model passes."""
    build, plant = EDITS[algorithm]
    if build is three_by_three:
        winograd(4)
    g = Graph()
    g.output(build(g))
    precision = "fp16" if algorithm == "mma" else "fp32"
    right = tvmcnn.compile(g.model(), TARGET, tmp_path / "right.so", precision=precision)
    assert algorithm in {word for step in right.program.steps for word in (step.choice.algorithm, step.choice.rule)}
    plant(monkeypatch)
    with pytest.raises(VerifyError, match="differs from NumPy"):
        tvmcnn.compile(g.model(), TARGET, tmp_path / "wrong.so", precision=precision)
    assert not (tmp_path / "wrong.so").exists()


# ---- the library ----------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path) -> Compiled:
    g = Graph()
    g.output(g.node("Softmax", g.conv(g.input(1, 5, 6, 7), 9, (2, 3)), axis=1))
    return tvmcnn.compile(g.model(), TARGET, tmp_path / "net.so")


class OnDevice:
    """An array that says that it lies on a GPU, as one of PyTorch or CuPy does."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        ctypes.c_int32.from_address(pointer(capsule, b"dltensor") + 8).value = CUDA  # behind the address of the data
        return capsule


def test_arrays_on_a_gpu(library: Compiled) -> None:
    """Read and written where they are."""
    net = tvmcnn.load(library.path)
    x = np.random.default_rng(6).standard_normal(net.inputs[0].shape, dtype=np.float32)
    y = np.full(net.outputs[0].shape, np.nan, np.float32)
    out = OnDevice(y)
    assert net(OnDevice(x), out=out) is out
    np.testing.assert_array_equal(y, net(x))
    with pytest.raises(InputError, match="the outputs must be given"):
        net(OnDevice(x))
    with pytest.raises(InputError, match="must be C-contiguous float32 1x5x6x7, on the device of the first"):
        net(OnDevice(x[:, :4].copy()), out=out)
    with pytest.raises(InputError, match="on the device of the first"):
        net(OnDevice(x), out=y)


def test_batches(tmp_path: Path) -> None:
    """Several batch sizes share their weights and kernels' text."""
    g = Graph()
    g.output(g.node("Softmax", g.conv(g.input(1, 5, 6, 7), 9, (2, 3)), axis=1))
    model = g.model()
    compiled = tvmcnn.compile(model, TARGET, tmp_path / "net.so", batch=[1, 4])
    net, alone = tvmcnn.load(compiled.path), tvmcnn.load(tvmcnn.compile(model, TARGET, tmp_path / "one.so").path)
    x = np.random.default_rng(7).standard_normal((6, 5, 6, 7), dtype=np.float32)
    for image, y in zip(x, net(x), strict=True):
        np.testing.assert_allclose(y, alone(image[None])[0], rtol=1e-5)
    assert compiled.code["cuda"]().count("_on_devices(") == 1


def test_c_entries(library: Compiled) -> None:
    """The host's entry, the device's, and a NULL among the arguments."""
    native = ctypes.CDLL(str(library.path))
    net = tvmcnn.load(library.path)
    x = np.random.default_rng(3).standard_normal(net.inputs[0].shape, dtype=np.float32)
    assert native.net_check() == 0
    for entry in ("net_run", "net_run_device"):  # the shim's device memory is the host's
        y = np.empty(net.outputs[0].shape, np.float32)
        assert native[entry](x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), None) == 0
        np.testing.assert_array_equal(y, net(x))
        assert native[entry](None, y.ctypes.data_as(ctypes.c_void_p), None) == 1


def test_buffers_may_change(library: Compiled) -> None:
    """The graph of launches gets the new addresses."""
    net = tvmcnn.load(library.path)
    rng = np.random.default_rng(4)
    found = [(x, net(x)) for x in (rng.standard_normal(net.inputs[0].shape, dtype=np.float32) for _ in range(3))]
    for x, y in found:
        np.testing.assert_array_equal(net(x), y)


def test_runner(library: Compiled) -> None:
    """What it has in common with a CPU's, and what it has not."""
    net = tvmcnn.load(library.path)
    x = np.zeros(net.inputs[0].shape, np.float32)
    call = net.bind(x, out=(y := np.empty(net.outputs[0].shape, np.float32)))
    x[:] = np.random.default_rng(5).standard_normal(x.shape)
    assert call() is y
    np.testing.assert_array_equal(y, net(x))
    np.testing.assert_array_equal(net.run(None, {net.inputs[0].name: x})[0], y)
    assert [each.name for each in net.profile()] == [kernel["name"] for kernel in net.manifest["kernels"]]
    assert len(net.profile(kernel="k0_conv")) == 1
    with pytest.raises(InputError, match="compile for a CPU to see every tensor"):
        net.activations(x)
    with pytest.raises(InputError, match=r"has the shape \(1, 5, 6, 8\)"):
        net(np.zeros((1, 5, 6, 8), np.float32))
    with pytest.raises(InputError, match="2 inputs given"):
        net(x, x)


def test_entries_begin_with_the_symbol(library: Compiled) -> None:
    """Not with the name, which is what people read."""
    manifest = {**tvmcnn.load(library.path).manifest, "name": "for people"}
    net = GpuRunner(library.path, manifest, 1)
    x = np.random.default_rng(4).standard_normal(net.inputs[0].shape, dtype=np.float32)
    np.testing.assert_array_equal(net(x), tvmcnn.load(library.path)(x))
    assert net.profile()[0].microseconds > 0


def test_package_runs_without_tvmcnn(library: Compiled, tmp_path: Path) -> None:
    """Where neither tvm nor onnx can be imported."""
    write_package(library.path, library.header, tmp_path / "net")
    x = np.random.default_rng(3).standard_normal((1, 5, 6, 7), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    program = """
sys.path.insert(0, "")
import numpy as np, net
np.save("y.npy", net.run(np.load("x.npy")))
print(type(net.network).__name__, sorted(name for name in sys.modules if name.partition(".")[0] in Absent.NAMES))
"""
    done = without_compiler(program, tmp_path)
    assert done.stdout == "GpuRunner []\n", done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), tvmcnn.load(library.path)(x))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(100, "no NVIDIA driver or GPU"), (209, "no code for this GPU"), (2, "no memory left"), (7, "reports an error")],
)
def test_machines_that_cannot(error: int, reason: str, library: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading says why; compiling says that it could not verify."""
    libc = ctypes.CDLL(None)
    libc.setenv(b"CUDA_SHIM_ERROR", str(error).encode(), 1)
    try:
        with pytest.raises(ArtifactError, match=f"made for {TARGET}; .*{reason}"):
            tvmcnn.load(library.path)
        lines: list[str] = []
        g = Graph()
        g.output(row(g))
        again = tvmcnn.compile(g.model(), TARGET, library.path.with_name("other.so"), report=lines.append)
        assert not again.verdicts
        assert any(line.startswith("not verified") and reason in line for line in lines)
    finally:
        libc.unsetenv(b"CUDA_SHIM_ERROR")


def test_manifest(library: Compiled) -> None:
    manifest = tvmcnn.load(library.path).manifest
    assert manifest["target"] == {"name": TARGET, "features": [], "archs": ["sm_80", "sm_90"]}
    assert manifest["precision"] == "float32"
    assert {kernel["tier"] for kernel in manifest["kernels"]} == {"default"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "as in cuda:sm_80"),
        ("cuda:", "as in cuda:sm_80"),
        ("cuda:80", "as in cuda:sm_80"),
        ("cuda:sm_70", "the oldest GPU that tvmcnn compiles for is sm_75"),
    ],
)
def test_targets_that_are_none(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=words):
        tvmcnn.compile(lenet(1), name, tmp_path / "network.so")


def test_without_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "/nowhere/nvcc")
    with pytest.raises(ToolError, match=r"\$NVCC names the CUDA compiler '/nowhere/nvcc'"):
        tvmcnn.compile(lenet(1), TARGET, tmp_path / "network.so")
    monkeypatch.delenv("NVCC")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr("tvmcnn.codegen.cuda.nvcc.PLACES", ())
    monkeypatch.setattr("tvmcnn.codegen.cuda.nvcc._packaged", list)
    with pytest.raises(ToolError, match="pip install"):
        tvmcnn.compile(lenet(1), TARGET, tmp_path / "network.so")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", ["rules", "winograd", "tf32", "fp16", "many images"])
def test_ptxas_spills_nothing(
    case: str, winograd: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ask nvcc itself, where it is installed, about kernels of every rule."""
    monkeypatch.delenv("NVCC")
    try:
        nvcc.nvcc()
    except ToolError as error:
        pytest.skip(str(error))
    builds: dict[str, Any] = {"rules": RULES, "winograd": (three_by_three, three_by_three_pool)}
    g = Graph()
    for build in builds.get(case, MMA):
        g.output(build(g))
    if case == "winograd":
        winograd(4)
    options: dict[str, Any] = {"precision": case} if case in ON_GPUS else {}
    model, lines = lenet(528) if case == "many images" else g.model(), list[str]()
    compiled = tvmcnn.compile(model, TARGET, tmp_path / "net.so", verify=False, report=lines.append, **options)
    taken = [line for line in lines if "registers" in line]
    assert len(taken) == len(compiled.program.steps)
    assert all("on sm_80" in line and "on sm_90" in line for line in taken)
    assert not [line for line in taken if "spilled" in line]


# ---- tuning ---------------------------------------------------------------------------------------------------------


def test_tuning_in_two_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates made here, measured by a script that needs numpy alone, kept here, and compiled with."""
    monkeypatch.setattr(tuning, "MAX_CANDIDATES", 3)
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 9, 7, 10), 70, (3, 3), pads=[1, 1, 1, 1]))
    y = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.output(g.node("Gemm", y, g.draw(70, 40), g.draw(40)))
    model, folder = g.model(), tmp_path / "candidates"
    count = tuning.emit_candidates(model, "cuda:sm_90", folder)
    with pytest.raises(ToolError, match="is there already"):
        tuning.emit_candidates(model, "cuda:sm_90", folder)
    with pytest.raises(ToolError, match="has no results"):
        tuning.collect(folder, tmp_path / "my.jsonl")
    lonely = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(np.__file__).parent.parent)}
    run = [sys.executable, "-S", str(folder / "measure.py")]
    assert (
        subprocess.run(run, env=lonely, check=True, capture_output=True, text=True).stdout.count(" of 2 kernels") == 2
    )
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert sum(line["outcome"] == "ok" for line in lines) == count == 5
    subprocess.run(run, env=lonely, check=True, capture_output=True)  # goes on, and finds nothing to do
    again = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line for line in again if line["outcome"] != "machine"] == [
        line for line in lines if line["outcome"] != "machine"
    ]

    tuned = tuning.collect(folder, tmp_path / "my.jsonl")
    assert (len(tuned.kernels), tuned.wrong, tuned.failed) == (2, 0, 0)
    compiled = tvmcnn.compile(model, "cuda:sm_80,sm_90", tmp_path / "net.so", records=[tmp_path / "my.jsonl"])
    tiers = {step.choice.rule: step.choice.tier for step in compiled.program.steps}
    assert tiers["gemm"] == tiers["gemv"] == "given record"
    other = tvmcnn.compile(model, "cuda:sm_80", tmp_path / "net.so", records=[tmp_path / "my.jsonl"], verify=False)
    assert {step.choice.tier for step in other.program.steps} == {"default"}, "they are for sm_90"


def test_wrong_and_deadly_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told, and have no record."""
    monkeypatch.setattr(tuning, "MAX_CANDIDATES", 4)
    real = device_code

    def planted(step: Any, symbol: str) -> Device:
        device = real(step, symbol)
        config = step.choice.config
        if getattr(config, "maps", 0) == 64:
            return dataclasses.replace(device, text=device.text.replace("max(", "min(", 1))
        if getattr(config, "depth", 0) == 8:
            return dataclasses.replace(device, text=re.sub(r"a03_out_ptr\[", "a03_out_ptr[(1 << 28) + ", device.text))
        return device

    monkeypatch.setattr(cuda, "device_code", planted)
    configs = [GemmConfig(32, 64, 4, 4, 16), GemmConfig(64, 64, 4, 4, 16), GemmConfig(16, 64, 4, 4, 8)]
    monkeypatch.setattr(tuning, "configs", lambda network, choice: configs if choice.rule == "gemm" else [])
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 9, 7, 10), 21, (3, 3), pads=[1, 1, 1, 1])))
    folder = tmp_path / "candidates"
    tuning.emit_candidates(g.model(), "cuda:sm_90", folder)
    subprocess.run([sys.executable, str(folder / "measure.py")], check=True, capture_output=True)
    tuned = tuning.collect(folder, tmp_path / "my.jsonl")
    assert (tuned.wrong, tuned.failed) == (1, 1)
    (record,) = read_records(tmp_path / "my.jsonl")[0]
    assert record.config == configs[0]


def test_mistakes_of_tuning(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="candidates are measured on one kind of GPU"):
        tuning.emit_candidates(lenet(1), TARGET, tmp_path / "candidates")
    with pytest.raises(TargetError, match="candidates are measured on one kind of GPU"):
        tuning.emit_candidates(lenet(1), "native", tmp_path / "candidates")
    assert not (tmp_path / "candidates").exists()


# ---- on a machine with a GPU ----------------------------------------------------------------------------------------


def test_what_a_gpu_machine_gets(tmp_path: Path) -> None:
    """tools/gpu_check.py writes all that its other half reads, and a page of what that finds."""
    pytest.importorskip("onnxruntime")
    import gpu_check

    gpu_check.prepare(tmp_path / "gpu", "lenet5,lenet5:3", TARGET)
    plan = json.loads((tmp_path / "gpu" / "plan.json").read_text())
    assert [entry["name"] for entry in plan] == ["lenet5_b1", "lenet5_b3"]
    for entry in plan:
        net = tvmcnn.load(tmp_path / "gpu" / f"{entry['name']}.so")
        expected = np.load(tmp_path / "gpu" / f"{entry['name']}.npz")["y"]
        x = np.random.default_rng(0).standard_normal(entry["shape"], dtype=np.float32)
        np.testing.assert_allclose(net(x), expected, rtol=0, atol=gpu_check.TOLERANCE * np.abs(expected).max())
    times = {"tvmcnn": 5.0, "eager": 60.0, "graph": 12.0}
    found = {"name": "lenet5_b1", "error": 2e-7, "us": times, "flops": 833040, "bytes": 300000, "passed": True}
    text = gpu_check.page([found], "a GPU", {"gflops": 50e3, "gigabytes": 3000.0})
    assert "| lenet5_b1 | 5.0 | 60.0 |  | 12.0 | 2.40 | 0% | 2% | 2.0e-07 |" in text
