"""Files in and out: arrays of NumPy, tensors of the ONNX model zoo, and images."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tvmcnn.errors import InputError, ToolError, TvmcnnError
from tvmcnn.files import written_whole
from tvmcnn.network import Array
from tvmcnn.run.arrays import ArrayInfo

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Pixels:
    """What an image becomes: (pixel/255 − mean) / std, one mean and std for all channels or one each, which are red,
    green, blue, or in the other order."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    bgr: bool = False


def pixels_of(
    metadata: Mapping[str, str],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bgr: bool = False,
) -> Pixels:
    """The normalisation that is given, and else that of the model's own metadata.

    Raises InputError where these have other text than numbers under "mean" or "std".
    """
    centre = _fact(metadata, "mean", "0") if mean is None else tuple(mean)
    spread = _fact(metadata, "std", "1") if std is None else tuple(std)
    return Pixels(centre, spread, bgr)


def _fact(metadata: Mapping[str, str], key: str, default: str) -> tuple[float, ...]:
    """0.485,0.456,0.406 under a key"""
    text = metadata.get(key, default)
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"the model's metadata says {key} = '{text}', which is not numbers: give --{key}") from None


def read_inputs(path: Path, inputs: Sequence[ArrayInfo], pixels: Pixels) -> dict[str, Array]:
    """The arrays of a file by input name: .npy and .pb for a network with one input, .npz by name, or an image.

    Raises InputError for a file that cannot be read or does not fit.
    """
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
                return {name: archive[name] for name in archive.files}
        if len(inputs) != 1:
            names = ", ".join(info.name for info in inputs)
            raise InputError(f"{path} holds one array; the network has {len(inputs)} inputs: give an .npz with {names}")
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return {inputs[0].name: np.lib.format.read_array(file, allow_pickle=False)}
        if path.suffix == ".pb":
            from tvmcnn.onnx_file import read_tensor  # needs onnx, which running a library does not

            return {inputs[0].name: read_tensor(path)}
        if path.suffix.lower() in IMAGES:
            return {inputs[0].name: read_image(path, inputs[0].shape, pixels)}
    except (TvmcnnError, ModuleNotFoundError):
        raise
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # zipfile, zlib, tokenize and Pillow each have errors of their own for a damaged file
        text = f"{type(error).__name__}: {error}".removesuffix(": ")
        raise InputError(f"cannot read {path}: it is damaged, or no {path.suffix} file ({text})") from error
    raise InputError(f"{path} ends in '{path.suffix}'; allowed are .npy, .npz, .pb, {', '.join(IMAGES)}")


def size_for(path: Path, sizes: Sequence[Sequence[ArrayInfo]]) -> Sequence[ArrayInfo]:
    """The size among several that an image file has, height and width; the first where none is."""
    if len(sizes) == 1 or path.suffix.lower() not in IMAGES:
        return sizes[0]
    try:
        from PIL import Image

        with Image.open(path) as image:
            height, width = image.height, image.width
    except (ImportError, OSError):  # which reading it says in words
        return sizes[0]
    return next((infos for infos in sizes if infos[0].shape[2:] == (height, width)), sizes[0])


def read_image(path: Path, shape: Sequence[int], normal: Pixels) -> Array:
    """An image file as an image volume (1, C, H, W), resized (bilinear) to the network's H and W, grey if C is 1."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ToolError("reading images needs Pillow: install it by pip install 'tvmcnn[compiler]'") from error
    if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3):
        raise InputError(f"{path} is an image; the network takes {tuple(shape)}, not 1 x 1 x H x W or 1 x 3 x H x W")
    _, channels, height, width = shape
    with Image.open(path) as image:
        pixels = image.convert("L" if channels == 1 else "RGB")
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
        volume = np.asarray(pixels, np.float32).reshape(height, width, channels).transpose(2, 0, 1)[None] / 255
    if normal.bgr:
        volume = volume[:, ::-1]
    for name, values in (("mean", normal.mean), ("std", normal.std)):
        if len(values) not in (1, channels):
            allowed = "1" if channels == 1 else f"1 or {channels}"
            raise InputError(
                f"--{name} has {len(values)} values; the network takes {channels} channels: give {allowed}"
            )
    if not all(normal.std):
        raise InputError("--std has a zero; pixels are divided by it")
    centre, spread = (np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (normal.mean, normal.std))
    return np.ascontiguousarray((volume - centre) / spread, dtype=np.float32)


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name as .npz, or a lone one as .npy. Raises ToolError; the file appears whole or not at all."""
    if path.suffix not in (".npz", ".npy"):
        raise ToolError(f"{path} ends in '{path.suffix}'; allowed are .npz and .npy")
    if path.suffix == ".npy" and len(arrays) != 1:
        raise ToolError(f"{path} takes one array; there are {len(arrays)}: use .npz")
    with written_whole(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".npy":
            np.save(file, next(iter(arrays.values())))
        else:
            with zipfile.ZipFile(file, "w") as archive:  # not np.savez: it cannot take an array named "file"
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
