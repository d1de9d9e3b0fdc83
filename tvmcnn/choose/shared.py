"""What choosing for CPUs and for GPUs have in common: families of operators, and how a choice is written down."""

from __future__ import annotations

from collections.abc import Sequence

from tvmcnn.configs import Config
from tvmcnn.fuse import pool_of
from tvmcnn.network import NO_PADS, Choice, Kernel, Layout, Tensor

GLOBAL_POOLS = ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
MOVES = (  # one stage each, which maps elements: the rule "memory" fits
    *("Concat", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Frames", "Gather", "GatherElements"),
    *("GatherND", "OneHot", "Pad"),
    *("Range", "Reshape", "ReverseSequence", "Shape", "Slice", "SpaceToDepth", "Tile", "Transpose", "Trilu"),
    "UnfoldFrames",
    *("ScatterBox", "ScatterPlaces"),
)
IN_ORDER = (  # their steps follow one another
    *("Col2Im", "Compress", "CumSum", "MaxUnpool", "NonMaxSuppression", "NonZero", "ScatterElements", "ScatterND"),
    "TopK",
)
SAMPLES = ("GridSample", "DeformColumns")  # one stage each, which reads where a grid says
REGIONS = ("RoiAlign", "MaxRoiPool")  # reductions over the parts of an image that an operand names
SUMS_OF_BYTES = ("QLinearConv", "QLinearMatMul", "QLinearAveragePool", "ConvInteger", "MatMulInteger")
QUANTISED = (
    *(*SUMS_OF_BYTES, "QLinearAdd", "QLinearMul", "QuantizeLinear", "DequantizeLinear"),
    *("Centred", "Requantised", "Summed", "Table"),
)
LANES = (  # reductions that have an expression with the terms in the lanes
    *("ReduceSum", "ReduceMean", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceProd"),
    *("ReduceMax", "ReduceMin", "GlobalAveragePool", "GlobalMaxPool"),
)


def covers(kernel: Kernel) -> bool:
    """Whether a convolution is one product with the whole image."""
    node = kernel.anchor
    same = node["kernel_shape"] == kernel.inputs[0].shape[2:] and node["pads"] == NO_PADS
    plain = node["dilations"] == (1, 1) and node["group"] == 1 and len(kernel.inputs) == 1
    return same and plain and not kernel.prologue and pool_of(kernel) is None


def choice_of(
    kernel: Kernel,
    algorithm: str,
    read: Sequence[tuple[Tensor, Layout]],
    writes: Layout,
    rule: str,
    config: tuple[Config | None, str] = (None, "default"),
) -> Choice:
    """A choice that reads each of `read` in its layout; the config comes with its tier."""
    tensors, layouts = tuple(tensor for tensor, _ in read), tuple(layout for _, layout in read)
    return Choice(kernel, algorithm, tensors, layouts, writes, rule, *config)
