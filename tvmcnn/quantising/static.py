"""The quantised network: onnxruntime's quantize_static, with what suits tvmcnn's kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from tvmcnn.errors import ModelError
from tvmcnn.network import Array
from tvmcnn.progress import Progress
from tvmcnn.quantising.samples import Reader, Sample
from tvmcnn.quantising.sessions import heard

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
ACTIVATIONS = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
# What docs/quantised.md computes on integers. The others would only be rounded: of Softmax, whose scores are of [0, 1],
# to 1/256, so that the best two of a thousand classes are often equal.
OPERATORS = tuple(
    """
    Conv Gemm MatMul Add Mul AveragePool GlobalAveragePool Relu Clip MaxPool Concat Split Reshape Flatten Squeeze
    Unsqueeze Transpose Slice Gather Pad Resize Expand Tile DepthToSpace SpaceToDepth
    """.split()  # noqa: SIM905
)
HISTOGRAM_BYTES = 1 << 30  # of tensors that onnxruntime may hold for its histograms; all those of 128 images took 13 GB


@dataclass(frozen=True)
class Settings:
    """How to quantise: how ranges are found, the type of activations, a scale a channel of weights or one a tensor, and
    the nodes that stay as they are."""

    method: str = "minmax"
    activations: str = "u8"
    per_channel: bool = True
    keep: tuple[str, ...] = ()


class Samples(CalibrationDataReader):  # type: ignore[misc]
    """Samples in the form that onnxruntime asks for, one call's arrays after the other; progress is told."""

    def __init__(
        self, reader: Reader, samples: Sequence[Sample], progress: Progress, doing: str = "calibrating"
    ) -> None:
        self.reader, self.samples, self.progress, self.doing = reader, list(samples), progress, doing
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self.samples) // self.reader.batch

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these calls."""
        size = self.reader.batch
        self.done = start_index
        self.left: Iterator[dict[str, Array]] = (
            feed for _, feed in self.reader.feeds(self.samples[start_index * size : end_index * size])
        )

    def get_next(self) -> dict[str, Array] | None:
        """The next arrays, None after the last."""
        feed = next(self.left, None)
        if feed is not None:
            self.done += 1
            self.progress(self.doing, self.done, len(self))
        return feed


def quantised(
    ready: onnx.ModelProto,
    label: str,
    settings: Settings,
    samples: Samples,
    folder: Path,
    report: Callable[[str], None],
) -> onnx.ModelProto:
    """The prepared network with QuantizeLinear and DequantizeLinear around what computes on integers.

    Raises ModelError for nodes to keep that are not there, and where onnxruntime fails.
    """
    source, target = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(ready, source)
    extra = {} if settings.method == "minmax" else {"CalibStridedMinMax": _stride(ready, len(samples))}
    with heard(report, f"onnxruntime cannot quantise {label}"):
        quantize_static(
            source,
            target,
            samples,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=settings.per_channel,
            activation_type=ACTIVATIONS[settings.activations],
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(ready, settings.keep, label),
            calibrate_method=METHODS[settings.method],
            extra_options=extra,
        )
    found = onnx.load(target)
    if not any(node.op_type == "QuantizeLinear" for node in found.graph.node):
        raise ModelError(f"{label} has nothing to quantise: no {', '.join(OPERATORS[:3])} but those that are kept")
    _tidy(found, ready)
    return found


def _kept(ready: onnx.ModelProto, keep: Sequence[str], label: str) -> list[str]:
    """The names of nodes given by name, or by what they make; a MatMul and its bias are one Gemm by now."""
    fused = "/MatMulAddFusion"  # as onnxruntime names that
    names = {name: n.name for n in ready.graph.node for name in (*n.output, n.name, n.name.removesuffix(fused))}
    if unknown := [name for name in keep if name not in names]:
        some = ", ".join(node.name for node in ready.graph.node if node.op_type in OPERATORS[:3])
        raise ModelError(f"the prepared {label} has no node '{unknown[0]}'; its Conv, Gemm and MatMul are {some}")
    return [names[name] for name in keep]


def _stride(ready: onnx.ModelProto, calls: int) -> int:
    """How many calls' tensors are in memory at once: all, or as large a part of them as there is room for.

    Histograms of parts are merged in bins as wide as those of the first, and onnxruntime wants parts of one size.
    """
    values = (*ready.graph.value_info, *ready.graph.output)
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in values]
    room = max(1, HISTOGRAM_BYTES // max(1, 4 * sum(map(math.prod, shapes))))
    return max(part for part in range(1, calls + 1) if calls % part == 0 and (part <= room or part == 1))


def _tidy(found: onnx.ModelProto, ready: onnx.ModelProto) -> None:
    """Leave out what onnxruntime adds: domains that no node is of, its notes; the model's own metadata stay."""
    domains = {"", *(node.domain for node in found.graph.node)}
    imports = [each for each in found.opset_import if each.domain in domains]
    del found.opset_import[:]
    found.opset_import.extend(imports)
    del found.metadata_props[:]
    found.metadata_props.extend(each for each in ready.metadata_props if not each.key.startswith("onnx."))
