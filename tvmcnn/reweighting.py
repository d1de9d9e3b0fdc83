"""New weights in a compiled library, without code generation: for a model that was trained again.

    lenet5.so, retrained.onnx    -->    the bytes between `weights_at` packed anew, all else as it was, sealed again

The new model is imported, fused, chosen for and laid out as the old one was, with the configs that the library has. Its
kernels must then be the same functions: a function's name is the hash of all that its code depends on, scalar constants
among them. Each constant is packed by its kernel's recipe and lies where the old one lay; constants that were equal,
and so share memory, must be equal again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.artifact import container
from tvmcnn.artifact.container import Manifest
from tvmcnn.artifact.manifest import renamed
from tvmcnn.artifact.weights import half_weights
from tvmcnn.check.verify import Verdict, verify_library
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import pinned
from tvmcnn.codegen.jobs import jobs_of
from tvmcnn.errors import ArtifactError, ModelError, VerifyError, caught
from tvmcnn.files import scratch_folder, written_whole
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out, pack
from tvmcnn.network import Array, Program
from tvmcnn.onnx_file import Model, model_digest, with_external_data
from tvmcnn.precision import precision_of
from tvmcnn.targets import TARGETS, Target
from tvmcnn.version import __version__


@caught
def reweight(
    library: str | PathLike[str],
    model: Model,
    output: str | PathLike[str],
    *,
    verify: bool = True,
    report: Callable[[str], None] = lambda line: None,
    external_data: str | PathLike[str] | None = None,
) -> tuple[Verdict, ...]:
    """Write `library` with the weights of `model` to `output`, compared with NumPy as `compile` does.

    `external_data` is a folder, besides the model's own, that its data may lie in.

    Raises ArtifactError for a library that is none of this version for CPUs, ModelError with the nodes or constants in
    which the model differs in more than weights, VerifyError, and ToolError where `output` cannot be written. The file
    appears whole or not at all.
    """
    path, target, model = Path(library), Path(output), with_external_data(model, external_data)
    whole = container.read_manifest(path)
    if "archs" in whole["target"]:
        raise ArtifactError(f"{path} is for GPUs: compile the model for {whole['target']['name']}")
    if whole["versions"]["tvmcnn"] != __version__ or "code" not in whole:
        raise ArtifactError(
            f"{path} was made by tvmcnn {whole['versions']['tvmcnn']}, this is {__version__}: compile it"
        )
    first, last = whole["code"]["weights_at"]
    if last - first != whole["weights_bytes"]:
        raise ArtifactError(
            f"{path} has weights whose bytes are in it twice, so that their place is unknown: compile it"
        )
    memory = np.zeros(last - first, np.uint8)
    written: dict[int, tuple[str, bytes]] = {}
    for variant in (whole, *whole["variants"]):
        programs = []
        for entry in (variant, *variant["specialisations"]):
            program = _laid_out(model, variant["target"]["name"], entry, whole)
            for name, offset, array in _packed(program, entry):
                _put(memory, written, name, offset, array)
            entry.update(renamed(entry, program))
            programs.append(program)
        variant["weights"] = half_weights(programs)  # whose names and errors are the new model's
    manifest = {key: value for key, value in whole.items() if key not in ("sha256", "code")}
    manifest["metadata"] = dict(programs[0].network.metadata)
    manifest["made_of"] = {
        **whole["made_of"],
        "model": model_digest(model),
        "weights": hashlib.sha256(memory.tobytes()).hexdigest(),
    }
    with scratch_folder() as folder:
        image, weights = folder / "image.so", folder / "weights.bin"
        _spliced(path, image, memory, first)
        weights.write_bytes(memory.tobytes())
        verdicts = _judged(image, manifest, model, weights) if verify else ()
        for verdict in verdicts:
            report(str(verdict))
        with written_whole(target) as place:
            container.sealed(image, manifest, place, weights)
    return verdicts


@caught
def rebuilt(library: str | PathLike[str], model: Model) -> tuple[Program, Target]:
    """The program of a library's smallest batch for the target that `load` takes, laid out anew from its model.

    Raises ModelError if its kernels would be other functions, ArtifactError for a library for GPUs.
    """
    whole = container.read_manifest(library)
    if "archs" in whole["target"]:
        raise ArtifactError(f"{library} is for GPUs")
    variants = [whole, *whole["variants"]]
    variant = next((each for each in variants if not TARGETS[each["target"]["name"]].missing()), whole)
    entries = [variant, *variant["specialisations"]]
    entry = min(entries, key=lambda each: each["inputs"][0]["shape"][:1] if each["inputs"] else [])
    name = variant["target"]["name"]
    return _laid_out(model, name, entry, whole), TARGETS[name]


def _laid_out(model: Model, target: str, entry: Manifest, whole: Manifest) -> Program:
    """The new model's program for a target, with the functions of the old one, its `entry` in the `whole` manifest.

    Raises ModelError where they differ.
    """
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in entry["inputs"]}
    network = simplified(import_model(model, shapes, name=entry["symbol"], weights=whole["weights"]["kind"]))
    machine = TARGETS[target]
    choices = choose(network, fuse(network), machine, pinned(entry, target), precision_of(whole["precision"]))
    program = lay_out(network, choices, Weights())
    functions = jobs_of(program, machine, activations=whole["activations"])[0].kernels
    odd = [
        _what(kernel, functions.get(kernel["name"], ""))
        for kernel in entry["kernels"]
        if kernel["function"] != functions.get(kernel["name"], "")
    ]
    if odd or len(program.steps) != len(entry["kernels"]) or program.arena_bytes != entry["arena_bytes"]:
        raise ModelError(
            f"the model is not the library's with other weights: {'; '.join(odd) or 'it has other kernels'}"
        )
    return program


def _what(kernel: Mapping[str, Any], function: str) -> str:
    """Why a kernel's function is another one, in words."""
    nodes = ", ".join(f"'{name}'" for name in kernel["nodes"])
    if not function:
        return f"it has no kernel of {nodes}"
    scalars = f", or a constant in its code ({', '.join(kernel['scalars'])})" if kernel["scalars"] else ""
    return f"kernel {kernel['name']} of {nodes} would have other code: a shape or an attribute{scalars}"


def _packed(program: Program, entry: Manifest) -> Iterator[tuple[str, int, Array]]:
    """Each constant of the program's kernels, packed, with its place in the library's weights."""
    for step, kernel in zip(program.steps, entry["kernels"], strict=True):
        arrays = pack(step.choice, program.network.constants, program.network.half_weights.kind)
        for (name, array), (_, offset) in zip(arrays, kernel["constants"], strict=True):
            yield name, offset, array


def _put(memory: Array, written: dict[int, tuple[str, bytes]], name: str, offset: int, array: Array) -> None:
    """Write a constant's bytes. Raises ModelError for another that is there already."""
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(data.tobytes()).digest()
    before, known = written.setdefault(offset, (name, digest))
    if known != digest:
        raise ModelError(
            f"'{before}' and '{name}' were equal, share memory in the library, and are not equal any more: compile it"
        )
    memory[offset : offset + len(data)] = data


def _spliced(library: Path, image: Path, memory: Array, first: int) -> None:
    """The library's ELF image with other weights."""
    shutil.copyfile(library, image)
    with library.open("rb") as file, image.open("r+b") as made:
        made.truncate(container.image_bytes(file))
        made.seek(first)
        made.write(memory.tobytes())


def _judged(image: Path, manifest: Manifest, model: Model, weights: Path) -> tuple[Verdict, ...]:
    """The verdicts on each target that this CPU runs, which go into the manifest. Raises VerifyError."""
    trial, found = image.with_name("trial.so"), list[Verdict]()
    container.sealed(image, manifest, trial, weights)
    for variant in (manifest, *manifest["variants"]):
        name = variant["target"]["name"]
        if TARGETS[name].missing():
            continue
        for entry, verdict in zip(
            (variant, *variant["specialisations"]), verify_library(trial, model, target=name), strict=True
        ):
            if not verdict.passed:
                raise VerifyError(f"{manifest['name']} is not written: {verdict}")
            entry["verification"] = verdict.as_json()
            found.append(verdict)
    return tuple(found)
