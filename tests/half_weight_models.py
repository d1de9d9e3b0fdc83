"""Small networks with a large weight, one a rule, and their weights rounded by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
from builders import Graph
from onnx import numpy_helper

Build = Callable[[Graph], str]
KINDS = ("fp16", "bf16")


def direct(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 35, 14, 16), 64, (3, 2), pads=[1, 0, 1, 1]))


def cut_tile(g: Graph) -> str:
    return g.node("Relu", g.conv(g.input(1, 35, 5, 7), 81, (3, 2)))


def normalised(g: Graph) -> str:
    """A BatchNormalization stays behind the convolution whose weight is rounded, and goes into the small one's."""
    x = normalise(g, g.conv(g.input(1, 3, 14, 17), 18, (3, 3)), 18)
    return g.node("Relu", normalise(g, g.conv(x, 32, (3, 2)), 32))


def normalise(g: Graph, x: str, maps: int) -> str:
    variance = g.constant(np.abs(g.rng.standard_normal(maps)) + 0.5)
    return g.node("BatchNormalization", x, g.draw(maps), g.draw(maps), g.draw(maps), variance)


def with_prologue(g: Graph) -> str:
    x = g.node("MaxPool", g.conv(g.input(1, 3, 14, 15), 64, (1, 1)), kernel_shape=[2, 2])
    return g.conv(g.node("Relu", normalise(g, x, 64)), 48, (1, 1))


def pooled(g: Graph) -> str:
    x = g.node("Relu", g.conv(g.input(1, 6, 14, 15), 17, (5, 4)))
    return g.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])


def grouped(g: Graph) -> str:
    return g.conv(g.input(2, 32, 15, 17), 64, (3, 3), group=2)


def depthwise(g: Graph) -> str:
    return g.conv(g.input(1, 120, 9, 11), 120, (3, 3), group=120)


def together(g: Graph) -> str:
    return g.conv(g.input(1, 77, 9, 11), 154, (3, 2), group=7)


def columns(g: Graph) -> str:
    return g.conv(g.input(2, 9, 14, 32), 6, (5, 4))


def pixels(g: Graph) -> str:
    return g.conv(g.input(1, 60, 25, 27), 81, (1, 1), group=3)


def images(g: Graph) -> str:
    x = g.node("MaxPool", g.conv(g.input(16, 5, 28, 30), 6, (7, 7)), kernel_shape=[2, 2], strides=[2, 2])
    return g.node("Gemm", g.node("Flatten", x), g.draw(792, 25), g.draw(25))


def dense(g: Graph) -> str:
    return g.node("Relu", g.node("Gemm", g.input(1, 40), g.draw(33, 40), g.draw(33), transB=1))


def dense_rows(g: Graph) -> str:
    return g.node("MatMul", g.input(2, 40, 18), g.draw(18, 132))


def covering(g: Graph) -> str:
    return g.conv(g.input(2, 18, 4, 5), 33, (4, 5))


def matmul(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 33, 18), g.draw(3, 18, 34))


def rows(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 6, 58), g.draw(3, 58, 7))


def transposed(g: Graph) -> str:
    return g.node("ConvTranspose", g.input(1, 24, 9, 11), g.draw(24, 20, 4, 4), strides=[2, 2])


def transposed_plain(g: Graph) -> str:
    return g.node("ConvTranspose", g.input(1, 6, 9, 11), g.draw(6, 20, 4, 3), strides=[3, 2], dilations=[2, 1])


def sequence(g: Graph) -> str:
    return g.conv(g.input(1, 24, 99), 40, (5,))


def volume(g: Graph) -> str:
    return g.conv(g.input(1, 14, 9, 10, 11), 20, (3, 3, 2))


def turned(g: Graph) -> str:
    return g.node("MatMul", g.input(3, 40), g.node("Transpose", g.draw(99, 40), perm=[1, 0]))


# Those whose weight is expanded once for all tiles that read it, as it is read, or this or that by the maps
EXPANDED = {normalised, with_prologue, pooled, grouped, together, columns, pixels, images, dense_rows, rows}
EXPANDED |= {transposed_plain, sequence, volume}
INLINED = {depthwise, dense, covering, matmul, turned}
BY_TILE = {direct, cut_tile, transposed}
RULES = sorted(EXPANDED | INLINED | BY_TILE, key=lambda build: build.__name__)


def scaled(g: Graph) -> str:
    return g.node("Gemm", g.input(3, 40), g.draw(99, 40), g.draw(99), transB=1, alpha=0.3)


def made(build: Build) -> onnx.ModelProto:
    g = Graph()
    g.output(build(g))
    return g.model()


def with_rounded(model: onnx.ModelProto, kind: str, names: set[str]) -> onnx.ModelProto:
    """The model with these weights rounded by hand."""
    model = copy.deepcopy(model)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            array = by_hand(numpy_helper.to_array(tensor), kind)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def draws(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_hand(array: np.ndarray, kind: str) -> np.ndarray:
    """The nearest numbers of a half type, found among the neighbours below and above, ties to the even one."""
    if kind == "fp16":
        return array.astype(np.float16).astype(np.float32)  # NumPy's own
    bits = array.astype(np.float32).view(np.uint32)
    below = (bits & 0xFFFF0000).view(np.float32).astype(np.float64)
    above = ((bits & 0xFFFF0000) + 0x10000).view(np.float32).astype(np.float64)
    exact, odd = array.astype(np.float64), (bits >> 16 & 1).astype(bool)
    up = (abs(above - exact) < abs(exact - below)) | ((abs(above - exact) == abs(exact - below)) & odd)
    return np.where(up, above, below).astype(np.float32)
