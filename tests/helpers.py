"""What to feed small models, checks of what they compute, and how far float32 may be from the reference."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tvm import te

import tvmcnn
from tvmcnn import compiler, targets
from tvmcnn.check.reference import reference
from tvmcnn.choose import records
from tvmcnn.compiler import Compiled
from tvmcnn.fuse import exact_sums

Array = np.ndarray[Any, Any]
U = 2.0**-24  # the unit roundoff of float32
SPLIT = "v4 schedules as AVX2"  # see use_target
GUARD = 900.0  # seconds for whatever may hang; no right program comes near, however slow or busy the machine is
TARGETS = ["x86-64-v3", SPLIT if targets.TARGETS["x86-64-v4"].missing() else "x86-64-v4"]


def feeds(model: onnx.ModelProto, seed: int = 1) -> dict[str, Array]:
    """Seeded normal inputs with outliers of ±30 in one value of forty: a misplaced tap cannot hide."""
    rng = np.random.default_rng(seed)
    arrays = {}
    initialized = {tensor.name for tensor in model.graph.initializer}  # old files list them among the inputs
    for value in (value for value in model.graph.input if value.name not in initialized):
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        x = rng.standard_normal(shape)
        arrays[value.name] = np.where(rng.random(shape) < 1 / 40, np.copysign(30, x), x).astype(np.float32)
    return arrays


def use_target(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name to compile for, after what `name` needs is patched in.

    Only a CPU with AVX-512 can run its code, but any can run its schedules: SPLIT chooses and schedules for 16 lanes
    and 32 registers, and leaves it to LLVM to cut each vector into two of AVX2. It cannot cut the instructions that
    multiply bytes.
    """
    if name != SPLIT:
        return name
    narrow, wide = targets.TARGETS["x86-64-v3"], targets.TARGETS["x86-64-v4"]
    kept = {word: getattr(narrow, word) for word in ("name", "cpu", "features", "cpu_tests")}
    split = dataclasses.replace(wide, **kept)
    monkeypatch.setitem(targets.TARGETS, narrow.name, split)
    for test in ("multiplies_bytes", "multiplies_rows"):
        monkeypatch.setattr(exact_sums, test, lambda *_: False)
    load = records.load_records
    monkeypatch.setattr(compiler, "load_records", lambda target, *files, **kinds: load(wide, *files, **kinds))
    return narrow.name


def verified(model: onnx.ModelProto, folder: Path, target: str = "native") -> Compiled:
    """Compile a model; compile's own verification must have compared it with the reference."""
    compiled = tvmcnn.compile(model, target, folder / "x.so")
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    return compiled


def check(model: onnx.ModelProto, folder: Path, target: str = "x86-64-v3", seed: int = 1) -> Compiled:
    """Compile a model, run it, and compare every output and every inner tensor with the reference.

    The graph runner must agree with the single native call bit for bit; all else within `error_bounds`.
    """
    compiled = tvmcnn.compile(model, target=target, output=folder / "x.so", verify=False)
    net = tvmcnn.load(compiled.path)
    arrays = feeds(model, seed)
    ordered = [arrays[info.name] for info in net.inputs]
    answer, steps = net(*ordered), net.step_by_step(*ordered)
    answers = answer if isinstance(answer, tuple) else (answer,)
    for info, one, other in zip(net.outputs, answers, steps if isinstance(steps, tuple) else (steps,), strict=True):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32), err_msg=f"{info.name}, step by step")
    assert [info.name for info in net.outputs] == [value.name for value in model.graph.output]
    expected = reference(model, arrays, every_tensor=True)
    bounds = error_bounds(model, expected)
    shown = net.activations(*ordered)
    gone = set(expected) - set(shown) - set(net.folded) - set(arrays)
    assert not gone, f"neither shown nor said to be folded: {sorted(gone)}"
    known = {name: array for name, array in shown.items() if name in expected}  # others: made by an opset's conversion
    for name, found in [*known.items(), *zip((info.name for info in net.outputs), answers, strict=True)]:
        assert_within(name, found, expected[name], bounds[name])
    return compiled


def assert_within(name: str, found: Array, wanted: Array, bound: Array) -> None:
    """Every element within its own bound; NaN never is."""
    assert found.shape == wanted.shape, f"{name}: {found.shape}, the reference has {wanted.shape}"
    excess = np.abs(found.astype(np.float64) - wanted) - np.broadcast_to(bound, wanted.shape)
    bad = ~(excess <= 0)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        text = f"{name} {wanted.shape}: {int(bad.sum())} of {bad.size} elements off, the first at {first}:"
        pytest.fail(f"{text} {found[first]:.8g}, not {wanted[first]:.8g}")


# ---- tolerance ------------------------------------------------------------------------------------------------------


def error_bounds(model: onnx.ModelProto, values: Mapping[str, Array]) -> dict[str, Array]:
    """How far each element of each tensor may be from the reference, which is exact but for one rounding.

    A running error analysis, element by element. Let E_x bound the error of x. For a sum of K products,
    y = Σ w_k·x_k + b: each product is rounded once and passes at most K additions, whatever their order, so it reaches
    y times (1 + δ)^(K+1), |δ| ≤ u. Thus

        E_y = Σ |w_k|·E_k + γ·(Σ |w_k|·(|x_k| + E_k) + |b|),    γ = (K + SLACK)·u,

    and both sums are the same node on absolute values, evaluated by the reference. SLACK covers the rounding of the
    reference, of a mean's divisor, of α·w or of a batch normalisation folded into w. Relu, Clip and MaxPool never widen
    a difference; what only moves elements moves their bounds. The others are first order in E: |∂f|·E + rounding.
    """
    initial = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known: dict[str, Array] = {**initial, **values}
    bounds: dict[str, Array] = {n: np.zeros(a.shape) for n, a in known.items() if n in initial or n not in _made(model)}
    for node in model.graph.node:
        operands = [known[name] if name else None for name in node.input]
        errors = [bounds[name] if name else None for name in node.input]
        y = np.abs(known[node.output[0]].astype(np.float64))
        bounds[node.output[0]] = _propagate(node, operands, errors, y, model) + 2 * U * y
    return bounds


SLACK = 12
TRANSCENDENTAL = 16 * U  # relative error allowed to float32 e^x and to tanh: 8 units in the last place


def _made(model: onnx.ModelProto) -> set[str]:
    return {node.output[0] for node in model.graph.node}


def _propagate(node: onnx.NodeProto, x: list[Any], e: list[Any], y: Array, model: onnx.ModelProto) -> Array:
    op = node.op_type
    a = [None if v is None else np.abs(v) if v.dtype.kind == "f" else v for v in x]
    if op in ("Conv", "Gemm", "MatMul"):
        terms = {
            "Conv": lambda: np.prod(x[1].shape[1:]),
            "Gemm": lambda: x[0].shape[1],
            "MatMul": lambda: x[0].shape[-1],
        }
        spread = _on_sizes(node, [e[0], a[1], *(np.zeros_like(v) for v in a[2:])], model)
        size = _on_sizes(node, [a[0] + e[0], *a[1:]], model)
        return spread + (terms[op]() + SLACK) * U * size
    if op in ("AveragePool", "GlobalAveragePool"):
        shape = next((at.ints for at in node.attribute if at.name == "kernel_shape"), x[0].shape[2:])
        terms_ = float(np.prod(shape)) + SLACK
        return _on_sizes(node, [e[0]], model) + terms_ * U * _on_sizes(node, [a[0] + e[0]], model)
    if op in ("Add", "Sub"):
        return e[0] + e[1] + U * (e[0] + e[1])
    if op == "Mul":
        return a[0] * e[1] + a[1] * e[0] + e[0] * e[1]
    if op == "Div":
        return 1.01 * (e[0] + y * e[1]) / a[1]
    if op == "BatchNormalization":
        epsilon = next((at.f for at in node.attribute if at.name == "epsilon"), 1e-5)
        form = (-1, *(1,) * (x[0].ndim - 2))
        scale, shift, mean = (v.reshape(form) for v in (a[1] / np.sqrt(a[4] + epsilon), a[2], a[3]))
        return scale * e[0] + SLACK * U * (scale * (a[0] + e[0] + mean) + shift)
    if op == "Sigmoid":  # |σ'| ≤ 1/4; e^−x is relatively wrong by the error of x and of e^x, times 1 − σ ≤ 1
        return e[0] / 4 + (TRANSCENDENTAL + U * a[0]) * y
    if op == "Tanh":  # from e^x: near 0 the error is one of the rounding of 1 ± x, not of x
        return e[0] + TRANSCENDENTAL * y + 4 * U
    if op == "Softmax":  # each exponent is off by the errors of x, of the maximum, and of their difference's rounding
        old = next(entry.version for entry in model.opset_import if entry.domain == "") < 13
        axis = next((at.i for at in node.attribute if at.name == "axis"), 1 if old else -1) % x[0].ndim
        axes = tuple(range(axis, x[0].ndim)) if old else (axis,)  # before 13 all axes from `axis` on were one
        reach = 2 * np.max(e[0] + U * a[0], axis=axes, keepdims=True)
        terms_ = float(np.prod([x[0].shape[k] for k in axes])) + SLACK
        return y * (2 * reach + 2 * TRANSCENDENTAL + terms_ * U) + 1e-37
    if op == "Constant":
        return np.zeros(y.shape)
    if op in ("Relu", "Clip", "Identity", "Dropout", "Cast"):
        return e[0]
    if op == "MaxPool":
        return _on_sizes(node, [e[0]], model)
    if op in ("Concat", "Pad", "Flatten", "Reshape", "Transpose", "DepthToSpace"):
        moved = [v if v is None or v.dtype.kind == "i" else err for v, err in zip(x, e, strict=True)]
        return _on_sizes(node, moved, model)
    raise NotImplementedError(f"no error analysis for {op}")


def _on_sizes(node: onnx.NodeProto, operands: list[Any], model: onnx.ModelProto) -> Array:
    """One node, by the reference, on other operands; its scalar factors as absolute values."""
    names = [f"i{k}" if array is not None else "" for k, array in enumerate(operands)]
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend(names)
    for attribute in copy.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f)
    given = {
        n: np.asarray(v, np.float32 if v.dtype.kind == "f" else v.dtype)
        for n, v in zip(names, operands, strict=True)
        if n
    }
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in given.items()
    ]
    graph = helper.make_graph([copy], "one", infos, [helper.make_empty_tensor_value_info(copy.output[0])])
    one = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=8)
    return reference(one, given)[copy.output[0]].astype(np.float64)


def same_bits_in_any_memory(x: Array, nets: Sequence[tvmcnn.Runner]) -> None:
    """All compute what the first does, also where their arenas, with the scratch of every thread, are full of NaNs."""
    wanted = nets[0](x).tobytes()
    for net in nets:
        assert net(x).tobytes() == wanted
        assert net._arenas, "the call before gave its arena back"
        for _, memory in net._arenas:
            memory.view(np.uint8)[:] = 0xFF
        assert net(x).tobytes() == wanted


def record(kernel: str, rule: str, config: Mapping[str, Any], time: float = 1.0, isa: str = "") -> str:
    """A line of a file of records, for this machine's ISA if none is named, of these versions."""
    entry = {"kernel": kernel, "rule": rule, "config": dict(config), "time_us": time}
    entry |= {"target": {"isa": isa or targets.resolve("native").isa}}
    return json.dumps(entry | {"tvmcnn": tvmcnn.__version__, "tvm": version("apache-tvm")}) + "\n"


ABSENT = """
import sys

class Absent:
    NAMES = {"tvmcnn", "tvm", "onnx", "onnx_ir", "onnxscript", "PIL", "rich", "matplotlib", "onnxruntime", "torch"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_compiler(program: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that can import neither tvmcnn nor what compiling needs.

    By -P and -E neither PYTHONPATH nor the current folder brings anything in.
    """
    command = [sys.executable, "-P", "-E", "-c", ABSENT + program]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=GUARD)


def short_reduction(module: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """A planted bug: the last term of every sum in a module of ops/ is left out."""
    short = SimpleNamespace(**{**vars(te), "reduce_axis": lambda dom, name: te.reduce_axis((0, dom[1] - 1), name)})
    return lambda patch: patch.setattr(module, "te", short)
