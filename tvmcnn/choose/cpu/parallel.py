"""Tasks: the independent parts of a kernel's work, which threads share. A kernel too small for that has one."""

from __future__ import annotations

import itertools
import math

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
    """The extents of the loops around a kernel's tiles, outermost first, as its rule makes them."""
    config, shape = choice.config, choice.makes.physical(choice.kernel.output.shape)
    if choice.rule == "direct":
        n, blocks, height = shape[:3]
        vectors = shape[4] // target.lanes  # in a block
        tiles = math.ceil(blocks / max(1, config.vectors // vectors))
        rows = math.ceil(height / config.rows)
        return (n, config.bands, tiles, vectors // min(config.vectors, vectors), rows // config.bands)
    if choice.rule == "winograd":
        tiles = math.ceil(shape[2] / config.rows) * math.ceil(shape[3] / config.columns)
        return (shape[0], config.parts, tiles // config.strip)
    if choice.rule == "streamed":
        return (shape[1] // max(1, config.vectors * target.lanes // shape[4]),)
    if choice.rule == "winograd_data":
        return shape[:2]
    if choice.rule == "pixels":
        runs = math.prod(shape[2:]) // config.pixels
        return (shape[0], config.groups, runs, shape[1] // config.groups // config.maps)
    if choice.rule == "images":
        if choice.algorithm == "conv_images":
            return (shape[0], shape[2], shape[1] // config.maps)
        return (shape[0] // config.columns, shape[1] // config.maps)
    if choice.rule == "columns":
        return shape[:1]
    if choice.rule == "dense":
        rows, columns = (math.prod(shape[:-1]), shape[-1]) if choice.kernel.anchor.op == "Gemm" else shape[:2]
        across = config.tiles_across(columns)
        return (across, rows // config.rows) if across > 1 else (rows // config.rows,)
    if choice.rule == "pool":
        return shape[:3]
    if choice.rule == "memory" and choice.algorithm in ("elementwise", "resize", "depth_to_space", "reorder", "concat"):
        return shape[:2] if choice.algorithm == "concat" else shape[:-2]
    if choice.rule == "lanes":
        return shape
    if choice.rule == "softmax":
        rows = (*shape[: config.axis], *shape[config.axis + 1 :])
        return rows if config.in_lanes else rows[:-1]
    if choice.rule == "memory" and choice.kernel.anchor.op == "Transpose":
        perm = choice.kernel.anchor["perm"]
        if unmoved(perm):
            return shape[: -unmoved(perm)]
        return tuple(extent for axis, extent in zip(perm[:-1], shape[:-1], strict=True) if axis != len(perm) - 1)
    return ()


def by_rows(choice: Choice) -> bool:
    """True where the first half of the tasks makes the upper half of an image; else it makes half of its maps."""
    if choice.rule == "direct":
        return bool(choice.config.bands > 1)
    return choice.rule == "winograd" and choice.tasks > 1 and choice.config.parts == choice.kernel.output.shape[0] == 1
