"""Images of digits: their form, their normalisation, and MNIST's from its IDX files, plain or gzip-compressed."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tvmcnn.errors import ToolError

IMAGE_SIDE = 32  # pixels: the side of the network's input
MNIST_SIDE = 28  # pixels: the side of an image in the files
UBYTE = 0x08  # the IDX code of the element type "unsigned byte"


@dataclass(frozen=True)
class Digits:
    """Grey levels of shape (count, 32, 32), 0 to 255, white on black, and labels of shape (count,), 0 to 9."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Normalisation:
    """The network's input is (grey level / 255 - mean) / std."""

    mean: float
    std: float

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return images of shape (count, 32, 32) as network input of shape (count, 1, 32, 32)."""
        return ((images[:, None].astype(np.float32) / 255.0 - self.mean) / self.std).astype(np.float32)


def find_idx(folder: Path, name: str) -> Path:
    """Return the path of the IDX file `name` in `folder`, with or without the ending .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise ToolError(f"the folder {folder} holds neither {name} nor {name}.gz")


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of unsigned bytes in the IDX file `path`, in the shape its header states.

    The header is two zero bytes, the element type, the number of axes, then one big-endian 32-bit length per axis.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ToolError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != bytes((0, 0, UBYTE)):
        raise ToolError(f"{path} is not an IDX file of unsigned bytes")
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise ToolError(f"{path} ends within its header")
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if len(content) - start != math.prod(shape):
        raise ToolError(f"{path} holds {len(content) - start} bytes where its header states the shape {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def check_mnist(folder: Path) -> None:
    """Raise ToolError unless `folder` holds the four MNIST files; none of them is opened."""
    if not folder.is_dir():
        raise ToolError(f"the MNIST folder {folder} does not exist")
    for part in ("train", "t10k"):
        find_idx(folder, f"{part}-images-idx3-ubyte")
        find_idx(folder, f"{part}-labels-idx1-ubyte")


def load_mnist(folder: Path, part: str) -> Digits:
    """Return the digits of `part`, "train" or "t10k", with two pixels of background around the files' 28x28."""
    images = read_idx(find_idx(folder, f"{part}-images-idx3-ubyte"))
    labels = read_idx(find_idx(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or images.shape[1:] != (MNIST_SIDE, MNIST_SIDE) or labels.shape != images.shape[:1]:
        raise ToolError(f"the MNIST {part} files disagree: images of shape {images.shape}, labels {labels.shape}")
    margin = (IMAGE_SIDE - MNIST_SIDE) // 2
    return Digits(np.pad(images, ((0, 0), (margin, margin), (margin, margin))), labels.astype(np.int64))
