"""Digits in and out: IDX files, normalisation, the demo's picture, and the array files of `run`."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tvmcnn.demo import SHADES, picture
from tvmcnn.digits import Normalisation, check_mnist, find_idx, load_mnist, read_idx
from tvmcnn.errors import InputError, ToolError
from tvmcnn.run.arrays import ArrayInfo
from tvmcnn.run.inputs import Pixels, read_image, read_inputs, write_arrays

MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file."""
    header = bytes((0, 0, 8, array.ndim))
    return header + b"".join(length.to_bytes(4, "big") for length in array.shape) + array.tobytes()


def draw(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# ---- IDX files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300,), (3, 4), (2, 3, 5), (0, 28, 28)])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_round_trip(tmp_path: Path, shape: tuple[int, ...], packed: bool) -> None:
    array = draw(*shape)
    path = tmp_path / f"numbers{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    found = read_idx(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


WHOLE = idx(draw(2, 3, 5))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not an IDX file of unsigned bytes"),
        (WHOLE[:3], "is not an IDX file of unsigned bytes"),
        (b"\x00\x01" + WHOLE[2:], "is not an IDX file of unsigned bytes"),
        (b"\x00\x00\x0d" + WHOLE[3:], "is not an IDX file of unsigned bytes"),  # the type code of float32
        (b"<!DOCTYPE html>" + WHOLE, "is not an IDX file of unsigned bytes"),  # what a moved download leaves
        (WHOLE[:15], "ends within its header"),
        (WHOLE[:-1], r"holds 29 bytes where its header states the shape \(2, 3, 5\)"),
        (WHOLE + b"\0", r"holds 31 bytes where its header states the shape \(2, 3, 5\)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path: Path, content: bytes, words: str, packed: bool) -> None:
    path = tmp_path / f"numbers{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ToolError, match=words) as caught:
        read_idx(path)
    assert str(caught.value).startswith(str(path))


def test_damaged_gzip(tmp_path: Path) -> None:
    path = tmp_path / "numbers.gz"
    whole = gzip.compress(idx(draw(40, 28, 28)))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for content in (whole[:-20], whole[:5], bytes(flipped), WHOLE):
        path.write_bytes(content)
        with pytest.raises(ToolError, match=r"numbers\.gz cannot be read: "):
            read_idx(path)


def test_missing_idx(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="cannot be read"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(ToolError, match=r"holds neither train-x nor train-x\.gz"):
        find_idx(tmp_path, "train-x")


def test_a_plain_file_goes_before_a_packed_one(tmp_path: Path) -> None:
    (tmp_path / "part.gz").write_bytes(b"")
    assert find_idx(tmp_path, "part") == tmp_path / "part.gz"
    (tmp_path / "part").write_bytes(b"")
    assert find_idx(tmp_path, "part") == tmp_path / "part"


# ---- MNIST ----------------------------------------------------------------------------------------------------------


def write_mnist(folder: Path, part: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_load_mnist(tmp_path: Path, part: str) -> None:
    images, labels = draw(7, 28, 28), np.arange(7, dtype=np.uint8)
    write_mnist(tmp_path, part, images, labels)
    digits = load_mnist(tmp_path, part)
    assert digits.images.dtype == np.uint8
    assert digits.labels.dtype == np.int64
    assert digits.images.shape == (7, 32, 32)
    np.testing.assert_array_equal(digits.images[:, 2:30, 2:30], images)
    margin = digits.images.copy()
    margin[:, 2:30, 2:30] = 0
    assert not margin.any(), "two pixels of background"
    np.testing.assert_array_equal(digits.labels, labels)


@pytest.mark.parametrize(
    ("images", "labels"),
    [((7, 28, 28), (6,)), ((7, 28, 27), (7,)), ((7, 784), (7,)), ((7, 28, 28), (7, 1))],
)
def test_mnist_files_that_disagree(tmp_path: Path, images: tuple[int, ...], labels: tuple[int, ...]) -> None:
    write_mnist(tmp_path, "t10k", draw(*images), draw(*labels))
    with pytest.raises(ToolError, match="the MNIST t10k files disagree: images of shape"):
        load_mnist(tmp_path, "t10k")


def test_check_mnist(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="does not exist"):
        check_mnist(tmp_path / "nowhere")
    for count, name in enumerate(MNIST):
        with pytest.raises(ToolError, match=name):
            check_mnist(tmp_path)
        (tmp_path / (name if count % 2 else f"{name}.gz")).write_bytes(b"unread")
    check_mnist(tmp_path)


# ---- normalisation, picture -----------------------------------------------------------------------------------------


def test_normalisation() -> None:
    images = np.zeros((2, 32, 32), np.uint8)
    images[0, 3, 4], images[1, 31, 0] = 255, 51
    found = Normalisation(0.2, 0.5).apply(images)
    assert found.dtype == np.float32
    assert found.shape == (2, 1, 32, 32)
    np.testing.assert_allclose(found[0, 0, 3, 4], 1.6, rtol=1e-6)
    np.testing.assert_allclose(found[1, 0, 31, 0], 0.0, atol=1e-7)
    assert (np.delete(found.ravel(), [3 * 32 + 4, 1024 + 31 * 32]) == np.float32(-0.4)).all()


def test_picture_fits_a_terminal() -> None:
    lines = picture(draw(5, 32, 32), np.array([3, 1, 4, 1, 5])).split("\n")
    assert len(lines) == 15
    assert max(map(len, lines)) <= 90
    assert lines[-1].split() == ["3", "1", "4", "1", "5"]
    assert {character for line in lines[:-1] for character in line} <= set(SHADES)
    assert all(line == line.rstrip() for line in lines)


def test_picture_shows_where_the_ink_is() -> None:
    images = np.zeros((2, 32, 32), np.uint8)
    images[0, 2:4, 6:8] = 255  # the first line, the fourth character
    images[1, 28:30, 30:32] = 128  # the last line, the last character
    lines = picture(images, np.array([0, 9])).split("\n")
    assert lines[0] == " " * 3 + SHADES[-1]
    assert lines[1:13] == [""] * 12
    assert len(lines[13]) == 16 + 2 + 16
    assert lines[13].strip() == SHADES[5] or lines[13].strip() == SHADES[4]
    assert lines[14].split() == ["0", "9"]
    assert abs(lines[14].index("0") - 8) <= 1
    assert abs(lines[14].index("9") - 26) <= 1


# ---- array files ----------------------------------------------------------------------------------------------------


def test_arrays_round_trip(tmp_path: Path) -> None:
    one, two = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float32)
    infos = [ArrayInfo("one", (2, 3)), ArrayInfo("two/b", (4,))]
    write_arrays(tmp_path / "both.npz", {"one": one, "two/b": two})
    found = read_inputs(tmp_path / "both.npz", infos, Pixels())
    assert list(found) == ["one", "two/b"]
    np.testing.assert_array_equal(found["one"], one)
    np.testing.assert_array_equal(found["two/b"], two)
    write_arrays(tmp_path / "lone.npy", {"one": one})
    np.testing.assert_array_equal(read_inputs(tmp_path / "lone.npy", infos[:1], Pixels())["one"], one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.npz", "lone.npy"]


def test_arrays_keep_any_name(tmp_path: Path) -> None:
    # `file` is the name of a parameter of numpy.savez.
    arrays = {"file": np.ones(2, np.float32), "out:0": np.zeros(3, np.float32)}
    write_arrays(tmp_path / "y.npz", arrays)
    infos = [ArrayInfo(name, array.shape) for name, array in arrays.items()]
    found = read_inputs(tmp_path / "y.npz", infos, Pixels())
    assert {name: array.tolist() for name, array in found.items()} == {"file": [1, 1], "out:0": [0, 0, 0]}


def test_refused_arrays(tmp_path: Path) -> None:
    one = np.ones((2, 3), np.float32)
    with pytest.raises(ToolError, match=r"takes one array; there are 2: use \.npz"):
        write_arrays(tmp_path / "both.npy", {"one": one, "two": one})
    with pytest.raises(ToolError, match=r"allowed are \.npz and \.npy"):
        write_arrays(tmp_path / "both.csv", {"one": one})
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"the network has 2 inputs: give an \.npz with a, b"):
        read_inputs(tmp_path / "x.npy", [ArrayInfo("a", (1,)), ArrayInfo("b", (1,))], Pixels())


def test_any_damage_to_a_file_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Random damage: what comes back is an array or InputError, whatever zipfile, NumPy, Pillow or protobuf raise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    infos = [ArrayInfo("x", (1, 1, 32, 32))]
    np.savez(tmp_path / "whole.npz", x=np.zeros((1, 1, 32, 32), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((1, 1, 32, 32), np.float32))
    Image.fromarray(draw(32, 32)).save(tmp_path / "whole.png")
    refused = 0
    for suffix in (".npz", ".npy", ".png"):
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for _ in range(400):
            content = bytearray(whole)
            for position in rng.integers(0, min(len(content), 300), 3):
                content[position] = rng.integers(256)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(content if rng.random() < 0.8 else content[: rng.integers(len(content))])
            try:
                read_inputs(path, infos, Pixels())
            except InputError as error:
                refused += 1
                assert str(error).startswith(f"cannot read {path}: "), error  # noqa: PT017 (success is allowed too)
    assert refused > 600


def test_an_image_is_resized_and_turned_grey(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.tile(np.array([[0, 51], [102, 255]], np.uint8), (1, 1))
    Image.fromarray(grey).save(tmp_path / "grey.bmp")
    np.testing.assert_allclose(read_image(tmp_path / "grey.bmp", (1, 1, 2, 2), Pixels())[0, 0], grey / 255, rtol=1e-6)
    three = read_image(tmp_path / "grey.bmp", (1, 3, 2, 2), Pixels((0.0, 0.2, 0.4)))
    for channel, mean in enumerate((0, 0.2, 0.4)):
        np.testing.assert_allclose(three[0, channel], grey / 255 - mean, atol=1e-6)
    large = read_image(tmp_path / "grey.bmp", (1, 1, 6, 4), Pixels())
    assert large.shape == (1, 1, 6, 4)
    assert large.dtype == np.float32
    assert large[0, 0, 0, 0] < large[0, 0, 0, -1] < large[0, 0, -1, -1]
