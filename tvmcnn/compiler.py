"""The compiler: one arrow from an ONNX file to a native library."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import tvm
from tvm import tirx

from tvmcnn import artifact
from tvmcnn.choose import choose
from tvmcnn.codegen import chain
from tvmcnn.codegen.cpu import compile_kernels
from tvmcnn.codegen.link import c_compiler, link
from tvmcnn.errors import ToolError, TvmcnnError, VerifyError
from tvmcnn.fusion import fuse, multiply_accumulates
from tvmcnn.importer import Model, c_identifier, import_model
from tvmcnn.layout import lay_out, stored_bytes
from tvmcnn.network import Network, Program, Shape, Step
from tvmcnn.ops import declare, declare_open
from tvmcnn.records import load_records
from tvmcnn.schedule import schedule
from tvmcnn.targets import Target, resolve
from tvmcnn.verify import Verdict, verify_library
from tvmcnn.version import __version__


@dataclass(frozen=True)
class Compiled:
    """What `compile` made: the library's path, the program in it, its target, the verdict, and the text of its code."""

    path: Path
    program: Program
    target: Target
    verdict: Verdict | None
    header: str
    code: Mapping[str, Callable[[], str]] = field(default_factory=dict)  # "tir", "asm", "c": made when asked for

    @property
    def fallbacks(self) -> int:
        """Kernels that no rule of their own takes."""
        return sum(step.choice.rule == "fallback" for step in self.program.steps)


def compile(  # noqa: A001 (the contract's name)
    model: Model,
    target: str = "native",
    output: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | None = None,
    records: Iterable[str | PathLike[str]] = (),
    verify: bool = True,
    activations: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile an ONNX model into the library `output` (the model's name with .so), and check it against NumPy.

    `input_shapes` and `batch` bind open dimensions or override fixed ones; `records` are files of measured configs that
    win over the shipped ones; `report` receives one line a kernel. The file appears whole or not at all.

    Raises ModelError, UnsupportedError, TargetError, ToolError, or VerifyError if the library disagrees with NumPy.
    """
    machine = resolve(target)
    c_compiler()
    path = Path(output) if output is not None else Path(f"{_stem(model)}.so")
    report(f"target {machine}{f': this machine, {machine.machine}' if machine.machine else ''}; float32; 1 thread")

    network = import_model(model, input_shapes, batch=batch, name=c_identifier(path.name.split(".")[0]))
    kernels = fuse(network)
    choices = choose(network, kernels, machine, load_records(Path(p) for p in records))
    program = lay_out(network, choices)
    functions = {step.choice.name: _scheduled(step, machine) for step in program.steps}
    opened = _open_variants(program, machine) if activations else {}

    for line in (*network.notes, *(_kernel_line(step) for step in program.steps)):
        report(line)
    with _scratch_folder() as folder:
        image = _build(folder, program, machine, functions, opened)
        manifest = _manifest(program, machine, bool(activations))
        verdict = None
        if verify and not machine.missing():
            trial = folder / "trial.so"  # a file of its own: the loaded library stays mapped
            trial.write_bytes(artifact.with_trailer(image, manifest))
            verdict = verify_library(trial, model)
            if not verdict.passed:
                raise VerifyError(f"{network.name} is not written: {verdict}")
    manifest["verification"] = verdict.as_json() if verdict is not None else None
    artifact.write_file(path, artifact.with_trailer(image, manifest))
    report(str(verdict) if verdict is not None else f"not verified: {_why_not(verify, machine)}")
    code = {
        "tir": lambda: "\n\n".join(f"# {name}\n{func.script()}" for name, func in functions.items()),
        "asm": lambda: compile_kernels(functions, machine).inspect_source("asm"),
        "c": lambda: chain.source(
            program, machine, [i for i, s in enumerate(program.steps) if s.choice.name in opened]
        ),
    }
    return Compiled(path, program, machine, verdict, chain.header(program, machine), code)


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A folder for the compiler's own files, gone at the end. Raises ToolError where there is no room for them."""
    try:
        with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ToolError(f"cannot write the compiler's own files (in $TMPDIR): {error.strerror}") from error


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | PathLike) else "model"


def _scheduled(step: Step, machine: Target) -> tirx.PrimFunc:
    try:
        return schedule(declare(step), step.choice, machine.lanes)
    except Exception as error:
        if step.choice.tier != "record":
            raise
        config = " ".join(f"{key}={value}" for key, value in dataclasses.asdict(step.choice.config).items())
        raise TvmcnnError(f"the record of {step.choice.kernel} does not fit it: rule {step.choice.rule}, {config}") from error


def _open_variants(program: Program, machine: Target) -> dict[str, tirx.PrimFunc]:
    """Unfused functions for the kernels that hide tensors, by kernel name."""
    opened = {}
    for step in program.steps:
        if step.choice.kernel.hidden:
            plain = dataclasses.replace(step.choice, rule="fallback", config=None)
            opened[step.choice.name] = schedule(declare_open(step), plain, machine.lanes)
    return opened


def _build(
    folder: Path,
    program: Program,
    machine: Target,
    functions: Mapping[str, tirx.PrimFunc],
    opened: Mapping[str, tirx.PrimFunc],
) -> bytes:
    """The ELF image: kernels by LLVM, the chain by the C compiler, linked."""
    name = program.network.name
    named = {f"{name}_{kernel}": func for kernel, func in functions.items()}
    named |= {f"{name}_{kernel}_open": func for kernel, func in opened.items()}
    objects = folder / "kernels.o"
    compile_kernels(named, machine).write_to_file(str(objects))
    steps = [i for i, step in enumerate(program.steps) if step.choice.name in opened]
    return link(folder, name, chain.source(program, machine, steps), program.weights, [objects]).read_bytes()


def _manifest(program: Program, machine: Target, activations: bool) -> artifact.Manifest:
    """What the library says of itself. No time, path or host: the same input gives the same bytes."""
    network = program.network
    return {
        "name": network.name,
        "versions": {"tvmcnn": __version__, "tvm": tvm.__version__},
        "target": {"name": machine.name, "features": list(machine.features)},
        "precision": "float32",
        "threads": 1,
        "inputs": [{"name": t.name, "shape": list(t.shape), "stores": _seen(network, t.name)[1:]} for t in network.inputs],
        "outputs": [{"name": t.name, "shape": list(t.shape)} for t in network.outputs],
        "arena_bytes": program.arena_bytes,
        "weights_bytes": len(program.weights),
        "fallbacks": sum(step.choice.rule == "fallback" for step in program.steps),
        "activations": activations,
        "metadata": dict(network.metadata),
        "folded": dict(network.folded),
        "notes": list(network.notes),
        "kernels": [_kernel_entry(network, step, program) for step in program.steps],
        "verification": None,
    }


def _kernel_entry(network: Network, step: Step, program: Program) -> dict[str, Any]:
    choice, place = step.choice, step.arguments[-1]
    tensor = choice.kernel.output
    moved = sum(stored_bytes(t, layout) for t, layout in zip(choice.sources, choice.reads, strict=True))
    weights = sum(4 * _size(shape) for shape in step.packed.values())
    return {
        "name": choice.name,
        "ops": [node.op for node in choice.kernel.nodes],
        "nodes": [node.name for node in choice.kernel.nodes],
        "algorithm": choice.algorithm,
        "rule": choice.rule,
        "tier": choice.tier,
        "config": dataclasses.asdict(choice.config) if choice.config is not None else None,
        "macs": multiply_accumulates(network, choice.kernel),
        "bytes": moved + weights + stored_bytes(tensor, choice.writes),
        "hidden": [{"name": t.name, "shape": list(t.shape)} for t in choice.kernel.hidden],
        "stores": _seen(network, tensor.name),
        "output": {
            "space": place.space,
            "index": place.index,
            "offset": place.offset,
            "shape": list(tensor.shape),
            "block": choice.writes.block,
            "halo": list(choice.writes.halo),
        },
    }


def _seen(network: Network, name: str) -> list[dict[str, Any]]:
    """The ONNX tensors in the memory of tensor `name`: itself, and its Reshapes, which store nothing of their own."""
    names = [name, *(alias for alias, source in _aliases(network).items() if source == name)]
    return [{"name": n, "shape": list(network.tensors[n].shape)} for n in names if n in network.tensors]


def _aliases(network: Network) -> dict[str, str]:
    """Reshaped tensors by the tensor whose memory they share, through chains of Reshapes."""
    outputs = {tensor.name for tensor in network.outputs}
    sources: dict[str, str] = {}
    for node in network.nodes:
        if node.op == "Reshape" and node.output not in outputs:
            sources[node.output] = sources.get(node.inputs[0], node.inputs[0])
    return sources


def _size(shape: Shape) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _kernel_line(step: Step) -> str:
    choice = step.choice
    config = (
        ""
        if choice.config is None
        else " " + " ".join(f"{k}={v}" for k, v in dataclasses.asdict(choice.config).items())
    )
    return f"{choice.name:<14} {choice.kernel.ops:<24} {choice.algorithm} -> {choice.writes}, rule {choice.rule} ({choice.tier}){config}"


def _why_not(verify: bool, machine: Target) -> str:
    if not verify:
        return "--no-verify"
    return f"this CPU lacks {', '.join(machine.missing())}, which {machine.name} needs"
