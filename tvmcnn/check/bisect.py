"""Bisect: which choice brings an error into a library. They are switched off one at a time, and what is wrong is
compared again.

    pool1 is wrong: k1_conv, Conv+Relu+MaxPool
      without fusion     right   <-- the guilty one
      without layout     still wrong
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.artifact import container
from tvmcnn.artifact.manifest import describe, tensors_of
from tvmcnn.cache import Cache
from tvmcnn.check.verify import TensorError, Verdict, verify_program
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cpu.row_bands import in_one_band
from tvmcnn.choose.records import NONE, pinned
from tvmcnn.codegen.cpu.generate import Functions, compile_functions, generate
from tvmcnn.codegen.workers import JobError
from tvmcnn.configs import DirectConfig
from tvmcnn.errors import ArtifactError, caught
from tvmcnn.files import scratch_folder
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.machine import usable_cpus
from tvmcnn.network import Choice, Network
from tvmcnn.onnx_file import Model
from tvmcnn.precision import precision_of
from tvmcnn.progress import Progress, silent
from tvmcnn.run import load
from tvmcnn.targets import TARGETS, Target
from tvmcnn.worker_process import last_line

# What can be switched off, from the last decision to the first, and what there is in its place.
SWITCHES = {
    "threads": "one thread does all tasks",
    "bands": "rows of a convolution are not cut for threads",
    "schedule": "the loops as the expression is written",
    "config": "tile sizes computed from the shapes, not from records",
    "algorithm": "convolution as the formula is written, not by Winograd",
    "fusion": "each ONNX node a kernel of its own",
    "layout": "plain images, convolved by the plain expression",
}
RIGHT, WRONG, FAILED = "right", "still wrong", "could not be tried"


@dataclass(frozen=True)
class Tried:
    """What became of the wrong tensor when a switch was off; `note` says why one could not be tried."""

    switch: str
    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Bisection:
    """The first wrong tensor, its kernel, and the switches that were tried; without `first` all is well."""

    first: TensorError | None
    kernel: Mapping[str, Any]  # its entry in the manifest
    rebuilt: str  # what came of building the library again as it is
    tried: tuple[Tried, ...]

    @property
    def guilty(self) -> tuple[str, ...]:
        """The switches that alone make the tensor right.

        The first is to blame; later ones decide before it, and take it away too: plain images have no Winograd.
        """
        return tuple(each.switch for each in self.tried if each.outcome == RIGHT) if self.rebuilt == WRONG else ()

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        kernel = {key: self.kernel.get(key) for key in ("name", "ops", "nodes", "algorithm", "rule", "config", "tier")}
        first = None if self.first is None else asdict(self.first)
        return {"first": first, "kernel": kernel, "rebuilt": self.rebuilt, "guilty": self.guilty} | {
            "tried": [asdict(each) for each in self.tried]
        }

    def __str__(self) -> str:
        if self.first is None:
            return "no tensor is wrong: there is nothing to bisect"
        kernel = self.kernel
        head = f"{self.first.name} is wrong: {kernel['name']} ({'+'.join(kernel['ops'])}), {kernel['algorithm']} by the"
        lines = [f"{head} rule {kernel['rule']} ({kernel['tier']})", f"  {'built again as it is':<20} {self.rebuilt}"]
        for each in self.tried:
            mark = "   <-- the guilty choice" if each.switch in self.guilty[:1] else ""
            note = f": {each.note}" if each.note else f" ({SWITCHES[each.switch]})"
            lines.append(f"  without {each.switch:<12} {each.outcome}{note}{mark}")
        return "\n".join([*lines, self._conclusion()])

    def _conclusion(self) -> str:
        kernel = self.kernel["name"]
        if self.rebuilt == RIGHT:
            return "the file is not what this tvmcnn makes of the model: it is of another version, or damaged"
        if not self.guilty:
            return f"no choice alone is to blame: the expression of {kernel} itself is, or what import folded into it"
        return f"{kernel}: the {self.guilty[0]} brings the error in"  # the others leave it out too, being earlier


@caught
def bisect(
    library: str | os.PathLike[str],
    model: Model,
    seed: int = 0,
    *,
    progress: Progress = silent,
) -> Bisection:
    """Find the first wrong tensor of a library, and the choice that makes it wrong.

    Raises ArtifactError for a library that this machine cannot run, or for GPUs.
    """
    for program in load(Path(library).resolve()).programs:
        first, manifest = verify_program(program, library, model, seed).first_wrong, program.manifest
        if first is None:
            continue
        if program.target not in TARGETS:
            raise ArtifactError(f"{library} is for GPUs: only libraries for CPUs can be bisected")
        trial = _Trial(program.path, model, seed, manifest, program.target)
        rebuilt, tried = trial.outcome(first.name, ""), []
        for done, switch in enumerate(SWITCHES):
            progress("switching off", done, len(SWITCHES))
            tried.append(trial.outcome(first.name, switch))
        progress("switching off", len(SWITCHES), len(SWITCHES))
        return Bisection(first, _maker(manifest, first.name), rebuilt.outcome, tuple(tried))
    return Bisection(None, {}, RIGHT, ())


def _maker(manifest: container.Manifest, tensor: str) -> Mapping[str, Any]:
    """The kernel that makes an ONNX tensor, not one that only copies it."""
    kernels = manifest["kernels"]  # in the order that they run: who makes it comes first
    return dict(next(each for each in kernels if tensor in {t["name"] for t in tensors_of(manifest, each)}))


@dataclass(frozen=True)
class _Trial:
    """A library built again, with all of its choices but one."""

    library: Path
    model: Model
    seed: int
    manifest: Mapping[str, Any]
    target: str

    def outcome(self, tensor: str, switch: str) -> Tried:
        """What became of a tensor without a switch; "" builds the library as it is."""
        try:
            with scratch_folder() as folder:
                if switch == "threads":
                    verdict = self._judged(self.library, threads=1)
                else:
                    verdict = self._judged(self._built(switch, folder), threads=None)
        except Exception as error:  # of whatever stage the switch has led astray
            cause = error.__cause__ if isinstance(error, JobError) else None
            return Tried(switch, FAILED, last_line(cause if isinstance(cause, Exception) else error))
        found = next((each for each in (*verdict.outputs, *verdict.tensors) if each.name == tensor), None)
        if found is None:
            return Tried(switch, FAILED, f"{tensor} is no tensor of that library")
        return Tried(switch, RIGHT if found.passed else WRONG)

    def _judged(self, library: Path, threads: int | None) -> Verdict:
        shapes = [entry["shape"] for entry in self.manifest["inputs"]]
        programs = load(library, threads, target=self.target).programs
        program = next(each for each in programs if [list(info.shape) for info in each.inputs] == shapes)
        return verify_program(program, library, self.model, self.seed)

    def _built(self, switch: str, folder: Path) -> Path:
        target = TARGETS[self.target]
        shapes = {entry["name"]: tuple(entry["shape"]) for entry in self.manifest["inputs"]}
        weights = self.manifest["weights"]["kind"]
        network = simplified(import_model(self.model, shapes, name=f"without_{switch}", weights=weights))
        records = NONE if switch == "config" else pinned(self.manifest, self.target)
        choices = choose(
            network,
            fuse(network, together=switch != "fusion"),
            target,
            records,
            precision_of(self.manifest["precision"]),
            exact=switch == "algorithm" or not self._has_winograd(),
            blocked=switch != "layout",
        )
        if switch == "schedule":
            choices = tuple(map(unscheduled, choices))
        if switch == "bands":
            choices = tuple(map(_uncut, choices))
        return built(network, choices, target, folder)

    def _has_winograd(self) -> bool:
        return any(not ALGORITHMS[kernel["algorithm"]].exact for kernel in self.manifest["kernels"])


def built(network: Network, choices: Sequence[Choice], target: Target, folder: Path) -> Path:
    """folder/trial.so, a library of these choices that nobody has compared with anything."""
    weights = Weights()
    program = lay_out(network, choices, weights)
    functions = Functions.of([program], target, activations=True)
    objects = compile_functions(functions, Cache(None), usable_cpus(), silent)
    image = generate(network.name, [functions], objects, weights.path, folder)
    manifest = describe(network.name, [program], target, {"tvmcnn": ""}, weights.bytes, activations=True)
    container.sealed(image, manifest, folder / "trial.so", weights.path)
    return folder / "trial.so"


def unscheduled(choice: Choice) -> Choice:
    """The choice with its loops as written, where that has room on the stack."""
    if choice.is_view or not ALGORITHMS[choice.algorithm].on_stack:
        return choice
    return replace(choice, rule="fallback", tasks=1, expanded=False)


def _uncut(choice: Choice) -> Choice:
    return replace(in_one_band(choice), tasks=1) if isinstance(choice.config, DirectConfig) else choice
