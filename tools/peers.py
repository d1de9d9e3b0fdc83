"""Other runtimes, each by the two calls that are timed: the plain one, and the one with bound tensors.

A peer is loaded from a file whose shapes are closed, and gets the arrays that tvmcnn gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array
from tvmcnn.run.arrays import ArrayInfo
from tvmcnn.targets import Target


@dataclass(frozen=True)
class Task:
    """What a peer shall run."""

    model: Path
    feeds: Mapping[str, Array]  # in graph order
    outputs: Sequence[ArrayInfo]
    threads: int
    target: Target
    precision: str = "f32"  # OpenVINO's word, of its products


@dataclass(frozen=True)
class Peer:
    """A loaded model."""

    plain: Callable[[], Sequence[Array]]  # the outputs in graph order, as new arrays
    bound: Callable[[], object]  # from and to memory that was given before
    read: Callable[[], Sequence[Array]]  # what `bound` made


@dataclass(frozen=True)
class Kind:
    """A runtime: its package, what it calls its two calls, and how it loads a model."""

    package: str
    plain: str
    bound: str
    load: Callable[[Task], Peer]


def _onnxruntime(task: Task) -> Peer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = task.threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(task.model), options, providers=["CPUExecutionProvider"])
    feeds, outputs, binding = dict(task.feeds), _empty(task), session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for info, array in zip(task.outputs, outputs, strict=True):
        binding.bind_output(info.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    return Peer(
        lambda: session.run(None, feeds),
        lambda: session.run_with_iobinding(binding),
        lambda: outputs,
    )


def _openvino(task: Task) -> Peer:
    import openvino

    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": task.threads,
        "INFERENCE_PRECISION_HINT": task.precision,  # bfloat16 where the CPU has it otherwise
    }
    compiled = openvino.Core().compile_model(str(task.model), "CPU", config)
    arrays = list(task.feeds.values())
    given: Any = arrays[0] if len(arrays) == 1 else arrays  # a list costs 14 µs more
    request, outputs = compiled.create_infer_request(), _empty(task)
    for index, array in enumerate(arrays):
        request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
    for index, array in enumerate(outputs):
        request.set_output_tensor(index, openvino.Tensor(array, shared_memory=True))
    return Peer(
        lambda: list(compiled(given).values()),
        lambda: request.infer(share_outputs=True),  # else it copies them once more
        lambda: outputs,
    )


def _relax(task: Task) -> Peer:
    import onnx
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    shapes = {name: list(array.shape) for name, array in task.feeds.items()}
    module = from_onnx(onnx.load(str(task.model)), shape_dict=shapes)
    target = tvm.target.Target({"kind": "llvm", "mcpu": task.target.name})
    machine = relax.VirtualMachine(relax.build(module, target), tvm.cpu())
    main, arrays = machine["main"], list(task.feeds.values())
    tensors, latest = [tvm.runtime.tensor(array) for array in arrays], [None]

    def outputs(result: Any) -> list[Array]:
        return [value.numpy() for value in ([result] if hasattr(result, "numpy") else result)]

    def bound() -> None:
        latest[0] = main(*tensors)

    return Peer(
        lambda: outputs(main(*map(tvm.runtime.tensor, arrays))),
        bound,
        lambda: outputs(latest[0]),
    )


PEERS = {
    "onnxruntime": Kind("onnxruntime", "run", "io-binding", _onnxruntime),
    "openvino": Kind("openvino", "call", "infer", _openvino),
    "relax": Kind("apache-tvm", "call", "on tensors", _relax),
}
DEFAULT = ("onnxruntime", "openvino")


def find(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Versions of the peers named that are there, and a sentence for each that is not.

    Raises InputError for a name that is no peer's.
    """
    versions, missing = {}, []
    for name in names:
        if name == "torch":
            missing.append("torch is left out: it is not available for ONNX files")
            continue
        if name not in PEERS:
            raise InputError(f"there is no peer '{name}'; allowed are {', '.join([*PEERS, 'torch'])}")
        try:
            versions[name] = version(PEERS[name].package)
        except PackageNotFoundError:
            missing.append(f"{name} is left out: the package {PEERS[name].package} is not installed")
    return versions, missing


def loaded(
    names: Sequence[str], task: Task, told: Callable[[str], object] = lambda name: None
) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that run the task, and why the others do not; `told` hears of each before it is loaded."""
    peers: dict[str, Peer] = {}
    failed: dict[str, str] = {}
    for name in names:
        told(name)
        try:
            peers[name] = PEERS[name].load(task)
            peers[name].bound()
        except Exception as error:  # whatever it is, the others still have their turn
            peers.pop(name, None)
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return peers, failed


def difference(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    """The largest max |difference| / max |output| of several outputs; infinite where one side is not finite."""
    worst = 0.0
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            return np.inf
        apart = float(np.max(np.abs(ours.astype(np.float64) - theirs), initial=0))
        relative = apart / max(float(np.max(np.abs(theirs), initial=0)), 1e-30)
        worst = max(worst, relative if np.isfinite(relative) else np.inf)
    return worst


def _empty(task: Task) -> list[Array]:
    return [np.empty(info.shape, info.dtype) for info in task.outputs]
