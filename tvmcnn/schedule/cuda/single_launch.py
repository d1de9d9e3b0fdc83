"""A whole network in one launch: a block of threads has some images, and every tensor of them in shared memory.

    for n, by blocks: for each kernel: for its outputs, by threads: for the images: …; all threads wait for each other

A launch takes a few µs that are not there for networks of which a kernel takes one. A thread makes the same element of
each image, so that it loads a weight once for all: the matrices of LeNet-5, 236 KB, come from L2 once a block.
"""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import WholeConfig
from tvmcnn.schedule.cuda.gemv import UNROLL
from tvmcnn.schedule.steps import Block, Loop

PRODUCT = 4  # axes of the "sum" of a matrix product: row, part, column and term; a convolution has six


def whole(sch: Schedule, config: WholeConfig) -> None:
    """Blocks: of each part, in their order, "sum" and "out"; between them "seen", a stage under another shape."""
    blocks = list(sch.get_child_blocks(sch.get_sblock("root")))
    names = {id(block): sch.get(block).name_hint.split("_")[0] for block in blocks}
    for block in blocks:
        if names[id(block)] == "seen":
            sch.compute_inline(block)
    sums, outs = ([block for block in blocks if names[id(block)] == name] for name in ("sum", "out"))
    image, *rest = sch.get_loops(outs[-1])
    block, inner = sch.split(image, [None, config.images])
    sch.bind(block, "blockIdx.x")
    for sum_, out in reversed(list(zip(sums, outs, strict=True))):
        if out is not outs[-1]:
            sch.set_scope(out, 0, "shared")
            sch.compute_at(out, block, preserve_unit_loops=True)
            inner, *rest = sch.get_loops(out)[1:]
        sch.reorder(*rest, inner)
        thread = _threads(sch, rest, config)
        if len(sch.get(sum_).iter_vars) == PRODUCT:
            _product(sch, sum_, block, config)
            continue
        sch.set_scope(sum_, 0, "local")
        sch.compute_at(sum_, thread, preserve_unit_loops=True)
        images, _, window, *taps = sch.get_loops(sum_)[-6:]
        sch.reorder(*taps, images, window)  # sums that do not wait for each other
        for loop in (*taps[1:], images, window):  # a row of the image and the filter stay in registers
            sch.unroll(loop)


def _threads(sch: Schedule, loops: list[Loop], config: WholeConfig) -> Loop:
    """The loops shared out to the block's threads."""
    _, thread = sch.split(sch.fuse(*loops) if len(loops) > 1 else loops[0], [None, config.threads])
    sch.bind(thread, "threadIdx.x")
    return thread


def _product(sch: Schedule, sums: Block, block: Loop, config: WholeConfig) -> None:
    """Each thread has a column of one part of the sum: the parts keep more threads at work than there are columns."""
    copy = sch.cache_write(sums, 0, "local")
    sch.set_scope(copy, 0, "shared")
    sch.compute_at(copy, block, preserve_unit_loops=True)
    image, *rest = sch.get_loops(copy)[1:]
    sch.reorder(*rest, image)
    thread = _threads(sch, rest, config)
    sch.compute_at(sums, thread, preserve_unit_loops=True)
    image, *_, term = sch.get_loops(sums)[-4:]
    outer, term = sch.split(term, [None, UNROLL])
    sch.reorder(outer, term, image)
    sch.unroll(term)
    sch.unroll(image)
