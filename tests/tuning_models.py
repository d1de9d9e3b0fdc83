"""Small networks for the tuner's tests, and their kernels as it sees them."""

from __future__ import annotations

import onnx
from builders import Graph

from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import NONE
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program
from tvmcnn.targets import resolve
from tvmcnn.tuning.problem import Problem, problems

KERNEL = "conv 1x16x9x14 32x16x3x3 k3,3 s1,1 p1,1,1,1 d1,1 g1 float32 +bias +relu"


def small(maps: int = 32) -> onnx.ModelProto:
    """A convolution that direct and Winograd compute, and a matrix product."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 14), maps, (3, 3), pads=[1, 1, 1, 1]))
    y = g.node("Flatten", g.node("GlobalAveragePool", x))
    g.output(g.node("Gemm", y, g.draw(maps, 11), g.draw(11)))
    return g.model()


def one_conv() -> onnx.ModelProto:
    """The convolution of `small` alone: KERNEL, too."""
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 16, 9, 14), 32, (3, 3), pads=[1, 1, 1, 1])))
    return g.model()


def varied() -> onnx.ModelProto:
    """Kernels of every rule: with a prologue, a residual, a gate, a pool, groups, in a concatenation, in columns."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 3, 23, 18), 32, (3, 3), pads=[1, 1, 1, 1]))
    a = g.node("Relu", g.conv(x, 32, (3, 3), pads=[1, 1, 1, 1]))
    b = g.node("Add", g.conv(a, 32, (3, 3), pads=[1, 1, 1, 1], bias=False), x)
    statistics = [g.draw(32), g.draw(32), g.draw(32), g.constant(g.rng.uniform(0.5, 2, 32))]
    b = g.conv(g.node("Relu", g.node("BatchNormalization", b, *statistics)), 48, (1, 1))
    c = g.node("Clip", g.conv(b, 48, (3, 3), group=48, pads=[1, 1, 1, 1]), g.constant(0.0), g.constant(6.0))
    d = g.conv(c, 24, (1, 1), group=4)
    e = g.node("Concat", b, g.conv(d, 16, (1, 2), strides=[2, 1], pads=[10, 0, 13, 1]), axis=1)
    f = g.node("MaxPool", g.node("Sigmoid", g.conv(e, 37, (2, 3))), kernel_shape=[2, 2], strides=[2, 2])
    g.output(g.conv(f, 21, (11, 8)))
    return g.model()


def tiny() -> onnx.ModelProto:
    """LeNet's first layer: few maps, columns in the lanes."""
    g = Graph()
    g.output(g.node("MaxPool", g.conv(g.input(1, 1, 20, 36), 6, (5, 5)), kernel_shape=[2, 2], strides=[2, 2]))
    return g.model()


def wide() -> onnx.ModelProto:
    """Maps of many pixels and few weights: kernels in bands of rows, a depthwise one that follows."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 3, 63, 84), 20, (1, 1)))
    y = g.node("Relu", g.conv(x, 72, (1, 1)))
    z = g.node("Relu", g.conv(y, 72, (3, 2), group=72, pads=[1, 0, 2, 1], strides=[2, 1]))
    g.output(g.conv(z, 17, (1, 1)))
    return g.model()


def program_of(model: onnx.ModelProto, target: str = "native") -> Program:
    network = simplified(import_model(model))
    return lay_out(network, choose(network, fuse(network), resolve(target), NONE), Weights())


def conv_problem(target: str = "native") -> Problem:
    return next(each for each in problems(program_of(small(), target)) if each.words == KERNEL)
