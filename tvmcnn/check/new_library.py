"""The check of a library that is new: before its file is written, and once for the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tvmcnn.artifact import container
from tvmcnn.cache import Cache, digest_of, file_digest, sources_digest
from tvmcnn.check.verify import Verdict, verify_library
from tvmcnn.errors import VerifyError
from tvmcnn.files import no_room
from tvmcnn.machine import cpu_name
from tvmcnn.network import Network
from tvmcnn.onnx_file import Model
from tvmcnn.progress import Progress


def verified(
    image: Path,
    manifest: container.Manifest,
    entry: container.Manifest,
    model: Model,
    networks: Mapping[str, Network],
    cache: Cache,
    report: Callable[[str], None],
    progress: Progress,
) -> tuple[Verdict, ...]:
    """The verdicts on the programs of an image for the target of `entry`, its part of the manifest, into which they go.

    `networks` has what import made of the model for each program, by its symbol.
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
        verdicts = _judged(image, manifest, name, model, networks)
        progress("verifying against NumPy", 1, 1)
        cache.put(key, json.dumps([asdict(verdict) for verdict in verdicts]).encode())
    for part, verdict in zip((entry, *entry["specialisations"]), verdicts, strict=True):
        part["verification"] = verdict.as_json()
        for_ = f"{name}: " if manifest["variants"] else ""
        report(f"{for_}{verdict}{', when the same library was compiled before' if kept is not None else ''}")
    return verdicts


def _judge() -> str:
    """Identify the judge: the CPU that runs the library, and all our sources, since reference and bounds reach far."""
    return f"{sources_digest('.')}, numpy {version('numpy')}, onnx {version('onnx')}, {cpu_name()}"


def _judged(
    image: Path, manifest: container.Manifest, target: str, model: Model, networks: Mapping[str, Network]
) -> tuple[Verdict, ...]:
    """The library compared with NumPy, from a file of its own: a loaded file stays mapped."""
    trial = image.with_name("trial.so")
    try:
        container.sealed(image, manifest, trial)
    except OSError as error:
        raise no_room(error) from error
    verdicts = verify_library(trial, model, target=target, networks=networks)
    trial.unlink()
    for verdict in verdicts:
        if not verdict.passed:
            raise VerifyError(f"{manifest['name']} is not written: {verdict}")
    return verdicts
