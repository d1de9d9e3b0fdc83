"""Fits: whether a recorded config is one for the kernel that it is recorded for.

A config checks itself; whether its tiles divide this image, say, only the kernel tells. What is found here would be
packed or computed wrongly, read out of bounds, or keep LLVM busy for minutes. What else does not fit is refused by the
expression or the rule, and told as the record's all the same: see `refusing`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from tvmcnn.blocks import BLOCK, channels_together, summed_channels
from tvmcnn.choose.cpu.defaults import winograd_fits
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import Records
from tvmcnn.errors import TvmcnnError
from tvmcnn.fuse import window_size
from tvmcnn.network import Choice, Kernel, Network
from tvmcnn.winograd import grid, tiles_for


def recorded(records: Records, network: Network, kernel: Kernel, rule: str) -> tuple[Any, str] | None:
    """The config recorded for the kernel under the rule with its tier, or None.

    Raises TvmcnnError for one that does not fit the kernel.
    """
    found = records.find(kernel_words(network, kernel), rule)
    if found is not None and (reason := misfit(kernel, rule, found[0])):
        raise _refusal(kernel, rule, found[0], reason)
    return found


def misfit(kernel: Kernel, rule: str, config: Any) -> str:
    """Why a config of a rule must not be used for a kernel; empty if nothing is known against it."""
    return MISFITS[rule](kernel, config) if rule in MISFITS else ""


@contextlib.contextmanager
def refusing(choice: Choice) -> Iterator[None]:
    """Raise TvmcnnError for whatever goes wrong with a choice whose config is a record's: then that does not fit."""
    try:
        yield
    except (TvmcnnError, OSError, MemoryError):  # no room is nobody's config
        raise
    except Exception as error:
        if choice.tier == "default":
            raise
        raise _refusal(choice.kernel, choice.rule, choice.config, "") from error


def _refusal(kernel: Kernel, rule: str, config: Any, reason: str) -> TvmcnnError:
    words = " ".join(f"{key}={value}" for key, value in asdict(config).items())
    return TvmcnnError(f"the record of {kernel} does not fit it: rule {rule}, {words}{f': {reason}' * bool(reason)}")


# ---- by rule, why a config does not fit a kernel; empty if it may ---------------------------------------------------


def _winograd_tile(kernel: Kernel, tile: int, side: int) -> str:
    if not winograd_fits(kernel):
        return "the convolution is not of at least 16 channels by 3 x 3 or 5 x 5 filters of stride 1"
    height, width = kernel.anchor["kernel_shape"]
    if height != side:
        return f"the filters are {height} x {width}, not {side} x {side}"
    if tile not in tiles_for(side):
        return f"filters of {side} x {side} make no tiles of {tile} x {tile}"
    p, q = window_size(kernel)
    return (
        "" if tile % p == tile % q == 0 else f"the pool of {p} x {q} pixels does not divide a tile of {tile} x {tile}"
    )


def _streamed(kernel: Kernel, config: Any) -> str:
    if reason := _winograd_tile(kernel, config.tile, config.kernel):
        return reason
    rows, columns = (config.tile // size for size in window_size(kernel))
    makes = f"a tile makes {rows} x {columns} pixels, not {config.rows} x {config.columns}"
    return "" if (config.rows, config.columns) == (rows, columns) else makes


def _winograd(kernel: Kernel, config: Any) -> str:
    if reason := _streamed(kernel, config):
        return reason
    count = math.prod(grid(kernel.anchor, kernel.inputs[0].shape, config.tile, window_size(kernel)))
    blocks = -(-kernel.output.shape[1] // BLOCK)
    return _divides(config.strip, count, "tiles") or _divides(config.parts, blocks, "blocks of 16 maps")


def _pixels(kernel: Kernel, config: Any) -> str:
    group = kernel.anchor["group"]
    if config.groups != group or config.pixels < BLOCK:
        return f"the convolution has {group} groups, and a run at least {BLOCK} pixels"
    maps, pixels = kernel.output.shape[1] // group, math.prod(kernel.output.shape[2:])
    return _divides(config.maps, maps, "maps of a group") or _divides(config.pixels, pixels, "pixels")


def _dense(kernel: Kernel, config: Any) -> str:
    rows = kernel.output.size // kernel.output.shape[1 if kernel.anchor.op == "Conv" else -1]
    return "" if config.rows <= rows else f"a tile has {config.rows} rows, the product {rows}"


def _direct(kernel: Kernel, config: Any) -> str:
    height, width = kernel.output.shape[2:]
    if not config.overlap or (config.rows <= height and config.columns <= width):
        return ""
    return f"a tile of {config.rows} x {config.columns} is larger than the {height} x {width} pixels, and overlaps none"


def _amx(kernel: Kernel, config: Any) -> str:
    height = kernel.output.shape[2]
    rows = f"a band has {config.rows} rows, the output {height}" if config.rows > height else ""
    return rows or _divides(config.maps, _blocks(kernel), "blocks of 16 maps")


def _pairs(kernel: Kernel, config: Any) -> str:
    reason = _direct(kernel, config) or _divides(config.vectors, _blocks(kernel), "blocks of 16 maps")
    pairs = summed_channels(channels_together(kernel), BLOCK)[1] // 2
    return reason or _divides(config.unroll, pairs, "pairs of channels")


def _blocks(kernel: Kernel) -> int:
    return -(-kernel.output.shape[1] // BLOCK)


def _gemm(kernel: Kernel, config: Any) -> str:
    if kernel.anchor.op != "Conv":
        return "a matrix product is not split, nor by Winograd" if config.split > 1 or config.winograd else ""
    if config.winograd:
        return _winograd_tile(kernel, config.winograd, 3)
    window = math.prod(window_size(kernel))
    return "" if config.thread_pixels % window == 0 else f"a thread has no whole windows of {window} pixels"


def _divides(part: int, whole: int, of: str) -> str:
    return "" if whole % part == 0 else f"{part} does not divide the {whole} {of}"


MISFITS: dict[str, Callable[[Kernel, Any], str]] = {
    "direct": _direct,
    "winograd": _winograd,
    "streamed": _streamed,
    "pixels": _pixels,
    "dense": _dense,
    "pairs": _pairs,
    "amx": _amx,
    "gemm": _gemm,
}
