"""Where tensors lie: halos that the kernel before leaves room for, blocks half full, pixels in the lanes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import Graph
from helpers import check, feeds

import tvmcnn
from tvmcnn.blocks import strip
from tvmcnn.compiler import Compiled


def algorithms(compiled: Compiled) -> list[str]:
    return [step.choice.algorithm for step in compiled.program.steps]


def halos(compiled: Compiled) -> list[tuple[int, int, int, int]]:
    return [step.choice.writes.halo for step in compiled.program.steps if step.choice.writes.block > 1]


def padded_chain(g: Graph) -> str:
    """Three convolutions with pads, each reading what the one before has written; batch 2, blocks half full."""
    x = g.node("Relu", g.conv(g.input(2, 17, 7, 9), 33, (1, 1)))
    y = g.node("Relu", g.conv(x, 20, (3, 2), pads=[1, 0, 2, 1]))
    return g.conv(y, 18, (2, 3), pads=[0, 2, 1, 0], strides=[2, 1])


def test_no_copy_into_a_halo(target: str, tmp_path: Path) -> None:
    """The kernel that makes a tensor writes it between the zeros that its reader wants."""
    g = Graph()
    g.output(padded_chain(g))
    compiled = check(g.model(), tmp_path, target)
    assert (1, 0, 2, 1) in halos(compiled) and (0, 2, 1, 0) in halos(compiled)
    assert algorithms(compiled).count("reorder") == 2  # of the network's input and output


def test_halo_of_several_readers(target: str, tmp_path: Path) -> None:
    """One tensor, read with two different pads, by an element-wise operator, a pool and a product over all of it."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 6, 9), 32, (1, 1)))
    a = g.conv(x, 16, (3, 3), pads=[1, 1, 0, 2])
    b = g.conv(x, 17, (2, 3), pads=[0, 2, 1, 1], strides=[1, 2])
    c = g.node("Tanh", x)
    d = g.node("MaxPool", x, kernel_shape=[3, 2], pads=[1, 0, 1, 1])
    e = g.conv(x, 5, (6, 9))
    g.output(a, b, c, d, e, g.node("Mul", x, g.node("Sigmoid", x)))
    compiled = check(g.model(), tmp_path, target)
    assert (1, 2, 1, 2) in halos(compiled)


@pytest.mark.parametrize("op", ["depthwise", "residual", "pool"])
def test_makers_of_halos(op: str, target: str, tmp_path: Path) -> None:
    """Every kind of kernel that makes blocks can leave room for a halo."""
    g = Graph()
    x = g.conv(g.input(1, 16, 9, 12), 32, (1, 1))
    if op == "depthwise":
        y = g.node("Relu", g.conv(x, 32, (3, 2), group=32, pads=[1, 1, 1, 0]))
    elif op == "residual":
        y = g.node("Relu", g.node("Add", g.conv(x, 32, (1, 1)), x))
    else:
        y = g.node("AveragePool", x, kernel_shape=[3, 2], strides=[2, 1])
    g.output(g.conv(y, 19, (3, 2), pads=[1, 2, 0, 1]))  # no filter for Winograd, which would want more
    compiled = check(g.model(), tmp_path, target)
    assert (1, 2, 0, 1) in halos(compiled)


def test_halo_is_zero_in_every_call(tmp_path: Path) -> None:
    """Whatever the arena held before, and step by step too: other tensors lie there at other times."""
    g = Graph()
    g.output(padded_chain(g))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "halo.so", verify=False)
    net = tvmcnn.load(compiled.path)
    x = next(iter(feeds(g.model()).values()))
    wanted = net(x).tobytes()
    for dirty in (net, net.step_by_step):
        for _, memory in net._arenas:
            memory.view(np.uint8)[:] = 0xFF  # float32 NaNs
        assert dirty(x).tobytes() == wanted


def test_half_a_block_is_summed_alone(target: str, tmp_path: Path) -> None:
    """24 channels are two blocks in memory and 24 terms in the sum; 28 fill their blocks well enough."""
    g = Graph()
    for channels, kernel in ((24, (1, 1)), (20, (3, 2)), (33, (1, 1)), (28, (2, 1)), (40, (1, 3))):
        x = g.node("Relu", g.conv(g.input(1, 16, 5, 7), channels, (1, 1)))
        g.output(g.conv(x, 18, kernel))
    check(g.model(), tmp_path, target)


def test_pixels_in_the_lanes(target: str, tmp_path: Path) -> None:
    """Maps of 35, 18 and exactly 16 pixels, and of 378 in several runs, with bias, residual and activation; 15 pixels
    fill no vector.
    """
    g = Graph()
    for shape, maps, group in (
        ((1, 14, 18, 21), 12, 2),
        ((1, 6, 5, 7), 9, 3),
        ((2, 10, 3, 6), 4, 2),
        ((3, 9, 2, 8), 15, 3),
        ((1, 8, 3, 5), 12, 4),
    ):
        x = g.input(*shape)
        y = g.conv(x, maps, (1, 1), group=group, bias=maps != 4)
        g.output(g.node("Relu", g.node("Add", y, g.input(shape[0], maps, *shape[2:]))) if maps != 15 else y)
    found = algorithms(check(g.model(), tmp_path, target))
    assert found.count("pixels") == 4 and found.count("grouped") == 1


@pytest.mark.parametrize(("size", "stride", "copied"), [((3, 2), 2, False), ((7, 5), 1, True)])
def test_first_convolution_pads_what_it_reads(
    size: tuple[int, int], stride: int, copied: bool, target: str, tmp_path: Path
) -> None:
    """The caller's image with uneven pads and a batch of two; not where each row would be copied many times."""
    g = Graph()
    y = g.conv(g.input(2, 3, 21, 26), 16, size, strides=[stride, 2], pads=[1, 2, 3, 0], dilations=[1, 2])
    g.output(g.conv(g.node("Relu", y), 19, (1, 1)))
    found = algorithms(check(g.model(), tmp_path, target))
    assert (found[0] == "reorder") == copied


@pytest.mark.parametrize("within", [False, True])
def test_depth_to_space_of_whole_blocks(within: bool, target: str, tmp_path: Path) -> None:
    """Nothing is plain between convolution and convolution, in a concatenation of two images or alone."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(2, 3, 5, 7), 128, (1, 1)))
    y = g.node("DepthToSpace", x, blocksize=2, mode="DCR")
    if within:
        y = g.node("Concat", y, g.node("Relu", g.conv(g.input(2, 3, 10, 14), 16, (1, 1))), axis=1)
    g.output(g.conv(y, 19, (3, 2), pads=[1, 2, 0, 1]))
    found = algorithms(check(g.model(), tmp_path, target))
    assert "depth_to_space" in found and "plain" not in found


def test_depth_to_space_that_splits_blocks_is_plain(target: str, tmp_path: Path) -> None:
    g = Graph()
    for maps, mode in ((72, "DCR"), (64, "CRD")):
        x = g.node("Relu", g.conv(g.input(1, 3, 5, 7), maps, (1, 1)))
        g.output(g.node("DepthToSpace", x, blocksize=2, mode=mode))
    assert "depth_to_space" not in algorithms(check(g.model(), tmp_path, target))


@pytest.mark.parametrize("channels", [32, 24, 17])
def test_maps_leave_blocks_by_strips(channels: int, target: str, tmp_path: Path) -> None:
    """More pixels than L1 has room for in blocks: strips of 6 rows, the last of them shorter."""
    assert strip((2, channels, 23, 37))[1] == 6
    g = Graph()
    g.output(g.conv(g.input(2, 20, 23, 37), channels, (1, 1)))
    compiled = check(g.model(), tmp_path, target)
    last = compiled.program.steps[-1].choice
    assert (last.algorithm, last.tasks > 1) == ("reorder", True)
    x = feeds(g.model(), 3)["x0"]
    one, other = (tvmcnn.load(compiled.path, target=target, threads=threads)(x) for threads in (1, 2))
    np.testing.assert_array_equal(one, other)
