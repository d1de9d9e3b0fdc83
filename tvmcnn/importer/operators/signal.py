"""Operators of signals: windows and filters that are constant, and Fourier transforms as products with a matrix."""

from __future__ import annotations

import math

import numpy as np

from tvmcnn.errors import ModelError
from tvmcnn.importer.operators.meaning import (
    FLOATS,
    Meaning,
    Unsupported,
    Value,
    axis_of,
    derived,
    floats,
    integers,
    named,
    operator,
    scalar,
    typed,
)
from tvmcnn.network import INDEX_LIMIT, Array, dims

# ONNX's numbers of the types that tvmcnn computes with; float16 is computed in float32
TYPES = {
    **{1: "float32", 10: "float32", 11: "float64", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32"},
    **{7: "int64", 12: "uint32", 13: "uint64"},
}
MOST_PRODUCTS = 1 << 24  # elements of a transform's matrix: 64 MiB


def _one(role: str, value: Value) -> int:
    """An operand that is one integer and constant."""
    found = integers(role, value)
    if len(found) != 1:
        raise ModelError(f"its {role} '{value.name}' is {dims(value.shape)}; it must be one value")
    return found[0]


def _numbers(data: Array, output_datatype: int) -> Meaning:
    """A constant of the type that an attribute names; integers are cut."""
    if output_datatype not in TYPES:
        raise Unsupported(f"output_datatype is {output_datatype}; supported are {', '.join(map(str, sorted(TYPES)))}")
    dtype = TYPES[output_datatype]
    return Meaning("Reshape", (derived("values", data.astype(dtype), dtype),), data.shape, {}, dtype)


# ---- constants ------------------------------------------------------------------------------------------------------


def _window(size: Value, periodic: int, output_datatype: int, cosines: tuple[float, ...]) -> Meaning:
    """Σ_k a_k · cos(2πk·i/N) for i < size; N is the size of a periodic window, or one less."""
    count = _one("size", size)
    if not 0 <= count <= INDEX_LIMIT:
        raise ModelError(f"its size is {count}; allowed are 0 to {INDEX_LIMIT:,}")
    length = np.float64(count if periodic else count - 1)
    with np.errstate(invalid="ignore"):  # NaN, 0 / 0, of a single element that is not periodic
        turn = 2 * math.pi * np.arange(count) / length
    return _numbers(np.asarray(sum(a * np.cos(k * turn) for k, a in enumerate(cosines))), output_datatype)


@operator
def hann_window(size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Meaning:
    """ONNX HannWindow of a constant size: 0.5 − 0.5·cos(2πi/N), N the size, or one less if not periodic."""
    return _window(size, periodic, output_datatype, (0.5, -0.5))


@operator
def hamming_window(size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Meaning:
    """ONNX HammingWindow of a constant size: 25/46 − 21/46·cos(2πi/N)."""
    return _window(size, periodic, output_datatype, (25 / 46, -21 / 46))


@operator
def blackman_window(size: Value, *, output_datatype: int = 1, periodic: int = 1) -> Meaning:
    """ONNX BlackmanWindow of a constant size: 0.42 − 0.5·cos(2πi/N) + 0.08·cos(4πi/N)."""
    return _window(size, periodic, output_datatype, (0.42, -0.5, 0.08))


@operator
def mel_weight_matrix(
    num_mel_bins: Value,
    dft_length: Value,
    sample_rate: Value,
    lower_edge_hertz: Value,
    upper_edge_hertz: Value,
    *,
    output_datatype: int = 1,
) -> Meaning:
    """ONNX MelWeightMatrix of constant operands: triangles over the bins of a spectrum, (dft_length/2 + 1, bands)."""
    bands, length, rate = (
        _one(role, value)
        for role, value in (("num_mel_bins", num_mel_bins), ("dft_length", dft_length), ("sample_rate", sample_rate))
    )
    edges = scalar("lower_edge_hertz", lower_edge_hertz), scalar("upper_edge_hertz", upper_edge_hertz)
    bins = length // 2 + 1
    if bands < 1 or length < 1 or rate < 1 or bins * bands > INDEX_LIMIT:
        raise ModelError(f"it has {bands} bands of a spectrum of {length} at {rate} Hz; all must be 1 at least")
    low, high = (2595 * math.log10(1 + edge / 700) for edge in edges)
    mels = low + (high - low) / (bands + 2) * np.arange(bands + 2)  # so do ONNX's cases and onnxruntime divide it
    corners = np.floor((length + 1) * 700 * (10 ** (mels / 2595) - 1) / rate).astype(np.int64)
    places = np.arange(bins)[:, None]
    first, centre, last = corners[:-2], corners[1:-1], corners[2:]
    rising = (places - first) / np.maximum(centre - first, 1)
    falling = (last - places) / np.maximum(last - centre, 1)
    matrix = np.where((places >= first) & (places <= centre), rising, 0)
    matrix = np.where((places >= centre) & (places < last), falling, matrix)
    return _numbers(np.where((places == centre) & (first == centre), 1, matrix), output_datatype)


# ---- transforms -----------------------------------------------------------------------------------------------------


def _turns(length: int, rows: int, columns: int) -> Array:
    """e^(−2πi·r·c/length), (rows, columns); r·c is reduced first, so that the angle is exact."""
    places = np.outer(np.arange(rows, dtype=np.int64), np.arange(columns, dtype=np.int64)) % length
    angle = 2 * math.pi * places / length
    return np.asarray(np.cos(angle) - 1j * np.sin(angle))


def _matrix(factors: Array, parts: int, *, real: bool = False) -> Array:
    """Complex factors (n, K) for rows of n numbers of `parts` parts: (n·parts, K·2), or (n·parts, K) of the real part.

    (a + bi)·(c + di) = (ac − bd) + (ad + bc)i
    """
    of_real, of_imaginary = [factors.real, factors.imag], [-factors.imag, factors.real]
    made = 1 if real else 2
    rows = np.stack([np.stack(each[:made], axis=-1) for each in (of_real, of_imaginary)[:parts]], axis=1)
    return rows.reshape(factors.shape[0] * parts, factors.shape[1] * made)


def _limited(rows: int, columns: int) -> None:
    if rows * columns > MOST_PRODUCTS:
        raise Unsupported(
            f"its transform is a product with {rows:,} x {columns:,} numbers; supported are {MOST_PRODUCTS:,}"
        )


@named("DFT")
def dft(
    input: Value,  # noqa: A002 (ONNX's name)
    dft_length: Value | None = None,
    axis: Value | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Meaning:
    """ONNX DFT of a constant length along a constant axis, as a product with a constant matrix."""
    typed(FLOATS, input)
    shape = input.shape
    if len(shape) < 2 or shape[-1] not in (1, 2):
        raise ModelError(f"its input is {dims(shape)}; its last axis must have a real part, or an imaginary one too")
    place = axis_of(_one("axis", axis) if axis is not None else -2, len(shape))
    if place == len(shape) - 1:
        raise ModelError("its axis is the last, which has the parts of each number")
    if onesided and not inverse and shape[-1] == 2:
        raise ModelError("onesided is 1, but its input is complex: its spectrum has no symmetry")
    real, n = bool(inverse and onesided), shape[place]
    length = 2 * (n - 1) if real else n
    length = _one("dft_length", dft_length) if dft_length is not None else length
    if length < 1:
        raise ModelError(f"its length is {length}; it must be 1 at least")
    made = length // 2 + 1 if onesided and not inverse else length
    _limited(n * shape[-1], made * (1 if real else 2))
    matrix = _matrix(_factors(n, length, made, inverse=bool(inverse), real=real), shape[-1], real=real)
    result = (*shape[:place], made, *shape[place + 1 : -1], 1 if real else 2)
    return Meaning("DFT", (input, derived("matrix", matrix, input.dtype)), result, {"axis": place})


def _factors(n: int, length: int, made: int, *, inverse: bool, real: bool) -> Array:
    """What each of n numbers counts in each of those that are made, (n, made): none past the length that counts.

    The inverse of half a spectrum adds to each term its mirrored one, but to the first and the middle one.
    """
    factors = _turns(length, n, made)
    factors = factors.conj() / length if inverse else factors
    place = np.arange(n)[:, None]
    if real:
        factors = factors * np.where((place == 0) | (2 * place == length), 1, 2)
    return np.where(place < (length // 2 + 1 if real else length), factors, 0)


@named("STFT")
def stft(
    signal: Value,
    frame_step: Value,
    window: Value | None = None,
    frame_length: Value | None = None,
    *,
    onesided: int = 1,
) -> Meaning:
    """ONNX STFT with a constant step and length: each frame, times the window, by a constant matrix."""
    floats(signal, window)
    if len(signal.shape) != 3 or signal.shape[2] not in (1, 2):
        raise ModelError(f"its signal is {dims(signal.shape)}; it must be N x n and one part a number, or two")
    batch, n, parts = signal.shape
    step = _one("frame_step", frame_step)
    length = n if window is None else math.prod(window.shape)
    length = _one("frame_length", frame_length) if frame_length is not None else length
    if step < 1 or not 1 <= length <= n or (window is not None and window.shape != (length,)):
        weights = f", a window {dims(window.shape)}" if window is not None else ""
        raise ModelError(f"frames of {length} every {step}{weights} of a signal of {n}: they do not fit each other")
    if onesided and parts == 2:
        raise ModelError("onesided is 1, but its signal is complex: its spectrum has no symmetry")
    bins = length // 2 + 1 if onesided else length
    _limited(length * parts, bins * 2)
    factors = _turns(length, length, bins)
    if window is not None and window.data is not None:
        factors, window = factors * window.data.astype(np.float64)[:, None], None
    operands = (signal, derived("matrix", _matrix(factors, parts), signal.dtype), *([] if window is None else [window]))
    attributes = {"frame_step": step, "frame_length": length}
    return Meaning("STFT", operands, (batch, (n - length) // step + 1, bins, 2), attributes)
