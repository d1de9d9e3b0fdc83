"""Options: the values that their words mean, and the files that they name."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tvmcnn.errors import InputError
from tvmcnn.network import Array, Shape
from tvmcnn.run.inputs import pixels_of, read_inputs

if TYPE_CHECKING:
    from tvmcnn.run import Net

FORMS = ("expression", "schedule", "llvm", "assembly")
EMITS = ("header", "package", "tir", "asm", "c", "cuda")


def named_shape(text: str) -> tuple[str, Shape]:
    """NAME:1x3x224x224"""
    name, colon, extents = text.rpartition(":")
    try:
        shape = tuple(int(extent) for extent in extents.split("x"))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME:1x3x224x224")
    return name, shape


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
    return read_inputs(path, net.inputs, pixels)


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
