"""The compiler: one arrow from an ONNX file to a native library."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import tvm
from tvm import tirx

from tvmcnn import artifact
from tvmcnn.choose import choose
from tvmcnn.codegen import Scheduled, chain, generate, scratch_folder
from tvmcnn.codegen.cpu import compile_kernels
from tvmcnn.codegen.link import c_compiler
from tvmcnn.errors import ModelError, ToolError, TvmcnnError, VerifyError
from tvmcnn.fusion import fuse
from tvmcnn.importer import c_identifier, import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.manifest import describe, fallbacks, kernel_line
from tvmcnn.network import Array, Program, Shape, Step, dims
from tvmcnn.onnx_file import Model
from tvmcnn.ops import declare, declare_open
from tvmcnn.records import load_records
from tvmcnn.schedule import schedule
from tvmcnn.targets import Target, resolve
from tvmcnn.verify import Verdict, verify_library
from tvmcnn.version import __version__


@dataclass(frozen=True)
class Compiled:
    """What `compile` made: the library's path, its programs (one a batch size), target, verdicts and code."""

    path: Path
    programs: tuple[Program, ...]
    target: Target
    verdicts: tuple[Verdict, ...]
    header: str
    code: Mapping[str, Callable[[], str]] = field(default_factory=dict)  # "tir", "asm", "c": made when asked for

    @property
    def program(self) -> Program:
        """The program of the first batch size."""
        return self.programs[0]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the first batch size, if there was a verification."""
        return self.verdicts[0] if self.verdicts else None

    @property
    def fallbacks(self) -> int:
        """Kernels that no rule of their own takes."""
        return sum(map(fallbacks, self.programs))


def compile(  # noqa: A001 (the contract's name)
    model: Model,
    target: str = "native",
    output: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    input_values: Mapping[str, Array] | None = None,
    records: Iterable[str | PathLike[str]] = (),
    shipped_records: bool = True,
    verify: bool = True,
    activations: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Compiled:
    """Compile an ONNX model into the library `output` (the model's name with .so), and check it against NumPy.

    `input_shapes` and `batch` bind open dimensions or override fixed ones; several batches make one library that takes
    any batch. `input_values` makes inputs constants, which the library then takes no more (those that decide shapes
    must be); `records` are files of measured configs that win over the shipped ones, which `shipped_records` may leave
    out; `report` receives one line a kernel. The file appears whole or not at all.

    Raises ModelError, UnsupportedError, TargetError, ToolError, or VerifyError if the library disagrees with NumPy.
    """
    machine = resolve(target)
    c_compiler()  # missing, it is better said now than after the work
    path = _output_path(model, output)
    report(f"target {machine}{f': this machine, {machine.machine}' if machine.machine else ''}; float32; 1 thread")

    configs = load_records(map(Path, records), shipped=shipped_records)
    name, weights = c_identifier(path.stem), Weights()
    programs, batches = [], _batches(batch, name)
    for size, label in batches:
        network = import_model(model, input_shapes, batch=size, values=input_values, name=label)
        program = lay_out(network, choose(network, fuse(network), machine, configs), weights)
        for line in (*network.notes, *map(kernel_line, program.steps)):
            report(line)
        programs.append(program)
    _check_batches(programs, [size for size, _ in batches])
    scheduled = [_scheduled(program, machine, activations) for program in programs]
    image = generate(scheduled, machine, weights.path)
    versions = {"tvmcnn": __version__, "tvm": tvm.__version__}
    manifest = describe(programs, machine, versions, weights.bytes, activations=activations)
    verdicts = _verified(image, manifest, model) if verify and not machine.missing() else ()
    for entry, verdict in zip((manifest, *manifest["specialisations"]), verdicts, strict=False):
        entry["verification"] = verdict.as_json()
    artifact.write_file(path, artifact.with_trailer(image, manifest))

    for verdict in verdicts:
        report(str(verdict))
    if not verdicts:
        report(f"not verified: {_why_not(verify, machine)}")
    code = {
        "tir": lambda: "\n\n".join(f"# {k}\n{f.script()}" for each in scheduled for k, f in each.kernels.items()),
        "asm": lambda: compile_kernels(_merged(scheduled), machine).inspect_source("asm"),
        "c": lambda: "\n".join(chain.source(s.program, machine, s.opened, f"{name}_weights") for s in scheduled),
    }
    return Compiled(path, tuple(programs), machine, verdicts, chain.header(programs, machine), code)


def _output_path(model: Model, output: str | PathLike[str] | None) -> Path:
    path = Path(output) if output is not None else Path(f"{_stem(model)}.so")
    if path.suffix != ".so":
        raise ToolError(f"output '{path}' ends in '{path.suffix}'; a library's name must end in .so")
    if not path.parent.is_dir():
        raise ToolError(f"cannot write {path}: the folder {path.parent} does not exist")
    return path


def _batches(batch: int | Sequence[int] | None, name: str) -> list[tuple[int | None, str]]:
    """The batch sizes with the names of their programs: lenet5 for the first, lenet5_b8 for another."""
    if batch is None or isinstance(batch, int):
        return [(batch, name)]
    if not batch or len({*batch}) != len(batch):
        found = ", ".join(map(str, batch)) or "none"
        raise ModelError(f"the batches are {found}; they must be different numbers, at least one")
    first, *others = sorted(batch)
    return [(first, name), *((size, f"{name}_b{size}") for size in others)]


def _check_batches(programs: Sequence[Program], batches: Sequence[int | None]) -> None:
    """Refuse what cannot be run in parts: inputs and outputs must lie image by image along their first axis."""
    first, *others = programs
    for program, batch in zip(others, batches[1:], strict=True):
        for kind in ("inputs", "outputs"):
            pairs = zip(getattr(first.network, kind), getattr(program.network, kind), strict=True)
            for one, other in pairs:
                scaled = one.shape and batches[0] and batch and (one.shape[0] * batch // batches[0], *one.shape[1:])
                if other.shape != scaled:
                    raise ModelError(
                        f"'{one.name}' is {dims(one.shape)} for batch {batches[0]} and {dims(other.shape)} for {batch}:"
                        " it does not lie image by image along its first axis, so that one library cannot have both"
                    )


def _scheduled(program: Program, machine: Target, activations: bool) -> Scheduled:
    """Every kernel of a program declared and scheduled, those that hide tensors also unfused."""
    steps = [step for step in program.steps if not step.choice.is_view]
    hiding = [step for step in steps if step.choice.kernel.hidden and activations]
    kernels = {step.choice.name: _kernel(step, machine) for step in steps}
    return Scheduled(program, kernels, {step.choice.name: _open_variant(step, machine) for step in hiding})


def _merged(scheduled: Sequence[Scheduled]) -> dict[str, tirx.PrimFunc]:
    """The kernels of all programs by name; those of further batches after their program's."""
    first, *others = scheduled
    return {**first.kernels, **{f"{s.program.network.name}_{k}": f for s in others for k, f in s.kernels.items()}}


def _kernel(step: Step, machine: Target) -> tirx.PrimFunc:
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


def _open_variant(step: Step, machine: Target) -> tirx.PrimFunc:
    """An unfused function, which stores the tensors that the kernel hides."""
    plain = dataclasses.replace(step.choice, rule="fallback", config=None)
    return schedule(declare_open(step), plain, machine.lanes)


def _verified(image: bytes, manifest: artifact.Manifest, model: Model) -> tuple[Verdict, ...]:
    """The verdicts on the programs of an image. It is loaded from a file of its own, since a loaded file stays mapped.

    Raises VerifyError if one disagrees with NumPy.
    """
    with scratch_folder() as folder:
        trial = folder / "trial.so"
        trial.write_bytes(artifact.with_trailer(image, manifest))
        verdicts = verify_library(trial, model)
    for verdict in verdicts:
        if not verdict.passed:
            raise VerifyError(f"{manifest['name']} is not written: {verdict}")
    return verdicts


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | PathLike) else "model"


def _why_not(verify: bool, machine: Target) -> str:
    if not verify:
        return "it was turned off (--no-verify)"
    return f"this CPU lacks {', '.join(machine.missing())}, which {machine.name} needs"
