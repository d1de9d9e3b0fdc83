"""Options: the values that their words mean, and the files that they name."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tvmcnn.errors import InputError, ModelError
from tvmcnn.network import Array, Asked
from tvmcnn.run.inputs import pixels_of, read_inputs, size_for
from tvmcnn.run.sized import SizedRunner

if TYPE_CHECKING:
    from tvmcnn.run import Net

FORMS = ("expression", "schedule", "llvm", "assembly")
EMITS = ("header", "package", "tir", "asm", "c", "cuda")


def named_shape(text: str) -> tuple[str, Asked]:
    """NAME:1x3x224x224, or NAME:Nx3x224x224 with an open batch"""
    name, colon, extents = text.rpartition(":")
    first, *others = extents.split("x")
    opened = first.isalpha()
    try:
        rest = [int(extent) for extent in (others if opened else [first, *others])]
    except ValueError:
        rest = [0]
    if not colon or not name or min(rest, default=1) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME:1x3x224x224 or NAME:Nx3x224x224")
    return name, (None, *rest) if opened else tuple(rest)


def shapes_of(options: argparse.Namespace) -> list[dict[str, Asked]]:
    """What --input-shape says, size by size: an input that is named several times has as many, one named once has the
    same in each. Raises ModelError where they are not as many."""
    found: dict[str, list[Asked]] = {}
    for name, shape in options.input_shape:
        found.setdefault(name, []).append(shape)
    count = max(map(len, found.values()), default=1)
    if uneven := next((name for name, shapes in found.items() if len(shapes) not in (1, count)), None):
        raise ModelError(f"--input-shape has {len(found[uneven])} shapes of '{uneven}' and {count} of another input")
    return [{name: shapes[place % len(shapes)] for name, shapes in found.items()} for place in range(count)]


def one_size(options: argparse.Namespace) -> dict[str, Asked]:
    """What --input-shape says where there can be one size alone. Raises ModelError for several."""
    sizes = shapes_of(options)
    if len(sizes) > 1:
        raise ModelError(f"--input-shape has {len(sizes)} shapes of one input; only compile takes several")
    return sizes[0]


def emits(text: str) -> tuple[str, ...]:
    """header,asm"""
    kinds = tuple(text.split(","))
    if unknown := [kind for kind in kinds if kind not in EMITS]:
        raise argparse.ArgumentTypeError(f"'{unknown[0]}' cannot be emitted; allowed are {', '.join(EMITS)}")
    return kinds


def code(text: str) -> tuple[str, tuple[str, ...]]:
    """k1_conv, or k1_conv:assembly"""
    kernel, colon, form = text.partition(":")
    if colon and form not in FORMS:
        raise argparse.ArgumentTypeError(f"'{form}' is no form of code; allowed are {', '.join(FORMS)}")
    return kernel, (form,) if colon else FORMS


def floats(text: str) -> tuple[float, ...]:
    """0.485,0.456,0.406"""
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number or numbers separated by commas") from None


def words(text: str) -> tuple[str, ...]:
    """conv1,conv2"""
    return tuple(filter(None, text.split(",")))


def seconds(text: str) -> float:
    """A number above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def batches(text: str) -> int | tuple[int, ...]:
    """8, or 1,8,64"""
    sizes = tuple(positive(word) for word in text.split(","))
    return sizes if len(sizes) > 1 else sizes[0]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def permitted(model: Path, options: argparse.Namespace) -> os.PathLike[str]:
    """The model with the folder that --external-data allows it."""
    if options.external_data is None:
        return model
    from tvmcnn.onnx_file import with_external_data

    return cast("os.PathLike[str]", with_external_data(model, options.external_data))


def read_feeds(net: Net, path: Path, options: argparse.Namespace) -> dict[str, Array]:
    """The arrays of a file by input name; an image is normalised as the options say, or the model itself."""
    pixels = pixels_of(net.manifest["metadata"], options.mean, options.std, options.bgr)
    sizes = [each.inputs for each in net.nets] if isinstance(net, SizedRunner) else [net.inputs]
    return read_inputs(path, size_for(path, sizes), pixels)


def read_labels(path: Path | None) -> list[str]:
    """The lines of a file of class names. Raises InputError for one that cannot be read."""
    if path is None:
        return []
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise InputError(f"cannot read the labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the labels {path}: it is not UTF-8 text") from error
