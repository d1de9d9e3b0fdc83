"""Words and numbers: what options mean, and what commands say."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array, Shape
from tvmcnn.run.inputs import read_inputs

if TYPE_CHECKING:
    from tvmcnn.run import Net

FORMS = ("expression", "schedule", "llvm", "assembly")
EMITS = ("header", "package", "tir", "asm", "c", "cuda")


def fail(sentence: str) -> int:
    """Say what is wrong; the exit status."""
    print(f"tvmcnn: {sentence}", file=sys.stderr)
    return 1


def reporter(options: argparse.Namespace, stream: TextIO | None = None) -> Callable[[str], None]:
    """Lines for a person: on `stream`, by default standard output, or standard error where that belongs to JSON.

    A terminal gets long ones folded at its width, a file or a pipe gets them whole.
    """
    target = stream or (sys.stderr if options.json else sys.stdout)
    width = shutil.get_terminal_size().columns if target.isatty() else 0

    def say(line: str) -> None:
        try:
            print(folded(line, width), file=target, flush=True)
        except BrokenPipeError:  # the reader, `head` say, has seen enough; the work goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), target.fileno())

    return say


@contextlib.contextmanager
def answers_ctrl_c() -> Iterator[None]:
    """Within it SIGINT raises KeyboardInterrupt, also where the process has inherited that it be ignored.

    A shell without job control starts what it runs in the background so, and long work must still be stoppable.
    """
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set a handler
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def folded(line: str, width: int) -> str:
    """A line in as many of `width` columns as it takes, the further ones indented; 0 leaves it as it is."""
    if not width or len(line) <= width:
        return line
    return textwrap.fill(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def print_line(value: Any) -> None:
    """One JSON object a line, as it happens."""
    print(json.dumps(value, default=list), flush=True)


def print_json(value: Any) -> None:
    """An object for programs; what is no number in JSON, NaN and infinities, is null."""
    print(json.dumps(_finite(value), indent=2, default=list, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def best_of(scores: Array, count: int, labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The highest scores of each row (each leading index), best first, with index and label."""
    rows = scores.reshape(scores.shape[0] if scores.ndim > 1 else 1, -1)
    found = []
    for row in rows:
        best = np.argsort(-row, kind="stable")[:count]
        found.append(
            [
                {"index": int(i), "score": float(row[i]), "label": labels[i] if i < len(labels) else str(int(i))}
                for i in best
            ]
        )
    return found


def read_feeds(net: Net, path: Path, options: argparse.Namespace) -> dict[str, Array]:
    """The arrays of a file by input name; an image is normalised as the options say, or the model itself."""
    mean, std = options.mean or fact_of(net, "mean", "0"), options.std or fact_of(net, "std", "1")
    return read_inputs(path, net.inputs, mean, std, options.bgr)


def fact_of(net: Net, key: str, default: str) -> tuple[float, ...]:
    """Numbers that the model's own metadata has under a key. Raises InputError where it has other text."""
    text = net.manifest["metadata"].get(key, default)
    try:
        return floats(text)
    except argparse.ArgumentTypeError:
        raise InputError(f"the model's metadata says {key} = '{text}', which is not numbers: give --{key}") from None


def permitted(model: Path, options: argparse.Namespace) -> os.PathLike[str]:
    """The model with the folder that --external-data allows it."""
    if options.external_data is None:
        return model
    from tvmcnn.onnx_file import with_external_data

    return cast("os.PathLike[str]", with_external_data(model, options.external_data))


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
