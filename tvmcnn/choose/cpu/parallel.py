"""Tasks: the independent parts of a kernel's work, which threads share. A kernel too small for that has one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

from tvmcnn.fuse import multiply_accumulates
from tvmcnn.network import Choice, Network, Shape, moved_bytes, unmoved
from tvmcnn.targets import Target

ENOUGH = 64  # tasks: with fewer outer loops in one, less of its index is a division
WORTH = 20.0  # µs of work: a launch costs 0.2 µs, and a worker's cache must fetch what the caller's has
GFLOPS, GIGABYTES = 100.0, 10.0  # a second, of one thread: a guess on the slow side costs a launch


def tasks(network: Network, choice: Choice, target: Target) -> int:
    """How many: the product of the fewest outer loops that make enough. No result depends on it."""
    if choice.is_view or _microseconds(network, choice) < WORTH:
        return 1
    products = list(itertools.accumulate(outer_loops(choice, target), int.__mul__, initial=1))
    return next((product for product in products if product >= ENOUGH), products[-1])


def _microseconds(network: Network, choice: Choice) -> float:
    return max(2 * multiply_accumulates(network, choice.kernel) / GFLOPS, moved_bytes(choice) / GIGABYTES) / 1e3


def outer_loops(choice: Choice, target: Target) -> Shape:
    """Extents of the loops around a kernel's tiles, outermost first, as its rule makes them; () if none is shared."""
    loops = LOOPS.get(choice.rule)
    return loops(choice, choice.makes.physical(choice.kernel.output.shape), target) if loops is not None else ()


# ---- one function a rule: (choice, the output's extents in memory, target) --> loops ---------------------------------


def _direct(choice: Choice, shape: Shape, target: Target) -> Shape:
    config, (n, blocks, height) = choice.config, shape[:3]
    vectors = shape[4] // target.lanes  # in a block
    tiles = math.ceil(blocks / max(1, config.vectors // vectors))
    rows = math.ceil(height / config.rows)
    return (n, config.bands, tiles, vectors // min(config.vectors, vectors), rows // config.bands)


def _winograd(choice: Choice, shape: Shape, target: Target) -> Shape:
    config = choice.config
    tiles = math.ceil(shape[2] / config.rows) * math.ceil(shape[3] / config.columns)
    return (shape[0], config.parts, tiles // config.strip)


def _streamed(choice: Choice, shape: Shape, target: Target) -> Shape:
    return (shape[1] // max(1, choice.config.vectors * target.lanes // shape[4]),)


def _planes(choice: Choice, shape: Shape, target: Target) -> Shape:
    return shape[:2]


def _pixels(choice: Choice, shape: Shape, target: Target) -> Shape:
    config = choice.config
    runs = math.prod(shape[2:]) // config.pixels
    return (shape[0], config.groups, runs, shape[1] // config.groups // config.maps)


def _images(choice: Choice, shape: Shape, target: Target) -> Shape:
    if choice.algorithm == "conv_images":
        return (shape[0], shape[2], shape[1] // choice.config.maps)
    return (shape[0] // choice.config.columns, shape[1] // choice.config.maps)


def _columns(choice: Choice, shape: Shape, target: Target) -> Shape:
    return shape[:1]


def _dense(choice: Choice, shape: Shape, target: Target) -> Shape:
    rows, columns = (math.prod(shape[:-1]), shape[-1]) if choice.kernel.anchor.op == "Gemm" else shape[:2]
    across = choice.config.tiles_across(columns)
    return (across, rows // choice.config.rows) if across > 1 else (rows // choice.config.rows,)


def _pool(choice: Choice, shape: Shape, target: Target) -> Shape:
    return shape[:3]


def _lanes(choice: Choice, shape: Shape, target: Target) -> Shape:
    return shape


def _softmax(choice: Choice, shape: Shape, target: Target) -> Shape:
    rows = (*shape[: choice.config.axis], *shape[choice.config.axis + 1 :])
    return rows if choice.config.in_lanes else rows[:-1]


def _memory(choice: Choice, shape: Shape, target: Target) -> Shape:
    if choice.algorithm in ("elementwise", "resize", "depth_to_space", "reorder"):
        return shape[:-2]
    if choice.algorithm == "concat":
        return shape[:2]
    if choice.kernel.anchor.op != "Transpose":
        return ()
    perm = choice.kernel.anchor["perm"]
    if unmoved(perm):
        return shape[: -unmoved(perm)]
    return tuple(extent for axis, extent in zip(perm[:-1], shape[:-1], strict=True) if axis != len(perm) - 1)


LOOPS: Mapping[str, Callable[[Choice, Shape, Target], Shape]] = {
    "direct": _direct,
    "winograd": _winograd,
    "winograd_data": _planes,
    "streamed": _streamed,
    "pixels": _pixels,
    "images": _images,
    "columns": _columns,
    "dense": _dense,
    "pool": _pool,
    "lanes": _lanes,
    "softmax": _softmax,
    "memory": _memory,
}


def by_rows(choice: Choice) -> bool:
    """True where the first half of the tasks makes the upper half of an image; else it makes half of its maps."""
    if choice.rule == "direct":
        return bool(choice.config.bands > 1)
    return choice.rule == "winograd" and choice.tasks > 1 and choice.config.parts == choice.kernel.output.shape[0] == 1
