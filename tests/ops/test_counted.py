"""Outputs that are as long as the data says: NonZero, Compress and NonMaxSuppression, and what may read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import tvmcnn
from tvmcnn.check import jumps
from tvmcnn.check.verify import verify_library, verify_program
from tvmcnn.errors import InputError, ModelError, TargetError, UnsupportedError, VerifyError
from tvmcnn.ops import boxes, compact
from tvmcnn.run import Runner

Array = np.ndarray[Any, Any]


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')


def loaded(text: str, folder: Path) -> tuple[onnx.ModelProto, Runner]:
    """Compiled, and judged by compile's own verification."""
    proto = parsed(text)
    compiled = tvmcnn.compile(proto, output=folder / "g.so", jobs=1)
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    net = tvmcnn.load(compiled.path)
    assert isinstance(net, Runner)
    return proto, net


def agree(proto: onnx.ModelProto, net: Runner, **feeds: Array) -> list[Array]:
    """The arrays of onnxruntime, of its shapes, by every way to run a network."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return all_ways(net, session.run(None, feeds), **feeds)


def all_ways(net: Runner, wanted: list[Array], **feeds: Array) -> list[Array]:
    """The outputs by every way to run a network, all as wanted."""
    arrays = [feeds[info.name] for info in net.inputs]
    ours = net.run(None, feeds)
    for found in (ours, _list(net.step_by_step(*arrays)), _list(net.bind(*arrays)())):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    shown = net.activations(*arrays)
    for info, other in zip(net.outputs, wanted, strict=True):
        np.testing.assert_array_equal(shown[info.name], other)
    return ours


def _list(found: Any) -> list[Array]:
    return list(found) if isinstance(found, tuple) else [found]


def mask(*shape: int, seed: int = 0, share: float = 0.5) -> Array:
    return np.random.default_rng(seed).random(shape) < share


# ---- NonZero and Compress -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "double", "bool", "int8", "uint16", "int64"])
def test_places(kind: str, tmp_path: Path) -> None:
    """Tensors of every type, with no element other than 0, some, and all. NaN is other than 0."""
    _, net = loaded(f"({kind}[3, 5, 2] x) => (int64[3, n] z) {{ z = NonZero (x) }}", tmp_path)
    dtype = np.dtype(net.inputs[0].dtype)
    for share in (0.0, 0.4, 1.0):
        x = (mask(3, 5, 2, share=share) * 3).astype(dtype)
        if dtype.kind == "f" and share == 1.0:
            x[0, 0, 0] = np.nan
        all_ways(net, [np.stack(np.nonzero(x))], x=x)


@pytest.mark.parametrize("axis", ["", "<axis: int = 0> ", "<axis: int = -2> ", "<axis: int = 2> "])
def test_slices_that_a_condition_chooses(axis: str, tmp_path: Path) -> None:
    """Along every axis, or of the elements in order; a condition may end before its axis does."""
    extent = {"": 42, "<axis: int = 0> ": 3, "<axis: int = -2> ": 7, "<axis: int = 2> ": 2}[axis]
    for length in (extent, extent - 1):
        given = f"(float[3, 7, 2] x, bool[{length}] c)"
        shape = "[n]" if not axis else f"[{', '.join('n' if e == extent else str(e) for e in (3, 7, 2))}]"
        proto, net = loaded(f"{given} => (float{shape} z) {{ z = Compress {axis}(x, c) }}", tmp_path)
        x = np.random.default_rng(1).standard_normal((3, 7, 2)).astype(np.float32)
        for share in (0.0, 0.5, 1.0):
            agree(proto, net, x=x, c=mask(length, share=share))


def test_a_constant_condition_is_a_gather(tmp_path: Path) -> None:
    """What is known is no longer than it is."""
    text = "(float[3, 4] x) => (float[3, n] z) <bool[4] c = {1, 0, 0, 1}> { z = Compress <axis: int = 1> (x, c) }"
    proto, net = loaded(text, tmp_path)
    assert net.outputs[0].shape == (3, 2)
    assert not net.outputs[0].counts
    agree(proto, net, x=np.arange(12, dtype=np.float32).reshape(3, 4))


def test_readers(tmp_path: Path) -> None:
    """What keeps a counted axis whole: its elements that count are computed from such alone."""
    proto, net = loaded(
        """(float[5, 3] x, float[2, 4] w) => (int64[n, 2] t, float[n] g, float[n, 4] p, float[n, 3] s, bool[n, 1] u)
        <int64 one = {1}, int64[1] last = {1}, float half = {0.5}> {
            m = Greater (x, half)  places = NonZero (m)  t = Transpose (places)  g = GatherND (x, t)
            f = Cast <to: int = 1> (t)  p = MatMul (f, w)
            row = Gather <axis: int = 1> (t, one)  wide = Unsqueeze (row, last)
            joined = Concat <axis: int = 1> (t, wide)  fj = Cast <to: int = 1> (joined)  s = Sub (fj, half)
            largest = ReduceMax <keepdims: int = 1> (s, last)  u = Greater (largest, half)
        }""",
        tmp_path,
    )
    rng = np.random.default_rng(2)
    w = rng.integers(-3, 4, (2, 4)).astype(np.float32)
    for scale in (1, -9, 9):  # some, none, all
        agree(proto, net, x=(np.abs(rng.standard_normal((5, 3))) * scale).astype(np.float32), w=w)


REFUSED = {
    "y = Shape (p)": "int64[2] y",
    "y = Softmax <axis: int = 1> (f)": "float[2, n] y",
    "y = ReduceSum (p)": "int64[1, 1] y",
    "y = Concat <axis: int = 1> (p, p)": "int64[2, n] y",
    "y = Reshape (p, flat)": "int64[n] y",
    "y = Gather <axis: int = 1> (p, two)": "int64[2] y",
    "y = Add (p, full)": "int64[2, n] y",
    "y = Slice (p, zeros, twos)": "int64[2, n] y",
}


@pytest.mark.parametrize("nodes", REFUSED)
def test_what_would_read_fillers_is_refused(nodes: str, tmp_path: Path) -> None:
    constants = "int64[1] flat = {-1}, int64 two = {2}, int64[2] zeros = {0, 0}, int64[2] twos = {2, 2}"
    text = f"(float[3, 2] x, int64[2, 6] full) => ({REFUSED[nodes]}) <{constants}>"
    with pytest.raises(UnsupportedError, match=r"its input '[pf]' is as long as the data says along axis 1; supported"):
        tvmcnn.compile(
            parsed(f"{text} {{ p = NonZero (x)  f = Cast <to: int = 1> (p)  {nodes} }}"), output=tmp_path / "g.so"
        )


def test_what_has_no_such_outputs(tmp_path: Path) -> None:
    proto = parsed("(float[b, 3] x) => (int64[2, n] z) { z = NonZero (x) }")
    with pytest.raises(
        TargetError, match="output 'z' is as long as the data says: such a network is compiled for CPUs"
    ):
        tvmcnn.compile(proto, "cuda:sm_80", tmp_path / "g.so", batch=1)
    with pytest.raises(ModelError, match=r"node 'z' \(NonZero\) is not known to keep the images of a batch"):
        tvmcnn.compile(proto, output=tmp_path / "g.so", batch=[1, 4])
    with pytest.raises(UnsupportedError, match="its operand is a scalar"):
        tvmcnn.compile(parsed("(float x) => (int64[1, n] z) { z = NonZero (x) }"), output=tmp_path / "g.so")


# ---- NonMaxSuppression ----------------------------------------------------------------------------------------------


def suppression(most: int, overlap: float, least: str = "", centered: int = 0) -> str:
    """A model for 2 images with 37 boxes in 3 classes."""
    limits = f"int64 most = {{{most}}}, float[1] overlap = {{{overlap}}}" + (
        f", float least = {{{least}}}" if least else ""
    )
    attributes = f"<center_point_box: int = {centered}>"
    operands = "b, s, most, overlap" + (", least" if least else "")
    given = "(float[2, 37, 4] b, float[2, 3, 37] s)"
    return f"{given} => (int64[n, 3] z) <{limits}> {{ z = NonMaxSuppression {attributes} ({operands}) }}"


def drawn(seed: int) -> tuple[Array, Array]:
    """Boxes of all sizes, corners in any order, some of them equal; scores of which many are equal."""
    rng = np.random.default_rng(seed)
    b = rng.random((2, 37, 4)).astype(np.float32)
    b[:, 30:] = b[:, :7]
    b[:, 20, 2:] = b[:, 20, :2]  # without an area
    return b, np.round(rng.random((2, 3, 37)) * 12).astype(np.float32) / 12


@pytest.mark.parametrize("centered", [0, 1])
@pytest.mark.parametrize(
    ("most", "overlap", "least"), [(37, 0.4, ""), (5, 0.0, "0.5"), (90, 0.7, "0.25"), (3, 1.0, "2.0")]
)
def test_suppression(most: int, overlap: float, least: str, centered: int, tmp_path: Path) -> None:
    proto, net = loaded(suppression(most, overlap, least, centered), tmp_path)
    assert net.outputs[0].shape == (2 * 3 * min(most, 37), 3)
    rows = {len(agree(proto, net, **dict(zip("bs", drawn(seed), strict=True)))[0]) for seed in range(6)}
    assert rows == {0} if least == "2.0" else len(rows) > 1 or most == 5


def test_none_may_be_selected(tmp_path: Path) -> None:
    _, net = loaded(suppression(0, 0.5), tmp_path)
    assert net.outputs[0].shape == (0, 3)


def test_many_boxes_lie_in_scratch(tmp_path: Path) -> None:
    """A list that is no more than a stack has room for, with the scores behind a computed score."""
    text = "(float[1, 3001, 4] b, float[1, 2, 3001] s) => (int64[n, 3] z) <int64 most = {70}, float overlap = {0.3}>"
    proto, net = loaded(f"{text} {{ p = Sigmoid (s)  z = NonMaxSuppression (b, p, most, overlap) }}", tmp_path)
    rng = np.random.default_rng(3)
    s = rng.permutation(6002).reshape(1, 2, 3001).astype(np.float32) / 1000 - 3  # no two are equal
    agree(proto, net, b=rng.random((1, 3001, 4)).astype(np.float32), s=s)


REAL_OVERLAP = boxes._overlap


def test_wrong_rows_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold that is a twentieth off selects other boxes, more or fewer."""
    monkeypatch.setenv("TVMCNN_CACHE", "off")
    monkeypatch.setattr(boxes, "_overlap", lambda box, other, most: REAL_OVERLAP(box, other, most + 0.05))
    with pytest.raises(VerifyError, match="the first tensor that differs from NumPy is z"):
        tvmcnn.compile(parsed(suppression(37, 0.2)), output=tmp_path / "g.so", jobs=1)


def test_wrong_places_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last element is not looked at, which its count betrays."""
    monkeypatch.setenv("TVMCNN_CACHE", "off")
    real = compact.unravel
    monkeypatch.setattr(compact, "unravel", lambda i, shape: real(i, shape)[::-1])
    with pytest.raises(VerifyError, match="the first tensor that differs from NumPy is z"):
        tvmcnn.compile(
            parsed("(float[3, 5] x) => (int64[2, n] z) { z = NonZero (x) }"), output=tmp_path / "g.so", jobs=1
        )


def test_a_decision_of_the_library_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that rounding orders: the oracle selects what the library's own scores lead to, and says so."""
    limits = "int64 most = {9}, float overlap = {0.9}, float c = {4194304.0}"
    text = f"(float[1, 9, 4] b, float[1, 1, 9] s) => (int64[n, 3] z) <{limits}>"
    nodes = "{ u = Add (s, c)  p = Sub (u, c)  z = NonMaxSuppression (b, p, most, overlap) }"
    compiled = tvmcnn.compile(parsed(f"{text} {nodes}"), output=tmp_path / "g.so", jobs=1)
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    monkeypatch.setitem(jumps.CHOSEN, "NonMaxSuppression", lambda *operands, **limits: np.zeros((0, 3), np.int64))
    (verdict,) = verify_library(compiled.path, parsed(f"{text} {nodes}"))
    assert not verdict.passed


# ---- the runner -----------------------------------------------------------------------------------------------------


def test_out_has_room_for_the_most(tmp_path: Path) -> None:
    """And a part of it is returned; C programs see the count as one more output."""
    proto, net = loaded("(float[3, 5] x) => (int64[2, n] z) { z = NonZero (x) }", tmp_path)
    x = mask(3, 5).astype(np.float32)
    room = np.empty((2, 15), np.int64)
    found = net(x, out=room)
    assert found.base is room
    assert net.bind(x, out=room)().base is room
    assert all(isinstance(array, np.ndarray) for array in net.activations(x).values())  # a count is no NumPy scalar
    np.testing.assert_array_equal(found, np.stack(np.nonzero(x)))
    with pytest.raises(
        InputError, match=r"out= for 'z' is int64 \(2, 7\); it must be a native int64 array of \(2, 15\)"
    ):
        net(x, out=np.empty((2, 7), np.int64))
    with pytest.raises(InputError, match="2 arrays in out=; g has 1 outputs"):
        net(x, out=(room, np.zeros((), np.int64)))
    assert verify_program(net, tmp_path / "g.so", proto, 1).passed
    header = tvmcnn.compile(proto, output=tmp_path / "h.so", verify=False).header
    assert "z: int64, 2x15, C-contiguous; along axis 1 the first *z_count count" in header
    assert "int64_t *z, int64_t *z_count, void *arena" in header
