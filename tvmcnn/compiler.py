"""The compiler: one arrow from an ONNX file to a native library."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from tvmcnn import winograd
from tvmcnn.artifact import container
from tvmcnn.artifact.files import written_whole
from tvmcnn.artifact.lock import compare, read_lock, records_digest
from tvmcnn.artifact.manifest import describe, fallbacks, kernel_line
from tvmcnn.cache import Cache, digest_of, file_digest, sources_digest
from tvmcnn.check.verify import Verdict, verify_library
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.fits import refusing
from tvmcnn.choose.records import Records, load_records
from tvmcnn.codegen import no_room, scratch_folder
from tvmcnn.codegen.cpu import chain, dispatch
from tvmcnn.codegen.cpu.generate import Functions, all_sources, archived, compile_functions, generate
from tvmcnn.codegen.cuda import chain as gpu_chain
from tvmcnn.codegen.cuda.generate import Kernels
from tvmcnn.codegen.cuda.generate import generate as generate_for_gpus
from tvmcnn.codegen.cuda.nvcc import nvcc
from tvmcnn.codegen.link import c_compiler, compiler_version
from tvmcnn.codegen.workers import JobError
from tvmcnn.errors import ModelError, ToolError, VerifyError, caught
from tvmcnn.fuse import fuse, multiply_accumulates
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import c_identifier, import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Array, Choice, Network, Program, Shape, dims
from tvmcnn.onnx_file import Model, model_digest, with_external_data
from tvmcnn.precision import PRECISIONS, WORDS
from tvmcnn.progress import Progress, silent
from tvmcnn.run.gpu_runner import why_not_here
from tvmcnn.targets import Gpu, Target, arch_number, cpu_name, resolve_several, usable_cpus
from tvmcnn.version import __version__


@dataclass(frozen=True)
class Compiled:
    """What `compile` made: the library's path, its programs (one a batch size, of each target those one after the
    other), targets, verdicts and code."""

    path: Path
    programs: tuple[Program, ...]
    targets: tuple[Target | Gpu, ...]
    verdicts: tuple[Verdict, ...]
    header: str
    manifest: container.Manifest
    code: Mapping[str, Callable[[], str]] = field(default_factory=dict)  # "tir", "asm", "c": made when asked for

    @property
    def name(self) -> str:
        """The library's name, with which its C symbols begin."""
        return c_identifier(self.path.stem)

    @property
    def target(self) -> Target | Gpu:
        """The target, the best of several."""
        return self.targets[0]

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


@caught
def compile(  # noqa: A001 (the contract's name)
    model: Model,
    target: str = "native",
    output: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    input_values: Mapping[str, Array] | None = None,
    records: str | PathLike[str] | Iterable[str | PathLike[str]] = (),
    own_records: bool = True,
    shipped_records: bool = True,
    verify: bool = True,
    activations: bool = True,
    exact: bool = False,
    precision: str = "fp32",
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    jobs: int | None = None,
    locked: str | PathLike[str] | None = None,
    external_data: str | PathLike[str] | None = None,
) -> Compiled:
    """Compile an ONNX model into the library `output` (the model's name with .so, or a static .a for C programs), and
    check it against NumPy.

    A `target` such as "x86-64-v3,x86-64-v4" makes one library for several classes of CPUs, which chooses when loaded.
    `input_shapes` and `batch` bind open dimensions or override fixed ones; several batches make one library that takes
    any batch. `input_values` makes inputs constants, which the library then takes no more (those that decide shapes
    must be); `records` are files of measured configs, which win over the user's own, and these over the shipped ones:
    `own_records` and `shipped_records` may leave them out, see records.py. `precision` "tf32" or "fp16" rounds the
    factors of large products for a GPU's tensor cores, see precision.py. `report` receives one line a kernel,
    `progress` what is being done and how much of it is; `jobs` bounds the processes that compile, one a CPU otherwise.
    What the cache has is not done again. The file appears whole or not at all; `locked` names a lockfile from which it
    may not differ, see lock.py. `external_data` is a folder, besides the model's own, that its data may lie in.

    Raises ModelError, UnsupportedError, TargetError, ToolError, LockError, or VerifyError if the library disagrees with
    NumPy.
    """
    model = with_external_data(model, external_data)
    files = [records] if isinstance(records, str | PathLike) else list(records)
    machines, path = resolve_several(target), _output_path(model, output)
    if path.suffix == ".a" and isinstance(machines[0], Gpu):
        raise ToolError("a static library is for CPUs: CUDA's runtime must be linked by nvcc, name the output with .so")
    _check_tools(machines[0])
    _check_precision(precision, machines[0])
    lock = read_lock(Path(locked)) if locked is not None else {}
    name, weights, cache = c_identifier(path.stem), Weights(), _cache(report)
    programs: list[list[Program]] = []
    for machine in machines:
        here = f": this machine, {machine.machine}" if isinstance(machine, Target) and machine.machine else ""
        report(f"target {machine}{here}; {WORDS[precision]}")
        configs = load_records(machine, map(Path, files), own=own_records, shipped=shipped_records)
        for note in configs.notes:
            report(note)
        batches = _batches(batch, name if len(machines) == 1 else f"{name}_{machine.name.removeprefix('x86-64-')}")
        found = []
        for size, label in batches:
            network = simplified(import_model(model, input_shapes, batch=size, values=input_values, name=label))
            program = lay_out(network, _chosen(network, machine, configs, precision, exact=exact), weights)
            for line in (*network.notes, *map(kernel_line, program.steps)):
                report(line)
            found.append(program)
        _check_batches(found, [size for size, _ in batches])
        report(_tiers(found))
        if told := winograd.said(step.choice for program in found for step in program.steps):
            report(told)
        if precision != "fp32":
            report(_on_tensor_cores(found))
        programs.append(found)
    everything = list(itertools.chain(*programs))
    made_of = {
        "model": model_digest(model),
        "records": records_digest(everything),
        "weights": file_digest(weights.path),
    }
    versions = _versions(machines[0])
    if locked is not None:
        given: container.Manifest = {"name": name, "targets": [machine.name for machine in machines]}
        compare(lock, {**given, "precision": WORDS[precision], "versions": versions, "sha256": made_of}, Path(locked))
    processes = jobs or usable_cpus()
    code = _generated(name, programs, machines, weights, cache, processes, report, progress, activations=activations)
    manifest, *others = (
        describe(name, each, machine, versions, weights.bytes, precision, functions, activations=code.activations)
        for machine, each, functions in zip(machines, programs, code.functions, strict=True)
    )
    manifest |= {"variants": others, "made_of": made_of}
    verdicts: list[Verdict] = []
    with scratch_folder() as folder:
        image = code.link(folder)
        if locked is not None:
            compare(lock, {"sha256": {"image": file_digest(image)}}, Path(locked))
        for machine, entry in zip(machines, (manifest, *others), strict=True):
            if why_not := _why_not(verify, machine, image, name):
                report(f"{machine.name} is not verified: {why_not}" if others else f"not verified: {why_not}")
            else:
                verdicts += _verified(image, manifest, entry, model, cache, report, progress)
        made = code.archive(folder) if path.suffix == ".a" and code.archive is not None else None
        with written_whole(path) as target_path:
            if made is not None:  # what loads it is a linker: it has no manifest
                shutil.copyfile(made, target_path)
            else:
                container.sealed(image, manifest, target_path, weights.path)
    return Compiled(path, tuple(everything), machines, tuple(verdicts), code.header, manifest, code.shown)


@dataclass(frozen=True)
class _Code:
    """What the programs became: how to link it, its C header, and what can be shown of it."""

    link: Callable[[Path], Path]
    archive: Callable[[Path], Path] | None  # behind `link`; none for GPUs
    header: str
    shown: Mapping[str, Callable[[], str]]
    functions: Sequence[Sequence[Mapping[str, str]]]  # by target and program, of each kernel by its name
    activations: bool  # whether tensors that fusion hides can be computed


def _chosen(
    network: Network, machine: Target | Gpu, configs: Records, precision: str, *, exact: bool
) -> tuple[Choice, ...]:
    if isinstance(machine, Gpu):
        return gpu.choose(network, fuse(network), configs, precision, exact=exact)
    return choose(network, fuse(network), machine, configs, exact=exact)


def _generated(
    name: str,
    programs: Sequence[Sequence[Program]],
    machines: Sequence[Target | Gpu],
    weights: Weights,
    cache: Cache,
    processes: int,
    report: Callable[[str], None],
    progress: Progress,
    *,
    activations: bool,
) -> _Code:
    """Object code of the kernels for each class of CPUs, CUDA C++ for GPUs."""
    first, machine = programs[0], machines[0]
    if isinstance(machine, Gpu):
        kernels = Kernels.of(first, machine, progress)
        return _Code(
            lambda folder: generate_for_gpus(kernels, weights.path, weights.bytes, folder, cache, report, progress),
            None,
            gpu_chain.header(first, machine),
            {"cuda": lambda: kernels.source(weights.bytes), "tir": lambda: _tir(first, machine)},
            [[symbols.kernels for symbols in kernels.symbols]],
            activations=False,
        )
    cpus = [(each, cpu) for each, cpu in zip(programs, machines, strict=True) if isinstance(cpu, Target)]
    classes = [Functions.of(each, cpu, activations=activations) for each, cpu in cpus]
    objects: dict[str, bytes] = {}
    for functions in classes:
        objects |= _compiled(functions, cache, processes, progress)
    shown = {
        "tir": lambda: "\n\n".join(_tir(each, cpu) for each, cpu in cpus),
        "asm": lambda: "\n".join(_assembly(each, cpu) for each, cpu in cpus),
        "c": lambda: "\n".join(all_sources(name, classes)[0].values()),
    }
    one = len(cpus) == 1
    header = chain.header(first, machine) if one else dispatch.header(name, programs, [cpu for _, cpu in cpus])
    return _Code(
        lambda folder: generate(name, classes, objects, weights.path, folder),
        lambda folder: archived(name, classes, folder),
        header,
        shown,
        [[symbols.kernels for symbols in functions.symbols] for functions in classes],
        activations,
    )


def _versions(machine: Target | Gpu) -> dict[str, str]:
    """Of all that decides a library's bytes beside its model and records."""
    found = {"tvmcnn": __version__, "tvm": version("apache-tvm"), "tvm-ffi": version("apache-tvm-ffi")}
    found["cc"] = compiler_version(c_compiler())
    return found | ({"nvcc": compiler_version(nvcc())} if isinstance(machine, Gpu) else {})


def _cache(report: Callable[[str], None]) -> Cache:
    """The user's cache, or none, which is said."""
    cache = Cache.default()
    if not (obstacle := cache.obstacle()):
        return cache
    report(f"nothing of this compile is kept for the next: {obstacle}")
    return Cache(None)


def _check_tools(machine: Target | Gpu) -> None:
    """Raise ToolError for what is missing: it is better said now than after the work."""
    c_compiler()
    if isinstance(machine, Gpu):
        nvcc()
    if find_spec("tvm") is None:  # which is imported only when there is something to compile
        raise ToolError("tvmcnn.compile needs tvm: install it by pip install 'tvmcnn[compiler]'")


def _output_path(model: Model, output: str | PathLike[str] | None) -> Path:
    path = Path(output) if output is not None else Path(f"{_stem(model)}.so")
    if path.suffix not in (".so", ".a"):
        raise ToolError(
            f"output '{path}' ends in '{path.suffix}'; a library's name must end in .so, a static one's in .a"
        )
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


def _tiers(programs: Sequence[Program]) -> str:
    """configs: 18 by shipped records, 3 computed"""
    tiers = Counter(
        step.choice.tier for program in programs for step in program.steps if step.choice.config is not None
    )
    computed = tiers.pop("default", 0)
    counts = [f"{count} by {tier}{'s' if count > 1 else ''}" for tier, count in sorted(tiers.items())]
    return f"configs: {', '.join([*counts, f'{computed} computed'])}"


def _check_precision(precision: str, machine: Target | Gpu) -> None:
    """Raises ToolError for an unknown precision, and for one that the target has not."""
    if precision not in PRECISIONS:
        raise ToolError(f"precision '{precision}' is unknown; allowed are {', '.join(PRECISIONS)}")
    if precision != "fp32" and not isinstance(machine, Gpu):
        raise ToolError(f"precision {precision} is for tensor cores, target cuda:sm_…; {machine.name} computes in fp32")
    if precision == "tf32" and isinstance(machine, Gpu) and (old := [a for a in machine.archs if arch_number(a) < 80]):
        raise ToolError(f"precision tf32 needs sm_80 or later; the target has {', '.join(old)}: choose fp16 for it")


def _on_tensor_cores(programs: Sequence[Program]) -> str:
    """tensor cores: 16 of 21 kernels with products; the others multiply in float32"""
    pairs = [(program.network, step.choice) for program in programs for step in program.steps]
    on = sum(choice.rule == "mma" for _, choice in pairs)
    off = sum(
        choice.rule != "mma" and choice.algorithm != "gemm_sum" and multiply_accumulates(network, choice.kernel) > 0
        for network, choice in pairs
    )
    return f"tensor cores: {on} of {on + off} kernels with products{'; the others multiply in float32' * (off > 0)}"


def _compiled(functions: Functions, cache: Cache, processes: int, progress: Progress) -> dict[str, bytes]:
    """The objects of all functions. A record of somebody else's may not fit: then the user hears of the record."""
    try:
        return compile_functions(functions, cache, processes, progress)
    except JobError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError):
            raise no_room(cause) from cause
        choices = {
            symbols.kernels[step.choice.name]: step.choice
            for program, symbols in zip(functions.programs, functions.symbols, strict=True)
            for step in program.steps
            if step.choice.name in symbols.kernels
        }
        choice = choices.get(error.symbol)
        if choice is None:
            raise cause from cause.__cause__
        with refusing(choice):
            raise cause from cause.__cause__


def _tir(programs: Sequence[Program], machine: Target | Gpu) -> str:
    """The scheduled TVMScript of every kernel."""
    from tvmcnn.codegen.cpu import kernels
    from tvmcnn.codegen.cuda import kernel as cuda

    steps = [step for program in programs for step in program.steps if not step.choice.is_view]
    functions = [
        cuda.scheduled(step) if isinstance(machine, Gpu) else kernels.scheduled(step, machine) for step in steps
    ]
    return "\n\n".join(f"# {step.choice.name}\n{func.script()}" for step, func in zip(steps, functions, strict=True))


def _assembly(programs: Sequence[Program], machine: Target) -> str:
    """The assembly of every kernel, each under its name; those of further batches after their program's."""
    from tvmcnn.codegen.cpu.kernels import scheduled
    from tvmcnn.codegen.cpu.llvm import compile_kernels

    named: dict[str, Any] = {}
    scratch: dict[str, int] = {}
    for index, program in enumerate(programs):
        prefix = f"{program.network.name}_" if index else ""
        steps = [step for step in program.steps if not step.choice.is_view]
        named |= {f"{prefix}{step.choice.name}": scheduled(step, machine) for step in steps}
        scratch |= {f"{prefix}{step.choice.name}": step.choice.scratch_bytes for step in steps}
    text: str = compile_kernels(named, machine, scratch).inspect_source("asm")
    return text


def _verified(
    image: Path,
    manifest: container.Manifest,
    entry: container.Manifest,
    model: Model,
    cache: Cache,
    report: Callable[[str], None],
    progress: Progress,
) -> tuple[Verdict, ...]:
    """The verdicts on the programs of an image for the target of `entry`, its part of the manifest, into which they go.

    A verdict holds for the same image and manifest, which has the model's hash, and the same judge; what the cache has
    is not computed again. Raises VerifyError if a program disagrees with NumPy.
    """
    name = entry["target"]["name"]
    key = digest_of(["verdict", name, file_digest(image), json.dumps(manifest, sort_keys=True), _judge()])
    kept = cache.get(key)
    if kept is not None:
        verdicts = tuple(Verdict.from_json(verdict) for verdict in json.loads(kept))
    else:
        progress("verifying against NumPy", 0, 0)
        verdicts = _judged(image, manifest, name, model)
        progress("verifying against NumPy", 1, 1)
        cache.put(key, json.dumps([asdict(verdict) for verdict in verdicts]).encode())
    for part, verdict in zip((entry, *entry["specialisations"]), verdicts, strict=True):
        part["verification"] = verdict.as_json()
        for_ = f"{name}: " if manifest["variants"] else ""
        report(f"{for_}{verdict}{', when the same library was compiled before' if kept is not None else ''}")
    return verdicts


def _judge() -> str:
    """Who judges: the CPU that runs the library, and all of ours, as the reference, bounds and runner reach far."""
    return f"{sources_digest('.')}, numpy {version('numpy')}, onnx {version('onnx')}, {cpu_name()}"


def _judged(image: Path, manifest: container.Manifest, target: str, model: Model) -> tuple[Verdict, ...]:
    """The library compared with NumPy, from a file of its own: a loaded file stays mapped."""
    trial = image.with_name("trial.so")
    try:
        container.sealed(image, manifest, trial)
    except OSError as error:
        raise no_room(error) from error
    verdicts = verify_library(trial, model, target=target)
    trial.unlink()
    for verdict in verdicts:
        if not verdict.passed:
            raise VerifyError(f"{manifest['name']} is not written: {verdict}")
    return verdicts


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | PathLike) else "model"


def _why_not(verify: bool, machine: Target | Gpu, image: Path, name: str) -> str:
    """Why there is no verification; empty if there is one."""
    if not verify:
        return "it was turned off (--no-verify)"
    if isinstance(machine, Gpu):
        return why_not_here(image, name)
    if missing := machine.missing():
        return f"this CPU lacks {', '.join(missing)}, which {machine.name} needs"
    return ""
