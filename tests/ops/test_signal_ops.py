"""Windows, MelWeightMatrix, DFT and STFT: against NumPy's transforms, and against onnxruntime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import draw, model_of, node, one_node
from one_node import session

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import ModelError, UnsupportedError
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model, operators

Array = np.ndarray[Any, Any]
U = 2.0**-24


def drawn(*shape: int, dtype: str = "float32") -> Array:
    return draw(np.random.default_rng(shape), *shape, dtype=dtype)


def number(value: int) -> Array:
    return np.array(value, np.int64)


def run(op: str, opset: int, arrays: list[Array | None], **words: Any) -> Array:
    """The library's answer, whose shape and type are the reference's."""
    model, feeds = one_node(op, opset, arrays, **words)
    (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
    exact = reference(model, feeds)["y0"]
    assert (ours.shape, ours.dtype) == (exact.shape, exact.dtype)
    return np.asarray(ours)


def near(ours: Array, wanted: Array, terms: int) -> None:
    unit = 2.0**-53 if ours.dtype == np.float64 else U
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=(terms + 8) * unit * np.abs(wanted).max(initial=1))


def complex_of(x: Array) -> Array:
    return np.asarray(x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0].astype(np.complex128))


def parts_of(x: Array) -> Array:
    return np.stack([x.real, x.imag], axis=-1)


@pytest.mark.parametrize(("axis", "parts", "inverse"), [*itertools.product((-2, 1, 0), (1, 2), (0, 1))])
def test_dft(axis: int, parts: int, inverse: int) -> None:
    """The axis' own length, a longer one, filled with zeros, and a shorter one, of which the rest is cut."""
    x = drawn(3, 5, 7, parts)
    for length in (None, 9, 4):
        arrays = [x, None if length is None else number(length), number(axis)]
        transform = np.fft.ifft if inverse else np.fft.fft
        wanted = parts_of(transform(complex_of(x), length, axis=axis + 1 if axis < 0 else axis))
        near(run("DFT", 20, arrays, inverse=inverse), wanted, 7)


@pytest.mark.parametrize(("axis", "length"), [*itertools.product((-2, 1), (None, 9, 8, 4))])
def test_half_a_spectrum_and_back(axis: int, length: int | None) -> None:
    place = 2 if axis == -2 else 1
    for x, inverse in ((drawn(3, 5, 7, 1), 0), (drawn(3, 5, 7, 2), 1)):
        arrays = [x, None if length is None else number(length), number(axis)]
        if inverse:
            wanted = np.fft.irfft(complex_of(x), length, axis=place)[..., None]
        else:
            wanted = parts_of(np.fft.rfft(x[..., 0], length, axis=place))
        near(run("DFT", 20, arrays, inverse=inverse, onesided=1), wanted, 7)


def test_dft_of_opset_17_and_of_doubles() -> None:
    """Its axis was an attribute, 1 by default."""
    x = drawn(3, 5, 7, 1)
    near(run("DFT", 17, [x]), parts_of(np.fft.fft(x[..., 0], axis=1)), 5)
    double = drawn(3, 300, 1, dtype="float64")
    near(run("DFT", 20, [double]), parts_of(np.fft.fft(double[..., 0], axis=1)), 300)


def framed(x: Array, step: int, length: int) -> Array:
    """(N, n) --> (N, frames, length)"""
    return np.stack([x[:, f : f + length] for f in range(0, x.shape[1] - length + 1, step)], axis=1)


@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(onesided: int) -> None:
    """With a window that arrives at run time, with a length alone, and with both."""
    x, window = drawn(2, 40, 1), drawn(12)
    transform = np.fft.rfft if onesided else np.fft.fft
    for step, length, weights in ((7, 12, window), (5, 16, None), (40, 40, None)):
        size = None if weights is not None else number(length)
        frames = framed(x[..., 0], step, length) * (1 if weights is None else weights)
        ours = run("STFT", 17, [x, number(step), weights, size], onesided=onesided)
        near(ours, parts_of(transform(frames)), length)


def test_stft_of_a_complex_signal() -> None:
    x = drawn(2, 40, 2)
    ours = run("STFT", 17, [x, number(7), None, number(16)], onesided=0)
    near(ours, parts_of(np.fft.fft(framed(complex_of(x), 7, 16))), 16)


@pytest.mark.parametrize("target", ["x86-64-v3", "native"])
def test_a_constant_window_is_part_of_the_matrix(target: str, tmp_path: Path) -> None:
    """Frames and one product. (onnxruntime's own is off by a thousandth, but for powers of 2.)"""
    constants = {"step": number(160), "window": np.hanning(400).astype(np.float32)}
    proto = model_of([node("STFT", "x step window", "y")], {"x": (1, 4000, 1)}, {"y": (None,) * 4}, constants, opset=17)
    network = simplified(import_model(proto))
    assert [each.op for each in network.nodes] == ["Frames", "Reshape", "Gemm", "Reshape"]
    compiled = tvmcnn.compile(proto, target=target, output=tmp_path / "x.so")
    assert compiled.verdict is not None and compiled.verdict.passed, compiled.verdict
    x = drawn(1, 4000, 1)
    wanted = parts_of(np.fft.rfft(framed(x[..., 0], 160, 400) * constants["window"]))
    near(tvmcnn.load(tmp_path / "x.so")(x), wanted, 400)


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows(op: str) -> None:
    """Every type that ONNX has, no element and one; as onnxruntime in float32."""
    for size, periodic in itertools.product((0, 1, 2, 13), (0, 1)):
        model, feeds = one_node(op, 17, [number(size)], periodic=periodic)
        (ours,) = tvmcnn.backend.run_model(model, list(feeds.values()))
        wanted = reference(model, feeds)["y0"]
        assert ours.shape == wanted.shape == (size,)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=2 * U)
        if size > 1:
            np.testing.assert_allclose(ours, session(model).run(None, feeds)[0], rtol=0, atol=64 * U)
    assert run(op, 17, [number(9)], output_datatype=11).dtype == np.float64
    size = operators.Value("size", (), "int64", number(3))
    with pytest.raises(operators.Unsupported, match="output_datatype is 16; supported are 1, 2"):
        operators.OPERATORS[op](size, output_datatype=16)


def test_mel_weight_matrix() -> None:
    for bands, length, rate, low, high in (
        (8, 64, 8192, 0.0, 4000.0),
        (13, 100, 16000, 60.0, 7600.0),
        (5, 9, 50, 1.0, 20.0),
    ):
        arrays = [number(bands), number(length), number(rate), np.float32(low), np.float32(high)]
        given = [np.asarray(array) for array in arrays]
        ours = run("MelWeightMatrix", 17, [*given])
        model, feeds = one_node("MelWeightMatrix", 17, [*given])
        np.testing.assert_allclose(ours, reference(model, feeds)["y0"], rtol=0, atol=2 * U)
        values = [operators.Value("", (), str(each.dtype), each) for each in given]
        (matrix,) = operators.OPERATORS["MelWeightMatrix"](*values).inputs  # which folding comes before
        np.testing.assert_allclose(matrix.data, reference(model, feeds)["y0"], rtol=0, atol=2 * U)
    for place in range(3):
        arrays = [
            *(number(0 if i == place else 8) for i in range(3)),
            np.asarray(np.float32(0)),
            np.asarray(np.float32(9)),
        ]
        values = [operators.Value("", (), str(each.dtype), each) for each in arrays]
        with pytest.raises(ModelError, match="all must be 1 at least"):
            operators.OPERATORS["MelWeightMatrix"](*values)


@pytest.mark.parametrize(
    ("op", "arrays", "words", "sentence"),
    [
        ("DFT", [drawn(3, 5, 3)], {}, "its input is 3x5x3; its last axis must have a real part"),
        ("DFT", [drawn(3, 5, 1), None, number(2)], {}, "its axis is the last, which has the parts of each number"),
        ("DFT", [drawn(3, 5, 1), number(0)], {}, "its length is 0; it must be 1 at least"),
        ("DFT", [drawn(3, 5, 2)], {"onesided": 1}, "onesided is 1, but its input is complex"),
        ("STFT", [drawn(2, 40), number(7)], {}, "its signal is 2x40; it must be N x n and one part a number, or two"),
        ("STFT", [drawn(2, 40, 1), number(0)], {}, "frames of 40 every 0 of a signal of 40"),
        ("STFT", [drawn(2, 40, 1), number(3), None, number(41)], {}, "frames of 41 every 3 of a signal of 40"),
        (
            "STFT",
            [drawn(2, 40, 1), number(3), drawn(12), number(9)],
            {},
            "frames of 9 every 3, a window 12 of a signal",
        ),
        ("STFT", [drawn(2, 40, 2), number(3)], {}, "onesided is 1, but its signal is complex"),
    ],
)
def test_mistakes(op: str, arrays: list[Array | None], words: dict[str, Any], sentence: str) -> None:
    names = ["x", *(f"c{k}" if array is not None else "" for k, array in enumerate(arrays[1:]))]
    constants = {name: array for name, array in zip(names[1:], arrays[1:], strict=True) if array is not None}
    assert arrays[0] is not None
    proto = model_of([node(op, names, "y", **words)], {"x": arrays[0].shape}, {"y": (None,) * 4}, constants, opset=20)
    with pytest.raises(ModelError) as caught:
        import_model(proto)
    assert sentence in str(caught.value)


def test_a_transform_of_many_thousands_is_refused() -> None:
    proto = model_of([node("DFT", "x", "y")], {"x": (1, 5000, 1)}, {"y": (None,) * 3}, opset=20)
    with pytest.raises(UnsupportedError, match=r"a product with 5,000 x 10,000 numbers; supported are 16,777,216"):
        import_model(proto)


def test_a_wrong_sign_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = operators.signal._turns
    monkeypatch.setattr(operators.signal, "_turns", lambda *given: right(*given).conj())
    x = drawn(3, 5, 7, 1)
    with pytest.raises(AssertionError):
        near(run("DFT", 20, [x]), parts_of(np.fft.fft(x[..., 0], axis=2)), 7)
