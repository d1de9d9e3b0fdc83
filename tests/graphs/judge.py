"""Judge: what a compiled model computed against the oracle, with bounds of its own that owe nothing to tvmcnn's.

The oracle evaluates the model again, several times, with random errors as large as a float's own put into the operands
and results of every operator that rounds. As far as an element moves then, it may be off: an integer or a bool behind a
comparison, a rounding or an ArgMax that never moves must be exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tvmcnn.check.reference import reference

Array = np.ndarray[Any, Any]
SAMPLES = 12
MANY = 240  # samples of a model with steps before an element is called wrong: so many that several ties fall together
ROUNDINGS = 16  # units in the last place that an operand and a result may be off: float32's sums and functions are
LONG = (
    8  # times as much, of the largest value, where sums are long or, by Winograd's matrices, of up to 8 times a value
)
NARROW = 2.0**-6  # of a factor that is rounded to bfloat16, by at most an eighth of this: sums of many seldom add up
STORED = 2.0**-8  # of an image that is stored in bfloat16
NARROWED = frozenset("Conv ConvTranspose Gemm MatMul Einsum LSTM GRU RNN DeformConv DFT STFT".split())  # noqa: SIM905
DENORMAL = 2.0**-126  # below which float32 has fewer digits
UNITS = {"float16": 2.0**-12, "float32": 2.0**-24, "float64": 2.0**-53}
EXACT = frozenset(
    """
    Relu Abs Neg Max Min Clip MaxPool GlobalMaxPool ReduceMax ReduceMin ArgMax ArgMin Equal Less LessOrEqual Greater
    GreaterOrEqual And Or Xor Not Where Cast CastLike Sign Floor Ceil Round IsNaN IsInf Identity Dropout
    BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot Concat Constant ConstantOfShape DepthToSpace SpaceToDepth Expand
    Flatten Gather GatherElements GatherND OneHot Pad Reshape ReverseSequence Shape Size Slice Split Squeeze Unsqueeze
    Tile Transpose Trilu Range TopK Hardmax CenterCropPad EyeLike MaxUnpool
    """.split()  # noqa: SIM905
)
STEPS = frozenset(  # whose answers jump at a tie
    """
    ArgMax ArgMin Equal Less LessOrEqual Greater GreaterOrEqual Cast CastLike Sign Floor Ceil Round Mod ThresholdedRelu
    QuantizeLinear DynamicQuantizeLinear TopK Hardmax Shrink GridSample RoiAlign MaxRoiPool
    """.split()  # noqa: SIM905
)
# Operators whose small results come of differences of larger numbers: 1 + x, e^x − 1, the sums of a tile by Winograd.
TILED = frozenset(
    """
    Conv ConvTranspose Gemm MatMul InstanceNormalization GroupNormalization LayerNormalization ScatterElements ScatterND
    CumSum Col2Im LSTM GRU RNN DeformConv DFT STFT
    """.split()  # noqa: SIM905
)
SHIFTED = frozenset(
    """
    Elu Celu Selu Softplus Mish Gelu Erf Tanh Sigmoid Swish HardSwish HardSigmoid Asinh Acosh Atanh Asin Acos Atan Sinh
    HannWindow HammingWindow BlackmanWindow Sin Cos Tan Log LogSoftmax ReduceLogSum ReduceLogSumExp
    """.split()  # noqa: SIM905
)


# Operators that compute pixels from places, the operand of this number: where it is near 0, the pixel is not.
PLACES = {"GridSample": 1, "RoiAlign": 1, "MaxRoiPool": 1, "DeformConv": 2}


@dataclass(frozen=True)
class Fault:
    """A tensor that is not what it should be."""

    name: str
    text: str
    first: tuple[int, ...] = ()


class Judge:
    """The expected values of a model's tensors, and how far each element may be from them: further where factors of
    products are rounded (`narrow`), all of them or some, and where images are (`stored`)."""

    def __init__(
        self, model: onnx.ModelProto, inputs: Mapping[str, Array], *, narrow: bool = False, stored: bool = False
    ) -> None:
        self.model, self.inputs, self.narrow, self.stored = model, inputs, narrow, stored
        self.expected = reference(model, inputs, every_tensor=True)
        self._samples: list[dict[str, Array]] | None = None
        self.excused = 0

    def fault(self, name: str, found: Array) -> Fault | None:
        """What is wrong with a tensor that was computed; None if nothing is."""
        wanted = self.expected[name]
        if found.dtype == np.float32 and wanted.dtype == np.float16:
            found = found.astype(np.float16)  # a hidden tensor, which is computed in float32
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return Fault(name, f"{found.dtype} {found.shape}, expected {wanted.dtype} {wanted.shape}")
        off = _differs(found, wanted, _slight(wanted))
        if not off.any():
            return None
        fault, excused = self._beyond(name, found, off)
        steps = any(node.op_type in STEPS for node in self.model.graph.node)
        if fault is not None and steps and len(self._samples or ()) < MANY:
            self._samples = [*(self._samples or ()), *(self._sample(seed) for seed in range(SAMPLES, MANY))]
            fault, excused = self._beyond(name, found, off)
        self.excused += excused
        return fault

    def _beyond(self, name: str, found: Array, off: Array) -> tuple[Fault | None, int]:
        """The first of the elements `off` that no sample reaches, and how many others a tie excuses."""
        wanted = self.expected[name]
        ours, exact = found.astype(np.float64), self._exact(name)
        lowest, highest, moves = self._range(name)
        with np.errstate(all="ignore"):
            spread = np.maximum(highest - exact, exact - lowest)
            unit = UNITS.get(wanted.dtype.name, 0.0)
            allowed = (
                2 * spread + 2 * unit * np.abs(exact) + (6e-8 if wanted.dtype == np.float16 else 1e-37 * (unit > 0))
            )
        off = off & _differs(found, wanted, allowed)
        if wanted.dtype.kind == "f":
            moves &= ~np.isfinite(spread) | ~np.isfinite(ours) | ~np.isfinite(exact)
        excused = int((off & moves).sum())
        off = off & ~moves
        if not off.any():
            return None, excused
        first = tuple(int(i) for i in np.argwhere(off)[0])
        tolerance = f", allowed {allowed[first]:.2g}" if wanted.dtype.kind == "f" else ""
        text = f"{int(off.sum())} of {off.size} elements differ, at {first}: {found[first]}, expected {wanted[first]}"
        return Fault(name, f"{wanted.dtype.name} {wanted.shape}: {text}{tolerance}", first), excused

    def _exact(self, name: str) -> Array:
        return self.expected[name].astype(np.float64)

    def _range(self, name: str) -> tuple[Array, Array, Array]:
        """The least and greatest of the samples, and where they are not all the same (NaN among them)."""
        if self._samples is None:
            self._samples = [self._sample(seed) for seed in range(SAMPLES)]
        values = np.stack([sample[name].astype(np.float64) for sample in self._samples])
        exact = self._exact(name)
        with np.errstate(all="ignore"):
            same = (values == exact) | (np.isnan(values) & np.isnan(exact))
        return np.fmin.reduce(values), np.fmax.reduce(values), ~same.all(axis=0)

    def _sample(self, seed: int) -> dict[str, Array]:
        """Every tensor, with errors."""
        rng = np.random.default_rng(seed)
        values: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        values |= self.inputs
        types = {name: value.dtype.name for name, value in values.items()}
        types |= {name: value.dtype.name for name, value in self.expected.items()}
        for node in self.model.graph.node:
            factor = NARROW if self.narrow and node.op_type in NARROWED else 0.0
            values |= _noisy(node, values, types, self.model.opset_import[0].version, rng, factor)
            images = (name for name in node.output if self.stored and values[name].ndim == 4)
            values |= {name: _off(values[name], STORED, rng) for name in images if types[name] == "float32"}
        return values


def _off(value: Array, unit: float, rng: np.random.Generator) -> Array:
    return np.asarray(value * (1 + unit * rng.uniform(-1, 1, value.shape)))


def _noisy(
    node: onnx.NodeProto,
    values: Mapping[str, Array],
    types: Mapping[str, str],
    opset: int,
    rng: np.random.Generator,
    factor: float,
) -> dict[str, Array]:
    rounds = node.op_type not in EXACT

    def off(value: Array, unit: float) -> Array:
        return _off(value, unit, rng)

    given = {}
    for place, name in enumerate(node.input):
        if name and name not in given:
            value = values[name]
            sure = not rounds or value.dtype.kind != "f" or (place and node.op_type in ("Pow", "Resize"))
            given[name] = value if sure else off(value.astype(np.float64), max(factor, ROUNDINGS * UNITS[types[name]]))
            if PLACES.get(node.op_type) == place and not sure:
                given[name] += ROUNDINGS * UNITS["float32"] * rng.uniform(-1, 1, value.shape)
                if node.op_type == "MaxRoiPool":
                    given[name][:, 0] = value[:, 0]  # the number of an image
    found = alone(node, given, opset)
    for name in node.output:
        value = found[name]
        if value.dtype.kind != "f":
            continue
        unit = UNITS[types[name]] * (ROUNDINGS if types[name] != "float16" else 1)
        if rounds:
            value = value.astype(np.float64)
            finite = np.abs(value[np.isfinite(value)])
            size = LONG * finite.max(initial=0) if node.op_type in TILED else 1.0 if node.op_type in SHIFTED else 0.0
            if node.op_type == "Resize" and not _copies(node):  # rounded weights of pixels, which may cancel
                image = given[node.input[0]]
                size = np.abs(image[np.isfinite(image)]).max(initial=0)
            if node.op_type.startswith("Reduce"):  # equal terms are all rounded one way: a sum of n by n / 2 units
                value = off(value, unit / ROUNDINGS * given[node.input[0]].size / max(value.size, 1) / 2)
            if node.op_type in ("GridSample", "RoiAlign"):  # a mean of pixels, which may cancel
                size = 0.0 if _copies(node) else np.abs(given[node.input[0]]).max(initial=0)
            value = off(value, unit) + unit * size * rng.uniform(-1, 1, value.shape)
        denormal = (value != 0) & (np.abs(value) < DENORMAL) & rounds
        value = np.where(denormal & (rng.random(value.shape) < 0.5), 0.0, value)  # which a function may not reach
        if types[name] == "float16":  # stored in it, or not: both are right
            value = off(value.astype(np.float64), 2.0**-11)
        found[name] = np.asarray(value)
    return found


def _copies(node: onnx.NodeProto) -> bool:
    """True for a node whose elements are those of its operand."""
    return any(attribute.name == "mode" and attribute.s == b"nearest" for attribute in node.attribute)


def alone(node: onnx.NodeProto, given: Mapping[str, Array], opset: int) -> dict[str, Array]:
    """What one node makes of these operands, floats not rounded to their type."""
    wide = {n: v.astype(np.float64) if v.dtype.kind == "f" else v for n, v in given.items()}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in wide.items()
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output]
    graph = helper.make_graph([node], "one", infos, outputs)
    return reference(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), wide)


def _slight(wanted: Array) -> Array:
    """A difference that needs no analysis: a few units in the last place."""
    unit = UNITS.get(wanted.dtype.name, 0.0)
    return 2 * unit * np.abs(wanted.astype(np.float64))


def _differs(found: Array, wanted: Array, allowed: Array) -> Array:
    if wanted.dtype.kind != "f":
        return np.asarray(found != wanted)
    ours, theirs = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(all="ignore"):
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return np.asarray(~(same | (np.abs(ours - theirs) <= allowed)))
