"""The compiler: one arrow from an ONNX file to a native library."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

from tvmcnn.artifact import container
from tvmcnn.artifact.lock import compare, read_lock, records_digest
from tvmcnn.artifact.manifest import describe, fallbacks, kernel_line
from tvmcnn.artifact.weights import half_weights
from tvmcnn.cache import Cache, file_digest
from tvmcnn.check.new_library import verified
from tvmcnn.check.verify import Verdict
from tvmcnn.choose.records import load_records
from tvmcnn.choose.summary import by_winograd, groups_as_one, in_bfloat16, in_integers, tensor_cores, tiers
from tvmcnn.errors import ModelError, ToolError, caught
from tvmcnn.files import scratch_folder, written_whole
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.half_weights import WEIGHTS
from tvmcnn.half_weights import WORDS as WEIGHT_WORDS
from tvmcnn.importer import import_model, unfolded
from tvmcnn.importer.by_image import Imported, obstacle, with_open_batch
from tvmcnn.importer.pipeline import c_identifier
from tvmcnn.layout import Weights, lay_out
from tvmcnn.machine import usable_cpus
from tvmcnn.network import Array, Network, Program, dims
from tvmcnn.onnx_file import Model, model_digest, with_external_data
from tvmcnn.platforms import Code, Effort, Platform, platform_of
from tvmcnn.precision import PRECISIONS, WORDS
from tvmcnn.progress import Progress, silent
from tvmcnn.sizes import Shapes, Size, sizes_of
from tvmcnn.targets import Machine, Target, resolve_several
from tvmcnn.version import __version__

Report = Callable[[str], None]


@dataclass(frozen=True)
class Compiled:
    """What `compile` made: the library's path, its programs (one a batch size, of each target those one after the
    other), targets, verdicts and code."""

    path: Path
    programs: tuple[Program, ...]
    targets: tuple[Machine, ...]
    verdicts: tuple[Verdict, ...]
    header: str
    manifest: container.Manifest
    code: Mapping[str, Callable[[], str]] = field(default_factory=dict)  # "tir", "asm", "c": made when asked for

    @property
    def name(self) -> str:
        """The library's name, with which its C symbols begin."""
        return c_identifier(self.path.stem)

    @property
    def target(self) -> Machine:
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
    input_shapes: Shapes | Sequence[Shapes] | None = None,
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
    weights: str = "fp32",
    report: Report = lambda line: None,
    progress: Progress = silent,
    jobs: int | None = None,
    locked: str | PathLike[str] | None = None,
    external_data: str | PathLike[str] | None = None,
) -> Compiled:
    """Compile an ONNX model into the library `output` (the model's name with .so, or a static .a for C programs), and
    check it against NumPy.

    A `target` such as "x86-64-v3,x86-64-v4" makes one library for several classes of CPUs, which chooses when loaded.
    `input_shapes` and `batch` bind open dimensions or override fixed ones; of several shapes or batches one library has
    a program each, see sizes.py. A leading dimension that the file leaves open, or that is None, stays open where the
    network treats images one by one, see by_image.py. `input_values` makes inputs constants, which the library then
    takes no more (those that decide shapes must be); `records` are files of measured configs, which win over the user's
    own, and these over the shipped ones: `own_records` and `shipped_records` may leave them out.

    `precision` "tf32" or "fp16" rounds the factors of large products for a GPU's tensor cores, "bf16" those of products
    for CPUs, see precision.py. `weights` "fp16" or "bf16" stores those of large products in half the bytes, rounded
    once, see half_weights.py. `report` receives one line a kernel, `progress` what is being done and how much of it is;
    `jobs` bounds the processes that compile, one a CPU otherwise. What the cache has is not done again. The file
    appears whole or not at all; `locked` names a lockfile from which it may not differ, see lock.py. `external_data` is
    a folder, besides the model's own, that its data may lie in.

    Raises ModelError, UnsupportedError, TargetError, ToolError, LockError, or VerifyError if the library disagrees with
    NumPy.
    """
    model = with_external_data(model, external_data)
    files = [records] if isinstance(records, str | PathLike) else list(records)
    platform, path = platform_of(resolve_several(target)), _output_path(model, output)
    _check(platform, path, precision, weights)
    lock = read_lock(Path(locked)) if locked is not None else {}
    name, packed, cache = c_identifier(path.stem), Weights(), _cache(report)
    programs, imported = list[list[Program]](), dict[str, Network]()
    sizes = sizes_of(name, input_shapes, batch)
    networks = _networks(model, sizes, input_values, weights)
    for machine in platform.machines:
        _report_target(machine, precision, report)
        configs = load_records(machine, [Path(file) for file in files], own=own_records, shipped=shipped_records)
        for note in configs.notes:
            report(note)
        prefix, found = _prefix(name, machine, platform), list[Program]()
        named = [dataclasses.replace(each, name=prefix + each.name.removeprefix(name)) for each in networks]
        imported |= {network.name: network for network in named}
        for each in named:
            network = simplified(each, in_bytes=machine.multiplies_bytes, in_words=machine.in_words)
            kernels = fuse(network)
            choices = platform.choose(network, kernels, machine, configs, precision, exact=exact)
            found.append(lay_out(network, choices, packed))
        _report_programs(found, machine, precision, report)
        programs.append(found)
    made_of = {
        "model": model_digest(model),
        "records": records_digest(list(itertools.chain(*programs))),
        "weights": file_digest(packed.path),
    }
    versions = _versions(platform)
    if locked is not None:
        request: container.Manifest = {"name": name, "targets": [machine.name for machine in platform.machines]}
        request |= {"precision": WORDS[precision], "weights": WEIGHT_WORDS[weights]}
        compare(lock, {**request, "versions": versions, "sha256": made_of}, Path(locked))
    code = platform.generate(
        name, programs, packed, Effort(cache, jobs or usable_cpus(), report, progress, activations)
    )
    manifest, *others = (
        describe(name, each, machine, versions, packed.bytes, precision, functions, activations=code.activations)
        for machine, each, functions in zip(platform.machines, programs, code.functions, strict=True)
    )
    manifest |= {"variants": others, "made_of": made_of}
    verdicts: list[Verdict] = []
    with scratch_folder() as folder:
        image = code.link(folder)
        if locked is not None:
            compare(lock, {"sha256": {"image": file_digest(image)}}, Path(locked))
        for machine, entry in zip(platform.machines, (manifest, *others), strict=True):
            why_not = platform.why_not_here(machine, image, name) if verify else "it was turned off (--no-verify)"
            if why_not:
                report(f"{machine.name} is not verified: {why_not}" if others else f"not verified: {why_not}")
            else:
                verdicts += verified(image, manifest, entry, model, imported, cache, report, progress)
        _write(path, image, manifest, packed, code, folder)
    everything = tuple(itertools.chain(*programs))
    return Compiled(path, everything, tuple(platform.machines), tuple(verdicts), code.header, manifest, code.shown)


# ---- the request ----------------------------------------------------------------------------------------------------


def _check(platform: Platform, output: Path, precision: str, weights: str) -> None:
    """Raise ToolError for what is missing or unknown: it is better said now than after the work."""
    if precision not in PRECISIONS:
        raise ToolError(f"precision '{precision}' is unknown; allowed are {', '.join(PRECISIONS)}")
    if weights not in WEIGHTS:
        raise ToolError(f"weights '{weights}' are unknown; allowed are {', '.join(WEIGHTS)}")
    platform.check(output, precision, weights)
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


def _stem(model: Model) -> str:
    return Path(model).stem if isinstance(model, str | PathLike) else "model"


def _prefix(name: str, machine: Machine, platform: Platform) -> str:
    """The name of a machine's first program: the library's, and of several machines lenet5_v4."""
    return name if len(platform.machines) == 1 else f"{name}_{machine.short}"


def _networks(model: Model, sizes: Sequence[Size], values: Mapping[str, Array] | None, weights: str) -> list[Network]:
    """The network of each size, imported once for all machines, its batch open where that is proved."""
    closed = [
        import_model(model, size.shapes, batch=size.batch, values=values, name=size.name, weights=weights)
        for size in sizes
    ]
    _check_batches(model, sizes, closed, values)
    return [
        with_open_batch(network, functools.partial(_at_batch, model, size, values))
        for size, network in zip(sizes, closed, strict=True)
    ]


def _check_batches(
    model: Model, sizes: Sequence[Size], networks: Sequence[Network], values: Mapping[str, Array] | None
) -> None:
    """Refuse batches of one image that cannot be run in parts: a network must treat images one by one."""
    made = list(zip(sizes, networks, strict=True))
    for _, same in itertools.groupby(made, lambda each: [tensor.shape[1:] for tensor in each[1].inputs]):
        (_, first), *others = same
        for size, network in others:
            graph = unfolded(model, size.shapes, batch=size.batch, values=values)
            if why := obstacle(first, network, graph):
                few, many = (dims(each.inputs[0].shape) for each in (first, network))
                raise ModelError(f"{why}; so one library cannot have both {few} and {many}: compile one for each")


def _at_batch(model: Model, size: Size, values: Mapping[str, Array] | None, batch: int) -> Imported:
    network = import_model(model, size.shapes, batch=batch, values=values)
    return network, unfolded(model, size.shapes, batch=batch, values=values)


def _versions(platform: Platform) -> dict[str, str]:
    """The versions of all that decides a library's bytes, apart from its model and records."""
    ours = {"tvmcnn": __version__, "tvm": version("apache-tvm"), "tvm-ffi": version("apache-tvm-ffi")}
    return ours | platform.versions()


def _cache(report: Report) -> Cache:
    """The user's cache, or none, which is said."""
    cache = Cache.default()
    if not (obstacle := cache.obstacle()):
        return cache
    report(f"nothing of this compile is kept for the next: {obstacle}")
    return Cache(None)


# ---- what is told, and what is written ------------------------------------------------------------------------------


def _report_target(machine: Machine, precision: str, report: Report) -> None:
    here = f": this machine, {machine.machine}" if machine.machine else ""
    report(f"target {machine}{here}; {WORDS[precision]}")


def _report_programs(programs: Sequence[Program], machine: Machine, precision: str, report: Report) -> None:
    """Tell every kernel and every decision that a user may want to overrule."""
    for program in programs:
        if len(programs) > 1:
            report(f"{program.network.name}: {', '.join(map(str, program.network.inputs))}")
        kind = program.network.half_weights.kind
        for line in (*program.network.notes, *(kernel_line(step, kind) for step in program.steps)):
            report(line)
    report(tiers(programs))
    choices = [step.choice for program in programs for step in program.steps]
    half = half_weights(programs)["text"]
    for told in filter(None, (half, in_integers(choices), by_winograd(choices), groups_as_one(choices))):
        report(told)
    if precision != "fp32":
        report(in_bfloat16(programs, machine) if isinstance(machine, Target) else tensor_cores(programs))


def _write(path: Path, image: Path, manifest: container.Manifest, weights: Weights, code: Code, folder: Path) -> None:
    """Write the library, or the static one of its objects, whole or not at all."""
    archive = code.archive(folder) if path.suffix == ".a" and code.archive is not None else None
    with written_whole(path) as target:
        if archive is not None:  # what loads it is a linker: it has no manifest
            shutil.copyfile(archive, target)
        else:
            container.sealed(image, manifest, target, weights.path)
