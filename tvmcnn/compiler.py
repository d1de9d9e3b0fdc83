"""The compiler: one arrow from an ONNX file to a native library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import tvm
from tvm import tirx

from tvmcnn import artifact
from tvmcnn.choose import choose
from tvmcnn.codegen import chain, generate, scratch_folder
from tvmcnn.codegen.cpu import compile_kernels
from tvmcnn.codegen.link import c_compiler
from tvmcnn.errors import ToolError, TvmcnnError, VerifyError
from tvmcnn.fusion import fuse
from tvmcnn.importer import c_identifier, import_model
from tvmcnn.layout import lay_out
from tvmcnn.manifest import describe, fallbacks, kernel_line
from tvmcnn.network import Array, Program, Shape, Step
from tvmcnn.onnx_file import Model
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
        return fallbacks(self.program)


def compile(  # noqa: A001 (the contract's name)
    model: Model,
    target: str = "native",
    output: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | None = None,
    input_values: Mapping[str, Array] | None = None,
    records: Iterable[str | PathLike[str]] = (),
    shipped_records: bool = True,
    verify: bool = True,
    activations: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile an ONNX model into the library `output` (the model's name with .so), and check it against NumPy.

    `input_shapes` and `batch` bind open dimensions or override fixed ones; `input_values` makes inputs constants, which
    the library then takes no more (those that decide shapes must be); `records` are files of measured configs that
    win over the shipped ones, which `shipped_records` may leave out; `report` receives one line a kernel. The file
    appears whole or not at all.

    Raises ModelError, UnsupportedError, TargetError, ToolError, or VerifyError if the library disagrees with NumPy.
    """
    machine = resolve(target)
    c_compiler()  # missing, it is better said now than after the work
    path = Path(output) if output is not None else Path(f"{_stem(model)}.so")
    if path.suffix != ".so":
        raise ToolError(f"output '{path}' ends in '{path.suffix}'; a library's name must end in .so")
    if not path.parent.is_dir():
        raise ToolError(f"cannot write {path}: the folder {path.parent} does not exist")
    report(f"target {machine}{f': this machine, {machine.machine}' if machine.machine else ''}; float32; 1 thread")

    name = c_identifier(path.stem)
    network = import_model(model, input_shapes, batch=batch, values=input_values, name=name)
    kernels = fuse(network)
    choices = choose(network, kernels, machine, load_records(map(Path, records), shipped=shipped_records))
    program = lay_out(network, choices)
    for line in (*network.notes, *map(kernel_line, program.steps)):
        report(line)
    scheduled = {step.choice.name: _scheduled(step, machine) for step in program.steps if not step.choice.is_view}
    opened = _open_variants(program, machine) if activations else {}
    image = generate(program, machine, scheduled, opened)
    versions = {"tvmcnn": __version__, "tvm": tvm.__version__}
    manifest = describe(program, machine, versions, activations=activations)
    verdict = _verified(image, manifest, model) if verify and not machine.missing() else None
    artifact.write_file(path, artifact.with_trailer(image, manifest | {"verification": verdict and verdict.as_json()}))

    report(str(verdict) if verdict is not None else f"not verified: {_why_not(verify, machine)}")
    code = {
        "tir": lambda: "\n\n".join(f"# {name}\n{func.script()}" for name, func in scheduled.items()),
        "asm": lambda: compile_kernels(scheduled, machine).inspect_source("asm"),
        "c": lambda: chain.source(program, machine, opened),
    }
    return Compiled(path, program, machine, verdict, chain.header(program, machine), code)


def _scheduled(step: Step, machine: Target) -> tirx.PrimFunc:
    """Declare and schedule one kernel. A record of somebody else's may not fit: then the user hears of the record."""
    try:
        return schedule(declare(step), step.choice, machine.lanes)
    except Exception as error:
        if step.choice.tier != "record":
            raise
        config = " ".join(f"{key}={value}" for key, value in dataclasses.asdict(step.choice.config).items())
        raise TvmcnnError(
            f"the record of {step.choice.kernel} does not fit it: rule {step.choice.rule}, {config}"
        ) from error


def _open_variants(program: Program, machine: Target) -> dict[str, tirx.PrimFunc]:
    """Unfused functions for the kernels that hide tensors, by kernel name."""
    opened = {}
    for step in program.steps:
        if step.choice.kernel.hidden and not step.choice.is_view:
            plain = dataclasses.replace(step.choice, rule="fallback", config=None)
            opened[step.choice.name] = schedule(declare_open(step), plain, machine.lanes)
    return opened


def _verified(image: bytes, manifest: artifact.Manifest, model: Model) -> Verdict:
    """The verdict on an image. It is loaded from a file of its own, since a loaded file stays mapped.

    Raises VerifyError if it disagrees with NumPy.
    """
    with scratch_folder() as folder:
        trial = folder / "trial.so"
        trial.write_bytes(artifact.with_trailer(image, manifest))
        verdict = verify_library(trial, model)
    if not verdict.passed:
        raise VerifyError(f"{manifest['name']} is not written: {verdict}")
    return verdict


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | PathLike) else "model"


def _why_not(verify: bool, machine: Target) -> str:
    if not verify:
        return "it was turned off (--no-verify)"
    return f"this CPU lacks {', '.join(machine.missing())}, which {machine.name} needs"
