"""The models that a benchmark names: the shipped LeNet-5, a network of make_models.py, or the path of an ONNX file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import NETWORKS, make
from models.topology import Size, extents

from tvmcnn.demo import MODEL
from tvmcnn.errors import InputError
from tvmcnn.files import write_file
from tvmcnn.importer import import_model
from tvmcnn.network import Shape
from tvmcnn.quantising import quantize

_ENTRY = re.compile(r"(?P<name>.+?)(?:@(?P<size>\d+(?:x\d+)?))?(?::(?P<batch>\d+))?")


@dataclass(frozen=True)
class Entry:
    """One model at one batch size; `size` is that of the images of a made network, None for one that has its own."""

    name: str
    batch: int
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.size is None:
            return f"{Path(self.name).stem}:{self.batch}"
        rows, columns = self.size
        return f"{self.name}@{rows}{'' if rows == columns else f'x{columns}'}:{self.batch}"

    def file(self, folder: Path) -> Path:
        """The model's file, written to `folder` if it has none. Raises ValueError for an impossible size."""
        if self.name == "lenet5":
            return MODEL
        if self.size is None:
            return Path(self.name)
        path = folder / f"{self.name}.onnx"
        write_file(path, make(self.name, self.size).SerializeToString(deterministic=True))
        return path


def parse(models: str, size: Size) -> list[Entry]:
    """The entries of NAME[@SIZE][:BATCH],...; `size` is for made networks that name none.

    Raises InputError for a name that means nothing.
    """
    return [_entry(text.strip(), extents(size)) for text in models.split(",")]


def parse_size(text: str) -> tuple[int, int]:
    """224 is 224 x 224, 192x256 is 192 rows of 256 columns. Raises InputError for anything else."""
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise InputError(f"'{text}' is no size; allowed are 224, or rows and columns: 192x256")
    rows, _, columns = text.partition("x")
    return int(rows), int(columns or rows)


def _entry(text: str, size: tuple[int, int]) -> Entry:
    if Path(text).is_file():  # whatever signs are in its name
        return Entry(text, 1)
    found = _ENTRY.fullmatch(text)
    name, pixels, batch = found.group("name", "size", "batch") if found else (text, None, None)
    if batch is not None and int(batch) < 1:
        raise InputError(f"'{text}': a batch is at least 1")
    count = int(batch or 1)
    if name in NETWORKS:
        return Entry(name, count, parse_size(pixels) if pixels else size)
    path = text.removesuffix(f":{batch}")
    if Path(path).is_file():
        return Entry(path, count)
    if name != "lenet5":
        known = ", ".join(["lenet5", *NETWORKS])
        raise InputError(f"there is no model '{name}'; allowed are {known}, or the path of an ONNX file")
    if pixels:
        raise InputError(f"'{text}': the shipped LeNet-5 takes 32 x 32 pixels only")
    return Entry(name, count)


def in_integers(model: Path, folder: Path) -> Path:
    """The model quantised by `tvmcnn.quantize`, ranges from 8 samples of normal numbers; one of integers as it is."""
    if any(node.op_type == "QuantizeLinear" for node in onnx.load(str(model)).graph.node):
        return model
    samples, path = folder / "samples", folder / "quantised.onnx"
    samples.mkdir()
    inputs = import_model(model, batch=1).inputs
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {tensor.name: rng.standard_normal((8, *tensor.shape[1:]), np.float32) for tensor in inputs}
    np.savez(samples / "normal.npz", **arrays)
    quantize(model, samples, path, calibrate=4, evaluate=4)
    return path


def closed(model: Path, shapes: Mapping[str, Shape], folder: Path) -> Path:
    """A copy of a model whose inputs and outputs have exactly these shapes, so that peers may plan for them too."""
    proto = onnx.load(str(model))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in shapes:
            dims = [onnx.TensorShapeProto.Dimension(dim_value=extent) for extent in shapes[value.name]]
            value.type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto(dim=dims))
    del proto.graph.value_info[:]  # of another batch
    path = folder / "closed.onnx"
    write_file(path, proto.SerializeToString())
    return path
