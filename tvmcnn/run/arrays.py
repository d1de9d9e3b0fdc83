"""Arrays: what a network's inputs and outputs are, and whether the user's arrays are that."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmcnn.errors import InputError
from tvmcnn.network import Array


@dataclass(frozen=True)
class ArrayInfo:
    """An input or output, with the attributes that onnxruntime gives it.

    Along the axes of `counts` an output is as long as the data says, which the tensor of that name counts; `shape` has
    the most. `Runner.get_inputs` names an open batch there: ("N", 3, 224, 224).
    """

    name: str
    shape: tuple[Any, ...]
    dtype: str = "float32"
    counts: tuple[tuple[int, str], ...] = ()

    @property
    def type(self) -> str:
        """ONNX's word: tensor(float) for float32, tensor(int64)."""
        word = {"float32": "float", "float64": "double"}.get(self.dtype, self.dtype)
        return f"tensor({word})"


def with_batch(info: ArrayInfo, symbol: str, batch: int) -> ArrayInfo:
    """An input or output of `batch` images whose leading extent is named: N, or 4*N of one with four rows an image."""
    rows = info.shape[0] // batch
    return dataclasses.replace(info, shape=(symbol if rows == 1 else f"{rows}*{symbol}", *info.shape[1:]))


def random_array(info: ArrayInfo, seed: int) -> Array:
    """An array that an input takes: standard normal floats, small integers of either sign, coins."""
    rng, dtype = np.random.default_rng(seed), np.dtype(info.dtype)
    values = rng.standard_normal(info.shape, dtype=np.float32)
    if dtype.kind == "f":
        return values.astype(dtype)
    return values > 0 if dtype.kind == "b" else (4 * (np.abs(values) if dtype.kind == "u" else values)).astype(dtype)


def checked_array(value: Any, info: ArrayInfo) -> Array:
    """`value` as a C-contiguous, aligned array. Raises InputError for another shape, dtype or byte order."""
    if isinstance(value, np.ndarray):
        array = value
    elif hasattr(value, "__dlpack__"):
        try:
            array = np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(f"input '{info.name}' cannot be read through DLPack: {error}") from error
    else:
        kind = type(value).__name__
        raise InputError(f"input '{info.name}' is a {kind}; allowed are NumPy arrays and what has __dlpack__")
    if array.dtype != info.dtype:
        order = "big-endian " if array.dtype.newbyteorder("=") == info.dtype else ""
        raise InputError(f"input '{info.name}' is {order}{array.dtype.name}; it must be native {info.dtype}")
    if array.shape != info.shape:
        raise InputError(f"input '{info.name}' has the shape {array.shape}; the library is compiled for {info.shape}")
    return np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])


def check_output(array: Any, info: ArrayInfo) -> None:
    """Raise InputError unless `array` can take an output as it is."""
    if not isinstance(array, np.ndarray) or array.dtype != info.dtype or array.shape != info.shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"out= for '{info.name}' is {found}; it must be a native {info.dtype} array of {info.shape}")
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise InputError(f"out= for '{info.name}' must be C-contiguous, aligned and writeable")
