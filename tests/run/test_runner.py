"""The library as a file, and the runner: what is refused before any code runs, and every way to hand over an array."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
import tvm_ffi
from builders import model_of, node
from data import ROOT
from helpers import GUARD
from onnx import numpy_helper

import tvmcnn
from tvmcnn.artifact import container
from tvmcnn.compiler import Compiled
from tvmcnn.errors import ArtifactError, InputError

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
TOLERANCE = 1e-5  # of the largest output
A, B = (2, 3, 7, 9), (2, 5, 7, 9)  # the two inputs of the model
JOINED, POOLED = (2, 8, 7, 9), (2, 8, 1, 1)  # its two outputs


def with_trailer(image: bytes, manifest: container.Manifest) -> bytes:
    """An artifact as `container.sealed` writes it."""
    return image + container.trailer(manifest | {"sha256": hashlib.sha256(image).hexdigest()}, len(image))


def two_in_two_out() -> onnx.ModelProto:
    """Relu(a) and Sigmoid(b) joined along the channels, and the mean of each map."""
    nodes = [
        node("Mul", "a gain", "scaled"),
        node("Relu", "scaled", "left"),
        node("Sigmoid", "b", "right"),
        node("Concat", "left right", "joined", axis=1),
        node("GlobalAveragePool", "joined", "pooled"),
    ]
    weights = {"gain": np.array([2, -3, 0.5], np.float32).reshape(3, 1, 1)}
    return model_of(nodes, {"a": A, "b": B}, {"joined": JOINED, "pooled": POOLED}, weights, name="two")


def one_conv() -> onnx.ModelProto:
    """1x3x11x13 --> 1x4x9x12, and Relu."""
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "y")]
    weight = np.random.default_rng(3).standard_normal((4, 3, 3, 2)).astype(np.float32)
    return model_of(nodes, {"x": (1, 3, 11, 13)}, {"y": (1, 4, 9, 12)}, {"w": weight}, name="conv")


def draw(shape: tuple[int, ...], seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.05, 10, 1).astype(np.float32) * rng.standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def conv(folder: Path) -> Compiled:
    return tvmcnn.compile(one_conv(), output=folder / "conv.so")


@pytest.fixture(scope="module")
def library(conv: Compiled) -> bytes:
    return conv.path.read_bytes()


@pytest.fixture(scope="module")
def net(conv: Compiled) -> tvmcnn.Runner:
    return tvmcnn.load(conv.path)


@pytest.fixture(scope="module")
def two(folder: Path) -> tvmcnn.Runner:
    tvmcnn.compile(two_in_two_out(), output=folder / "two.so")
    return tvmcnn.load(folder / "two.so")


@pytest.fixture(scope="module")
def x() -> Array:
    return draw((1, 3, 11, 13), 1)


@pytest.fixture(scope="module")
def y(x: Array) -> Array:
    return tvmcnn.reference(one_conv(), x)["y"]


def assert_close(found: Array, wanted: Array) -> None:
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


# ---- files that are refused -----------------------------------------------------------------------------------------


@pytest.fixture
def never_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if the runner goes as far as the dynamic loader."""

    def reached(*words: object, **more: object) -> NoReturn:
        pytest.fail("the damaged file was loaded")

    monkeypatch.setattr(tvm_ffi, "load_module", reached)
    monkeypatch.setattr("ctypes.CDLL", reached)


def refusal(path: Path) -> str:
    """The one sentence with which load refuses a file."""
    with pytest.raises(ArtifactError) as caught:
        tvmcnn.load(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


@pytest.mark.usefixtures("never_mapped")
def test_files_that_are_no_library(tmp_path: Path) -> None:
    file = tmp_path / "net.so"
    assert "No such file" in refusal(file)
    for content in (b"", b"\x7f", b"hello", b"PK\x03\x04" + bytes(100)):
        file.write_bytes(content)
        assert "it is no ELF file" in refusal(file)
    (tmp_path / "net.onnx").write_bytes(one_conv().SerializeToString())
    assert "must end in .so" in refusal(tmp_path / "net.onnx")
    (tmp_path / "folder.so").mkdir()
    assert "Is a directory" in refusal(tmp_path / "folder.so")


@pytest.mark.usefixtures("never_mapped")
def test_library_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "other.c").write_text("int conv_run(void) { return 0; }\n")
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "other.so", "other.c"], cwd=tmp_path, check=True, timeout=GUARD)
    assert "not a library of tvmcnn" in refusal(tmp_path / "other.so")


@pytest.mark.usefixtures("never_mapped")
def test_truncated_library(library: bytes, tmp_path: Path) -> None:
    file = tmp_path / "cut.so"
    for size in [4, 5, 64, 100, *range(200, len(library), len(library) // 60), *range(len(library) - 70, len(library))]:
        file.write_bytes(library[:size])
        assert "truncated" in refusal(file), size


@pytest.mark.usefixtures("never_mapped")
def test_extended_library(library: bytes, tmp_path: Path) -> None:
    file = tmp_path / "long.so"
    file.write_bytes(library + b"\0")
    assert "truncated" in refusal(file)
    file.write_bytes(library[:200] + b"\0" + library[200:])
    assert "damaged" in refusal(file)


def regions(library: bytes) -> dict[str, range]:
    """The parts of an artifact: headers, the whole ELF image, weights (found by their bytes), manifest, footer."""
    *_, image_size, text_size, _ = container.FOOTER.unpack(library[-container.FOOTER.size :])
    weight = numpy_helper.to_array(one_conv().graph.initializer[0])
    start = library.index(np.float32(weight[0, 0, 0, 0]).tobytes())  # packed weights begin with the first one
    return {
        "headers": range(64),
        "code": range(64, image_size),
        "weights": range(start, start + 4 * weight.size),
        "manifest": range(image_size, image_size + text_size),
        "footer": range(image_size + text_size, len(library)),
    }


@pytest.mark.usefixtures("never_mapped")
@pytest.mark.parametrize("region", ["headers", "code", "weights", "manifest", "footer"])
def test_one_damaged_byte_anywhere_is_refused(region: str, library: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(17)
    span = regions(library)[region]
    chosen = span if len(span) <= 72 else sorted(rng.choice(span, 50, replace=False))  # footer and headers: every byte
    file = tmp_path / "hurt.so"
    for position in chosen:
        damaged = bytearray(library)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        refusal(file)


@pytest.mark.usefixtures("never_mapped")
def test_every_bit_of_the_format_number_is_refused(library: bytes, tmp_path: Path) -> None:
    start = len(library) - container.FOOTER.size + len(container.MAGIC)
    for bit in range(32):
        damaged = bytearray(library)
        damaged[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "bit.so").write_bytes(damaged)
        assert "format" in refusal(tmp_path / "bit.so") or bit == 0  # 1 with its lowest bit flipped is no format at all


def test_check_code_leaves_the_weights_unread(library: bytes, net: tvmcnn.Runner, tmp_path: Path, x: Array) -> None:
    """A damaged weight is then not seen, and changes the answer; a damaged byte of code is, and so is a cut."""
    first, last = net.manifest["code"]["weights_at"]
    assert last - first == net.manifest["weights_bytes"]
    for name, place, seen in (("weights", (first + last) // 2 + 3, False), ("code", first - 65, True)):
        damaged = bytearray(library)
        damaged[place] ^= 0x40
        path = tmp_path / f"{name}.so"
        path.write_bytes(damaged)
        with pytest.raises(tvmcnn.ArtifactError, match="its code and weights do not match their hash"):
            tvmcnn.load(path)
        if seen:
            with pytest.raises(tvmcnn.ArtifactError, match="its code does not match its hash"):
                tvmcnn.load(path, check="code")
        else:
            assert not np.array_equal(tvmcnn.load(path, check="code")(x), net(x))
    (tmp_path / "cut.so").write_bytes(library[:-1])
    with pytest.raises(tvmcnn.ArtifactError, match="truncated"):
        tvmcnn.load(tmp_path / "cut.so", check="code")
    with pytest.raises(tvmcnn.InputError, match="check='none'; allowed are 'all', 'code'"):
        tvmcnn.load(tmp_path / "weights.so", check="none")


def test_where_weights_lie(tmp_path: Path) -> None:
    """Found whole, behind a part that begins alike; not found where they are not, are twice, or are none."""
    rng = np.random.default_rng(0)
    weights = rng.bytes(3 * container.CHUNK + 5)
    (tmp_path / "weights").write_bytes(weights)
    (tmp_path / "image").write_bytes(b"head" + weights[: container.CHUNK + 9] + rng.bytes(64) + weights + b"tail")
    start = 4 + container.CHUNK + 9 + 64
    assert container.place_of(tmp_path / "weights", tmp_path / "image") == (start, start + len(weights))
    (tmp_path / "image").write_bytes(b"head" + weights + weights)
    assert container.place_of(tmp_path / "weights", tmp_path / "image") == (0, 0)
    (tmp_path / "image").write_bytes(b"head" + weights[:-1] + b"tail")
    assert container.place_of(tmp_path / "weights", tmp_path / "image") == (0, 0)
    (tmp_path / "weights").write_bytes(b"")
    assert container.place_of(tmp_path / "weights", tmp_path / "image") == (0, 0)


@pytest.mark.usefixtures("never_mapped")
def test_newer_format_is_said_to_be_newer(
    library: bytes, net: tvmcnn.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, image_size, _, _ = container.FOOTER.unpack(library[-container.FOOTER.size :])
    with monkeypatch.context() as patch:
        patch.setattr(container, "FORMAT", 3)
        newer = with_trailer(library[:image_size], net.manifest)
    (tmp_path / "newer.so").write_bytes(newer)
    assert re.search(r"has format 3; this tvmcnn reads 2: update tvmcnn", refusal(tmp_path / "newer.so"))


def test_trailer_written_again_is_accepted(library: bytes, net: tvmcnn.Runner, tmp_path: Path, x: Array) -> None:
    """The control of the tests above: the same steps without damage load and run."""
    *_, image_size, _, _ = container.FOOTER.unpack(library[-container.FOOTER.size :])
    (tmp_path / "again.so").write_bytes(with_trailer(library[:image_size], net.manifest))
    assert tvmcnn.load(tmp_path / "again.so")(x).tobytes() == net(x).tobytes()


@pytest.mark.usefixtures("never_mapped")
def test_cpu_that_lacks_instructions(conv: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.run.cpu_flags", lambda: frozenset({"sse2", "avx", "bmi1"}))
    text = refusal(conv.path)
    assert f"is made for {conv.target.name}" in text
    assert "lacks avx2, bmi2, f16c, fma" in text


@pytest.mark.parametrize("threads", [0, -1, 65, True, 2.0, "2"])
def test_threads_that_it_cannot_have(threads: Any, conv: Compiled) -> None:
    with pytest.raises(InputError, match=rf"threads={threads!r}; allowed are 1 to 64"):
        tvmcnn.load(conv.path, threads=threads)


# ---- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.zeros((1, 3, 13, 11), np.float32), r"'x' has the shape \(1, 3, 13, 11\); .* \(1, 3, 11, 13\)"),
        (np.zeros((3, 11, 13), np.float32), r"'x' has the shape \(3, 11, 13\)"),
        (np.zeros((2, 3, 11, 13), np.float32), r"'x' has the shape \(2, 3, 11, 13\)"),
        (np.zeros((0, 3, 11, 13), np.float32), r"'x' has the shape \(0, 3, 11, 13\)"),
        (np.zeros((1, 3, 11, 13), np.float64), r"'x' is float64; it must be native float32"),
        (np.zeros((1, 3, 11, 13), np.float16), r"'x' is float16; it must be native float32"),
        (np.zeros((1, 3, 11, 13), np.int32), r"'x' is int32; it must be native float32"),
        (np.zeros((1, 3, 11, 13), np.uint8), r"'x' is uint8; it must be native float32"),
        (np.zeros((1, 3, 11, 13), ">f4"), r"'x' is big-endian float32; it must be native float32"),
        (np.zeros((1, 3, 11, 13), "O"), r"'x' is object; it must be native float32"),
        ([[[[0.0] * 13] * 11] * 3], r"'x' is a list; allowed are NumPy arrays and what has __dlpack__"),
        (None, r"'x' is a NoneType"),
        (3.5, r"'x' is a float"),
        ("x.npy", r"'x' is a str"),
    ],
)
def test_wrong_array_is_refused(net: tvmcnn.Runner, value: Any, sentence: str) -> None:
    for call in (net, net.step_by_step, net.activations, lambda array: net.run(None, {"x": array})):
        with pytest.raises(InputError, match=sentence):
            call(value)


def test_wrong_number_of_inputs(net: tvmcnn.Runner, two: tvmcnn.Runner, x: Array) -> None:
    with pytest.raises(InputError, match="2 inputs given; conv takes 1: 'x'"):
        net(x, x)
    with pytest.raises(InputError, match="0 inputs given; conv takes 1: 'x'"):
        net()
    with pytest.raises(InputError, match="1 inputs given; two takes 2: 'a', 'b'"):
        two(np.zeros(A, np.float32))


def test_too_many_inputs_are_not_made_up_for_by_outputs(two: tvmcnn.Runner) -> None:
    """The native entry counts four arrays; which of them are inputs only Python knows."""
    a, b, joined, pooled = draw(A, 1), draw(B, 2), np.full(JOINED, 7, np.float32), np.full(POOLED, 7, np.float32)
    with pytest.raises(InputError, match="3 inputs given"):
        two(a, b, joined, out=(pooled,))
    with pytest.raises(InputError, match="4 inputs given"):
        two(a, b, joined, pooled, out=())
    with pytest.raises(InputError, match="1 inputs given"):
        two(a, out=(b, joined, pooled))
    with pytest.raises(InputError, match=r"1 arrays in out=; two has 2 outputs"):
        two(a, b, out=joined)
    assert (joined == 7).all() and (pooled == 7).all()


def test_wrong_names(two: tvmcnn.Runner) -> None:
    a, b = draw(A, 1), draw(B, 2)
    with pytest.raises(InputError, match="the inputs given are 'a', 'c'; two takes 'a', 'b'"):
        two.run(None, {"a": a, "c": b})
    with pytest.raises(InputError, match="the inputs given are none; two takes 'a', 'b'"):
        two.run(None, {})
    with pytest.raises(InputError, match="two has no output 'nothing'; it has 'joined', 'pooled'"):
        two.run(["pooled", "nothing"], {"a": a, "b": b})


def unaligned(x: Array) -> Array:
    """The same values one byte off: NumPy's own flag says that they are not aligned."""
    memory = bytes(1) + x.tobytes()
    array = np.frombuffer(memory, np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not array.flags.aligned or array.ctypes.data % 4 == 0
    return array


def in_a_field(x: Array) -> Array:
    """The same values as a field of packed records: every element off its alignment, with gaps."""
    records = np.zeros(x.shape, np.dtype([("flag", "u1"), ("value", "f4")]))
    records["value"] = x
    return records["value"]


def mapped(x: Array, mode: str, folder: Path) -> Array:
    x.tofile(folder / f"x_{mode.strip('+')}.bin")
    return np.memmap(folder / f"x_{mode.strip('+')}.bin", np.float32, mode, shape=x.shape)  # type: ignore[call-overload]


def read_only(x: Array) -> Array:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


FORMS = {
    "every second column": lambda x, folder: np.repeat(x, 2, axis=3)[..., ::2],
    "rows upside down in memory": lambda x, folder: x[:, :, ::-1].copy()[:, :, ::-1],
    "all strides negative": lambda x, folder: x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "channels last in memory": lambda x, folder: np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "Fortran order": lambda x, folder: np.asfortranarray(x),
    "4 bytes off a vector": lambda x, folder: np.concatenate([np.zeros(1, np.float32), x.ravel()])[1:].reshape(x.shape),
    "1 byte off": lambda x, folder: unaligned(x),
    "packed records": lambda x, folder: in_a_field(x),
    "read-only": lambda x, folder: read_only(x),
    "bytes": lambda x, folder: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "memmap r": lambda x, folder: mapped(x, "r", folder),
    "memmap r+": lambda x, folder: mapped(x, "r+", folder),
    "memmap c": lambda x, folder: mapped(x, "c", folder),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_layout_of_the_same_values_gives_the_same_bits(
    form: str, net: tvmcnn.Runner, x: Array, y: Array, tmp_path: Path
) -> None:
    array = FORMS[form](x, tmp_path)
    assert np.array_equal(array, x)
    found = net(array)
    assert found.tobytes() == net(x).tobytes()
    assert_close(found, y)
    assert np.array_equal(array, x)  # an input is never written
    assert net.activations(array)["y"].tobytes() == found.tobytes()
    assert net.step_by_step(array).tobytes() == found.tobytes()


class Foreign:
    """An array of another library: DLPack and nothing else."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **words: Any) -> Any:
        return self.array.__dlpack__(**words)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Elsewhere(Foreign):
    """An array that claims to live on a GPU."""

    def __dlpack__(self, **words: Any) -> Any:
        raise BufferError("the data is on another device")

    def __dlpack_device__(self) -> Any:
        return (2, 0)


@pytest.mark.parametrize("form", ["as it is", "Fortran order", "all strides negative", "4 bytes off a vector"])
def test_dlpack_objects_that_are_not_numpy(form: str, net: tvmcnn.Runner, x: Array, y: Array, tmp_path: Path) -> None:
    array = x if form == "as it is" else FORMS[form](x, tmp_path)
    assert_close(net(Foreign(array)), y)
    assert_close(net.run(None, {"x": Foreign(array)})[0], y)


def test_dlpack_objects_that_do_not_fit(net: tvmcnn.Runner, x: Array) -> None:
    with pytest.raises(InputError, match=r"'x' has the shape \(11, 13\)"):
        net(Foreign(x[0, 0]))
    with pytest.raises(InputError, match="'x' is float64"):
        net(Foreign(x.astype(np.float64)))
    with pytest.raises(InputError, match="'x' cannot be read through DLPack"):
        net(Elsewhere(x))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1e-42])
def test_extreme_values_go_through(net: tvmcnn.Runner, x: Array, value: float) -> None:
    plain = net(x)
    changed = x.copy()
    changed[0, 0, 4, 5] = value
    found = net(changed)
    # The window is 3x2: outputs that do not see pixel (4, 5) keep their bits.
    unseen = np.ones(found.shape, bool)
    unseen[:, :, 2:5, 4:6] = False
    assert found[unseen].tobytes() == plain[unseen].tobytes()
    assert net(np.full(x.shape, value, np.float32)).shape == plain.shape
    assert net(x).tobytes() == plain.tobytes()  # and nothing of it stays in the arena


# ---- outputs --------------------------------------------------------------------------------------------------------


def test_preallocated_outputs(net: tvmcnn.Runner, two: tvmcnn.Runner, x: Array) -> None:
    out = np.full((1, 4, 9, 12), np.nan, np.float32)
    assert net(x, out=out) is out
    assert out.tobytes() == net(x).tobytes()
    out[:] = np.nan
    assert net(np.asfortranarray(x), out=out) is out  # by way of a copy of the input
    assert out.tobytes() == net(x).tobytes()
    a, b = draw(A, 1), draw(B, 2)
    joined, pooled = np.empty(JOINED, np.float32), np.empty(POOLED, np.float32)
    given = two(a, b, out=(joined, pooled))
    assert given[0] is joined and given[1] is pooled
    wanted = tvmcnn.reference(two_in_two_out(), {"a": a, "b": b})
    assert_close(joined, wanted["joined"])
    assert_close(pooled, wanted["pooled"])


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (np.full((1, 4, 12, 9), 7, np.float32), r"is float32 \(1, 4, 12, 9\); it must be .* \(1, 4, 9, 12\)"),
        (np.full((4, 9, 12), 7, np.float32), r"is float32 \(4, 9, 12\)"),
        (np.full((1, 4, 9, 12), 7, np.float64), r"is float64"),
        (np.full((1, 4, 9, 12), 7, ">f4"), r"is >f4"),
        (read_only(np.full((1, 4, 9, 12), 7, np.float32)), "must be C-contiguous, aligned and writeable"),
        (np.full((1, 4, 9, 24), 7, np.float32)[..., ::2], "must be C-contiguous, aligned and writeable"),
        (np.full((1, 4, 12, 9), 7, np.float32).transpose(0, 1, 3, 2), "must be C-contiguous, aligned and writeable"),
        (in_a_field(np.full((1, 4, 9, 12), 7, np.float32)), "must be C-contiguous, aligned and writeable"),
        ("y", "is str"),
    ],
)
def test_wrong_output_is_refused_and_not_written(net: tvmcnn.Runner, x: Array, out: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=f"out= for 'y' .*{sentence}|out= for 'y' {sentence}"):
        net(x, out=out)
    assert isinstance(out, str) or (out == 7).all()


def test_every_call_gives_a_new_array(net: tvmcnn.Runner, x: Array) -> None:
    first = net(x)
    kept = first.copy()
    second = net(-x)
    assert first.tobytes() == kept.tobytes() != second.tobytes()
    assert not np.shares_memory(first, second)
    shown = net.activations(x)
    net.activations(-x)
    assert shown["y"].tobytes() == first.tobytes()


def test_onnxruntimes_form(two: tvmcnn.Runner) -> None:
    a, b = draw(A, 1), draw(B, 2)
    assert [(i.name, i.shape) for i in two.get_inputs()] == [("a", A), ("b", B)]
    assert {i.type for i in (*two.get_inputs(), *two.get_outputs())} == {"tensor(float)"}
    assert [(o.name, o.shape) for o in two.get_outputs()] == [("joined", JOINED), ("pooled", POOLED)]
    joined, pooled = two.run(None, {"b": b, "a": a})
    assert [array.tobytes() for array in two(a, b)] == [joined.tobytes(), pooled.tobytes()]
    assert [array.shape for array in two.run(["pooled"], {"a": a, "b": b})] == [POOLED]
    assert [array.shape for array in two.run(["pooled", "joined"], {"a": a, "b": b})] == [POOLED, JOINED]


def test_form_agrees_with_onnxruntime(two: tvmcnn.Runner) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: nothing to compare the form with")
    session = ort.InferenceSession(two_in_two_out().SerializeToString(), providers=["CPUExecutionProvider"])
    for theirs, ours in zip(
        [*session.get_inputs(), *session.get_outputs()], [*two.get_inputs(), *two.get_outputs()], strict=True
    ):
        assert (theirs.name, tuple(theirs.shape), theirs.type) == (ours.name, tuple(ours.shape), ours.type)
    feeds = {"a": draw(A, 1), "b": draw(B, 2)}
    for wanted, found in zip(session.run(None, feeds), two.run(None, feeds), strict=True):
        assert_close(found, wanted)


def test_activations_are_refused_where_they_were_left_out(tmp_path: Path, x: Array) -> None:
    tvmcnn.compile(one_conv(), output=tmp_path / "closed.so", activations=False, verify=False)
    closed = tvmcnn.load(tmp_path / "closed.so")
    with pytest.raises(InputError, match=r"closed\.so was compiled with --no-activations"):
        closed.activations(x)
    assert closed.step_by_step(x).tobytes() == closed(x).tobytes()


# ---- threads, processes, files --------------------------------------------------------------------------------------


def test_eight_threads_at_once(net: tvmcnn.Runner) -> None:
    inputs = [draw((1, 3, 11, 13), seed) for seed in range(8)]
    wanted = [net(x).tobytes() for x in inputs]
    assert len(set(wanted)) == 8
    wrong: list[int] = []
    start = threading.Barrier(8)

    def work(index: int) -> None:
        start.wait()
        for call in range(200):
            found = net(inputs[index]) if call % 10 else net.activations(inputs[index])["y"]
            if found.tobytes() != wanted[index]:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


FORK = """
import os, signal, sys
import numpy as np
import tvmcnn
net = tvmcnn.load(sys.argv[1])
x = np.random.default_rng(1).standard_normal(net.inputs[0].shape, np.float32)
before = net(x).tobytes()
child = os.fork()
if not child:
    signal.alarm(900)  # a child that hangs is killed, and that is no exit status of 0
    os._exit(0 if net(x).tobytes() == before else 3)
_, status = os.waitpid(child, 0)
assert net(x).tobytes() == before
sys.exit(status)
"""


def test_fork_after_use(conv: Compiled) -> None:
    """In a process of its own, which has no other threads to lose."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FORK, conv.path], timeout=GUARD, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_recompiling_over_a_loaded_library(tmp_path: Path, x: Array, y: Array) -> None:
    """The loaded one goes on; the path loaded again gives the new one, though the dynamic loader knows the path."""
    path = tmp_path / "conv.so"
    tvmcnn.compile(one_conv(), output=path, verify=False)
    first = tvmcnn.load(path)
    before = first(x).tobytes()
    changed = one_conv()
    changed.graph.node[1].op_type = "Sigmoid"
    changed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    changed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    tvmcnn.compile(changed, output=path, verify=False)
    assert first(x).tobytes() == before
    second = tvmcnn.load(path)
    z = draw((3, 3, 11, 13), 4)
    assert_close(second(z), tvmcnn.reference(changed, z)["y"])
    assert second.step_by_step(z).tobytes() == second(z).tobytes()
    assert first(x).tobytes() == before
    tvmcnn.compile(one_conv(), output=path, verify=False)
    third = tvmcnn.load(path)
    assert_close(third(x), y)
    assert third(x).tobytes() == before


def test_library_written_over_in_place_is_refused(tmp_path: Path, library: bytes, net: tvmcnn.Runner, x: Array) -> None:
    """`cp` keeps the inode, under which the dynamic loader has the old code; the same bytes again are no change."""
    path = tmp_path / "copied.so"
    path.write_bytes(library)
    loaded = tvmcnn.load(path)
    with path.open("r+b") as file:
        file.write(library)
    assert tvmcnn.load(path)(x).tobytes() == net(x).tobytes()
    *_, image_size, _, _ = container.FOOTER.unpack(library[-container.FOOTER.size :])
    # Bytes behind the last section, so that the test itself does not pull mapped code away from under the process.
    with path.open("r+b") as file:
        file.write(with_trailer(library[:image_size] + bytes(8), net.manifest))
    assert "written over in place" in refusal(path)
    del loaded  # with it the old code is gone
    gc.collect()
    tvmcnn.load(path)


def test_replaced_while_older_ones_go(tmp_path: Path, library: bytes, net: tvmcnn.Runner, x: Array) -> None:
    """Whatever inode the file system gives again, a path's library is that of the file which is there."""
    changed = one_conv()
    changed.graph.node[1].op_type = "Sigmoid"
    other = tvmcnn.compile(changed, output=tmp_path / "other.so", verify=False).path.read_bytes()
    path, wanted = tmp_path / "net.so", {library: net(x).tobytes()}
    wanted[other] = tvmcnn.load(tmp_path / "other.so")(x).tobytes()
    held: list[Any] = []
    for content in (library, other, library, other, other, library):
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(path)
        held.append(tvmcnn.load(path))
        assert held[-1](x).tobytes() == wanted[content]
        if len(held) > 1:
            del held[0]
            gc.collect()


def test_relative_path(conv: Compiled, x: Array, net: tvmcnn.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(conv.path.parent)
    relative = tvmcnn.load("conv.so")
    monkeypatch.chdir("/")
    assert relative(x).tobytes() == net(x).tobytes()


def test_awkward_path(library: bytes, net: tvmcnn.Runner, x: Array, tmp_path: Path) -> None:
    path = tmp_path / "ein Ordner; $HOME 'é'" / "a b.v1.so"
    path.parent.mkdir()
    path.write_bytes(library)
    assert tvmcnn.load(path)(x).tobytes() == net(x).tobytes()
    assert tvmcnn.load(str(path))(x).tobytes() == net(x).tobytes()


def test_compiling_twice_gives_the_same_bytes(
    conv: Compiled, library: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for folder in (conv.path.parent / "same", tmp_path / "another folder"):
        folder.mkdir()
        tvmcnn.compile(one_conv(), output=folder / "conv.so")
        assert (folder / "conv.so").read_bytes() == library
    tvmcnn.compile(one_conv(), output=folder / "conv.so", target=conv.target.name)
    assert (folder / "conv.so").read_bytes() == library  # "native" leaves nothing of this machine but its class


def test_compiling_in_another_process_gives_the_same_bytes(conv: Compiled, library: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(one_conv().SerializeToString())
    script = "import sys, tvmcnn; tvmcnn.compile(sys.argv[1], output=sys.argv[2])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", script, tmp_path / "m.onnx", tmp_path / "conv.so"]
    subprocess.run(command, check=True, timeout=GUARD, env=environment, cwd=tmp_path)
    assert (tmp_path / "conv.so").read_bytes() == library


def test_library_holds_no_path_time_or_host(conv: Compiled, library: bytes, net: tvmcnn.Runner) -> None:
    text = container.json.dumps(net.manifest)
    assert not re.search(r'"[^"]*(/[\w.-]+){2,}', text), "an absolute path"
    assert not re.search(r"\b20\d\d-\d\d|\d\d:\d\d:\d\d", text), "a date or a time"
    for secret in (socket.gethostname(), str(conv.path.parent), str(ROOT), os.path.expanduser("~") + "/", "/tmp/"):
        assert len(secret) < 4 or secret.encode() not in library


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_library_is_as_open_as_its_owner_says(umask: int, tmp_path: Path) -> None:
    """It is code: who may write it decides what others run."""
    conv = one_conv()
    before = os.umask(umask)
    try:
        path = tvmcnn.compile(conv, output=tmp_path / "conv.so", verify=False).path
        assert os.umask(umask) == umask, "compiling leaves it as it was"
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_manifest_says_what_was_used(net: tvmcnn.Runner, conv: Compiled) -> None:
    manifest = net.manifest
    assert manifest["precision"] == "float32"
    assert manifest["target"] == {"name": conv.target.name, "features": list(conv.target.features)}
    assert manifest["versions"]["tvmcnn"] == tvmcnn.__version__
    assert set(manifest["versions"]) == {"tvmcnn", "tvm", "tvm-ffi", "cc"}
    assert [(entry["name"], entry["shape"]) for entry in manifest["inputs"]] == [("x", [1, 3, 11, 13])]
    assert [(entry["name"], entry["shape"]) for entry in manifest["outputs"]] == [("y", [1, 4, 9, 12])]
    assert sum(kernel["macs"] for kernel in manifest["kernels"]) == 4 * 9 * 12 * 3 * 3 * 2
    assert "conv" in repr(net) and "x 1x3x11x13" in repr(net)
