"""The artifact: a shared library with a trailer behind its ELF image. Written, read and checked here.

    | ELF image | manifest (JSON) | footer: magic 8, format u32, 0 u32, ELF bytes u64, manifest bytes u64, its SHA-256 |

The manifest carries the SHA-256 of the ELF image, so that every byte is covered and Python can refuse a damaged file
before any of its code is mapped; and that of the image without the weights in it, which for a large network is all that
is worth the time. The dynamic loader never looks past the ELF image. Needs neither TVM nor ONNX.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from tvmcnn.errors import ArtifactError

MAGIC = b"tvmcnn\r\n"  # \r\n: a transfer that rewrites line ends damages it
FORMAT = 2  # 1 was never released
FOOTER = struct.Struct("<8sIIQQ32s")
CHUNK = 1 << 20  # bytes read at a time
CHECKS = ("all", "code")

Manifest = dict[str, Any]


def sealed(image: Path, manifest: Manifest, target: Path, weights: Path | None = None) -> None:
    """Write the artifact of an ELF image and its manifest, whose hashes are filled in here, to `target`.

    `weights` is the file of which the image has the bytes somewhere. Part by part: a network may have half a gigabyte
    of them. Raises OSError.
    """
    whole = hashlib.sha256()
    with image.open("rb") as source, target.open("wb") as file:
        while part := source.read(CHUNK):
            whole.update(part)
            file.write(part)
        size = file.tell()
        place = place_of(weights, image) if weights is not None else (0, 0)
        code = {"sha256": _digest(source, size, place), "weights_at": list(place)}
        file.write(trailer(manifest | {"sha256": whole.hexdigest(), "code": code}, size))


def place_of(part: Path, whole: Path) -> tuple[int, int]:
    """Where the bytes of one file begin and end in another; (0, 0) unless that is one place: zeros may be code, too."""
    size, found = part.stat().st_size, list[int]()
    if not size:
        return 0, 0
    with (
        part.open("rb") as given,
        whole.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as there,
        mmap.mmap(given.fileno(), 0, access=mmap.ACCESS_READ) as wanted,
    ):
        start = there.find(wanted[:CHUNK])
        while start >= 0 and len(found) < 2:
            at = range(0, size, CHUNK)
            if all(there[start + i : start + min(i + CHUNK, size)] == wanted[i : i + CHUNK] for i in at):
                found.append(start)
            start = there.find(wanted[:CHUNK], start + 1)
    return (found[0], found[0] + size) if len(found) == 1 else (0, 0)


def trailer(manifest: Manifest, size: int) -> bytes:
    """The manifest and the footer behind an ELF image of `size` bytes."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    return text + FOOTER.pack(MAGIC, FORMAT, 0, size, len(text), hashlib.sha256(text).digest())


def read_manifest(path: str | os.PathLike[str], check: str = "all") -> Manifest:
    """The checked manifest of a library. Raises ArtifactError unless every byte of the file is as it was written.

    With `check` "code" the weights are not read: of 100 MB of them that saves 0.06 s. Nothing of the file is executed,
    or mapped as code.
    """
    label = os.fspath(path)
    if Path(path).suffix != ".so":  # tvm-ffi picks its loader by the suffix
        raise ArtifactError(f"{label} is not a library of tvmcnn: its name must end in .so")
    try:
        with open(path, "rb") as file:
            return _checked(file, label, check)
    except OSError as error:
        raise ArtifactError(f"cannot read {label}: {error.strerror}") from error


def image_bytes(file: BinaryIO) -> int:
    """Bytes of the ELF image of a library that `read_manifest` has checked."""
    file.seek(-FOOTER.size, os.SEEK_END)
    size: int = FOOTER.unpack(file.read(FOOTER.size))[3]
    return size


def _checked(file: BinaryIO, label: str, check: str) -> Manifest:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != b"\x7fELF":
        raise ArtifactError(f"{label} is not a library of tvmcnn: it is no ELF file")
    file.seek(max(0, size - FOOTER.size))
    footer = file.read(FOOTER.size).rjust(FOOTER.size, b"\0")
    magic, version, zero, image_size, text_size, digest = FOOTER.unpack(footer)
    if magic != MAGIC:
        raise ArtifactError(f"{label} is not a library of tvmcnn, or it is truncated: its trailer is missing")
    if version > FORMAT:
        raise ArtifactError(f"{label} has format {version}; this tvmcnn reads {FORMAT}: update tvmcnn")
    whole = image_size + text_size + FOOTER.size == size and version == FORMAT and zero == 0
    text = b""
    if whole:
        file.seek(image_size)
        text = file.read(text_size)
    if not whole or hashlib.sha256(text).digest() != digest:
        raise ArtifactError(f"{label} is damaged: its manifest does not match its hash")
    manifest: Manifest = json.loads(text)
    if check == "code":
        if _digest(file, image_size, manifest["code"]["weights_at"]) != manifest["code"]["sha256"]:
            raise ArtifactError(f"{label} is damaged: its code does not match its hash")
    elif _digest(file, image_size, (0, 0)) != manifest["sha256"]:
        raise ArtifactError(f"{label} is damaged: its code and weights do not match their hash")
    return manifest


def _digest(file: BinaryIO, size: int, without: Sequence[int]) -> str:
    """The SHA-256 of the first `size` bytes of a file but for those from `without[0]` to `without[1]`."""
    found = hashlib.sha256()
    for begin, end in ((0, without[0]), (without[1], size)):
        file.seek(begin)
        left = end - begin
        while left and (part := file.read(min(CHUNK, left))):
            left -= len(part)
            found.update(part)
    return found.hexdigest()
