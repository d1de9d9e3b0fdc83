"""Quantising: a float32 network and a folder of images become a network of 8-bit integers.

onnxruntime quantises (QuantizeLinear and DequantizeLinear around what computes on integers, a scale for each output
channel of a weight); tvmcnn closes and converts the model before, reads images as `tvmcnn run` does, and measures what
was lost.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path

import onnx

from tvmcnn.errors import InputError, ModelError, ToolError, caught
from tvmcnn.files import check_place, scratch_folder, written_whole
from tvmcnn.importer import import_model
from tvmcnn.network import Asked
from tvmcnn.onnx_file import Model, read_model, with_external_data
from tvmcnn.progress import Progress, silent
from tvmcnn.quantising.compare import classes_of, compare
from tvmcnn.quantising.noise import noises
from tvmcnn.quantising.prepare import prepare, refuse_quantised
from tvmcnn.quantising.result import Quantised
from tvmcnn.quantising.samples import Sample, labelled, reader_for, samples_of, spread
from tvmcnn.quantising.sessions import VERSION, session
from tvmcnn.quantising.static import ACTIVATIONS, METHODS, Samples, Settings, quantised
from tvmcnn.run.inputs import pixels_of

CALIBRATE, EVALUATE = 128, 1000  # samples
LISTENED = 32  # samples on which the noise of each tensor is measured


@caught
def quantize(
    model: Model,
    data: str | PathLike[str],
    output: str | PathLike[str],
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    labels: str | PathLike[str] | None = None,
    calibrate: int = CALIBRATE,
    evaluate: int = EVALUATE,
    method: str = "minmax",
    activations: str = "u8",
    per_channel: bool = True,
    keep: Sequence[str] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool = False,
    report: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
    external_data: str | PathLike[str] | None = None,
) -> Quantised:
    """Write a float32 ONNX model as a network of 8-bit integers to `output`, by the images or arrays of the folder
    `data`, and measure what that costs.

    `calibrate` samples give the ranges, by `method` "minmax", "entropy" or "percentile"; on `evaluate` others, if there
    are as many, both networks are compared, with classes from a file of `labels` or from folders by class.
    `activations` are "u8" or "s8"; `per_channel` gives a weight a scale for each output channel; `keep` names nodes
    that stay in float32. Images are normalised by `mean`, `std` and `bgr`, or else as the model's metadata say.
    `report`, `progress`, `input_shapes` and `external_data` are as in `compile`.

    Raises ModelError, UnsupportedError, InputError, or ToolError. The file appears whole or not at all.
    """
    model, data, target = with_external_data(model, external_data), Path(data), Path(output)
    label = os.fspath(model) if isinstance(model, str | PathLike) else "the model"
    settings = _settings(method, activations, per_channel, keep, min(calibrate, evaluate))
    check_place(target, (".onnx",))
    if isinstance(model, str | PathLike) and target.exists() and Path(model).exists() and target.samefile(model):
        raise ToolError(f"the output {target} is the model itself: name another file")
    opened = read_model(model)
    refuse_quantised(opened, label)
    network = import_model(model, input_shapes)
    reader = reader_for(network.inputs, pixels_of(network.metadata, mean, std, bgr))
    samples = samples_of(data, reader, report)
    classes = classes_of([output.shape for output in network.outputs])
    samples = labelled(samples, data, None if labels is None else Path(labels), classes, report)
    known = spread(samples, calibrate, reader.batch)
    tried = _others(samples, known, evaluate, reader.batch)
    report(f"{len(known)} samples for the ranges ({method}), {len(tried)} to compare: {_overlap(known, tried)}")
    report(f"onnxruntime {VERSION} quantises, and runs both networks: in float32, between the roundings to 8 bits")
    with scratch_folder() as folder:
        prepared = prepare(opened, label, input_shapes or {}, folder, report)
        plain = session(prepared.closed, label)
        next(reader.feeds(tried))  # an image that does not fit is told before the work
        found = quantised(prepared.ready, label, settings, Samples(reader, known, progress), folder, report)
    _check(found, label)
    comparison = compare(plain, session(found, f"the quantised {label}"), reader, tried, report, progress)
    heard = Samples(reader, spread(tried, LISTENED, reader.batch), progress, "measuring noise")
    layers = noises(prepared.ready, found, heard, label)
    with written_whole(target) as place:
        onnx.save(found, place)
    sizes = prepared.closed.ByteSize(), target.stat().st_size
    return Quantised(target, method, len(known), *sizes, comparison, layers)


def _check(found: onnx.ModelProto, label: str) -> None:
    """Raise ModelError if what onnxruntime wrote is not valid, or cannot be compiled."""
    try:
        import_model(found)
    except ModelError as error:
        raise ModelError(f"what onnxruntime makes of {label} cannot be compiled: {error}") from error


def _others(samples: Sequence[Sample], known: Sequence[Sample], count: int, batch: int) -> list[Sample]:
    """`count` samples that no range was found by, or of all, if there are not as many."""
    taken = set(known)
    others = [sample for sample in samples if sample not in taken]
    return spread(others if len(others) >= max(count, batch) else samples, count, batch)


def _overlap(known: Sequence[Sample], tried: Sequence[Sample]) -> str:
    count = len(set(known) & set(tried))
    return f"{count} are of both" if count else "none is of both"


def _settings(method: str, activations: str, per_channel: bool, keep: Sequence[str], least: int) -> Settings:
    """Checked. Raises InputError for a word that is none, or a number of samples below 1."""
    for name, given, allowed in (("method", method, METHODS), ("activations", activations, ACTIVATIONS)):
        if given not in allowed:
            raise InputError(f"{name} '{given}' is unknown; allowed are {', '.join(allowed)}")
    if least < 1:
        raise InputError(f"{least} samples cannot be calibrated or compared on; at least 1 is needed")
    return Settings(method, activations, per_channel, tuple(keep))
