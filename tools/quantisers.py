"""What others quantise: small CNNs, and the programs that make networks of integers of them, in their usual settings.

Needs tvmcnn[quantisers].
"""

from __future__ import annotations

import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from models import make
from models.builder import Builder
from models.weights import fill

SIZE = 64  # pixels
OPSET = 17  # below 13 onnxruntime writes files of a scale a channel that it refuses itself
SHAPE = (1, 3, SIZE, SIZE)
CALIBRATION = 8  # images
TORCH_NETWORKS = ("branches", "resnet18")


def branches() -> onnx.ModelProto:
    """What networks of today have: a depthwise convolution, SiLU, a residual, branches of three kinds, a gate."""
    b = Builder("branches", SIZE)
    x = b.relu(b.batch_norm(b.conv(b.input, 24, 3, 2)))
    y = b.swish(b.batch_norm(b.depthwise(x, 3, 1)))
    x = b.add(x, b.batch_norm(b.conv(y, 24, 1)))
    z = b.swish(b.batch_norm(b.conv(x, 40, 1)))
    x = b.concat(x, b.max_pool(x, 3, 1, 1), z)
    x = b.relu6(b.batch_norm(b.conv(x, 56, 3, 2)))
    gate = b.sigmoid(b.conv(b.relu(b.conv(b.global_average_pool(x), 14, 1, bias=True)), 56, 1, bias=True))
    x = b.mul(x, gate)
    return fill(b.topology(b.dense(b.flatten(b.global_average_pool(x)), 10)), 3)


def squeezenet() -> onnx.ModelProto:
    """SqueezeNet of a newer opset, without the Softmax at its end: converted, that is four nodes, of which
    onnx-neural-compressor does not take the Shape."""
    model = make("squeezenet", SIZE)
    last = model.graph.node.pop()
    assert last.op_type == "Softmax"
    model.graph.output[0].name = last.input[0]
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.version_converter.convert_version(model, OPSET)


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {
    "branches": branches,
    "resnet18": lambda: make("resnet18", SIZE),
    "squeezenet": squeezenet,
}


def images(source: Path, count: int = CALIBRATION) -> Iterator[dict[str, Any]]:
    """Drawn inputs of a network, from which ranges are taken."""
    (given, *_) = onnx.load(source).graph.input
    rng = np.random.default_rng(7)
    for _ in range(count):
        yield {given.name: rng.standard_normal(SHAPE).astype(np.float32)}


# ---- onnxruntime ----------------------------------------------------------------------------------------------------


def _onnxruntime(source: Path, target: Path, layout: str, activations: str, weights: str, **more: Any) -> None:
    from onnxruntime import quantization as q

    class Samples(q.CalibrationDataReader):  # type: ignore[misc]
        left = images(source)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    q.quantize_static(
        source,
        target,
        Samples(),
        quant_format=q.QuantFormat[layout],
        activation_type=q.QuantType[activations],
        weight_type=q.QuantType[weights],
        **more,
    )


def _onnxruntime_dynamic(source: Path, target: Path, weights: str, **more: Any) -> None:
    from onnxruntime import quantization as q

    q.quantize_dynamic(source, target, weight_type=q.QuantType[weights], **more)


# ---- Neural Compressor ----------------------------------------------------------------------------------------------


def _compressor(source: Path, target: Path, layout: str, activations: str, weights: str, **more: Any) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import QuantFormat, QuantType, config, quantize

    class Samples(data_reader.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = images(source)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    settings = config.StaticQuantConfig(
        calibration_data_reader=Samples(),
        quant_format=getattr(QuantFormat, layout),
        activation_type=getattr(QuantType, activations),
        weight_type=getattr(QuantType, weights),
        calibration_sampling_size=CALIBRATION,
        execution_provider="CPUExecutionProvider",
        **more,
    )
    quantize(str(source), str(target), settings)


# ---- NNCF -----------------------------------------------------------------------------------------------------------


def _nncf(source: Path, target: Path, **more: Any) -> None:
    import nncf

    settings = {key: getattr(nncf, kind)[value] for key, (kind, value) in more.items()}
    data = nncf.Dataset(list(images(source)))
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=CALIBRATION, **settings), target)


# ---- Brevitas -------------------------------------------------------------------------------------------------------


def _torch_network(name: str) -> Any:
    """PyTorch's form of a network that Brevitas quantises."""
    import torch
    from torch import nn

    class Branches(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
            self.deep = nn.Sequential(nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.SiLU())
            self.back = nn.Conv2d(24, 24, 1)
            self.wide = nn.Sequential(nn.Conv2d(24, 40, 1), nn.SiLU())
            self.pool = nn.MaxPool2d(3, 1, 1)
            self.join = nn.Sequential(nn.Conv2d(88, 56, 3, 2, 1), nn.ReLU6())
            self.mean = nn.AdaptiveAvgPool2d(1)
            self.last = nn.Linear(56, 10)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            x = x + self.back(self.deep(x))
            x = self.join(torch.cat([x, self.pool(x), self.wide(x)], 1))
            return self.last(torch.flatten(self.mean(x), 1))

    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, depth: int, maps: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(depth, maps, 3, stride, 1, bias=False), nn.BatchNorm2d(maps))
            self.second = nn.Sequential(nn.Conv2d(maps, maps, 3, 1, 1, bias=False), nn.BatchNorm2d(maps))
            self.short = nn.Conv2d(depth, maps, 1, stride)
            self.relu, self.end = nn.ReLU(), nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.end(self.second(self.relu(self.first(x))) + self.short(x))

    torch.manual_seed(3)
    if name == "branches":
        return Branches().eval()  # the other is a short ResNet
    layers = [nn.Conv2d(3, 32, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Block(32, 48, 1), Block(48, 72, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(72, 10)).eval()


def _brevitas(source: Path, target: Path, *, weight_bits: int = 8, per_channel: bool = False, **more: Any) -> None:
    """Its post-training quantisation, as its examples call it."""
    import torch
    from brevitas.export import export_onnx_qcdq
    from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq.ptq_common import quantize_model

    x = [torch.from_numpy(array) for each in images(source) for array in each.values()]
    model = preprocess_for_quantize(_torch_network(source.stem))
    model = quantize_model(
        model,
        backend=more.get("backend", "fx"),
        weight_bit_width=weight_bits,
        act_bit_width=more.get("act_bits", 8),
        bias_bit_width=more.get("bias_bits", 32),
        scale_factor_type="float_scale",
        quant_format="int",
        weight_quant_granularity="per_channel" if per_channel else "per_tensor",
        act_quant_granularity="per_tensor",
        weight_quant_type="sym",
        act_quant_type=more.get("act_type", "sym"),
        weight_narrow_range=more.get("narrow", True),
        act_quant_percentile=99.9,
        weight_param_method="stats",
        act_param_method="stats",
        layerwise_first_last_bit_width=8,
        layerwise_first_last_mantissa_bit_width=4,
        layerwise_first_last_exponent_bit_width=3,
    )
    with torch.no_grad():
        with calibration_mode(model):
            for each in x:
                model(each)
        with bias_correction_mode(model):
            for each in x:
                model(each)
        export_onnx_qcdq(model.eval(), args=x[0], export_path=str(target), opset_version=17, dynamo=False)


# ---- all ------------------------------------------------------------------------------------------------------------

QUANTISERS: dict[str, tuple[str, Callable[..., None], dict[str, Any]]] = {  # a package, what calls it, and how
    "ort-qdq": (
        "onnxruntime",
        _onnxruntime,
        {"layout": "QDQ", "activations": "QUInt8", "weights": "QInt8", "per_channel": True},
    ),
    "ort-dynamic": ("onnxruntime", _onnxruntime_dynamic, {"weights": "QInt8", "per_channel": True}),
    "ort-dynamic-u8": ("onnxruntime", _onnxruntime_dynamic, {"weights": "QUInt8"}),
    "inc-qdq": (
        "onnx-neural-compressor",
        _compressor,
        {"layout": "QDQ", "activations": "QUInt8", "weights": "QInt8", "per_channel": True},
    ),
    "inc-qdq-s8": (
        "onnx-neural-compressor",
        _compressor,
        {"layout": "QDQ", "activations": "QInt8", "weights": "QInt8"},
    ),
    "inc-qop": (
        "onnx-neural-compressor",
        _compressor,
        {"layout": "QOperator", "activations": "QUInt8", "weights": "QInt8"},
    ),
    "nncf": ("nncf", _nncf, {}),
    "nncf-mixed": ("nncf", _nncf, {"preset": ("QuantizationPreset", "MIXED")}),
    "brevitas": ("brevitas", _brevitas, {}),
    "brevitas-channel": ("brevitas", _brevitas, {"per_channel": True, "act_type": "asym"}),
    "brevitas-4bit": ("brevitas", _brevitas, {"per_channel": True, "weight_bits": 4, "act_bits": 6}),
    "brevitas-layer": ("brevitas", _brevitas, {"backend": "layerwise", "bias_bits": None}),
}


def quantised(network: str, quantiser: str, folder: Path) -> Path:
    """The file of a network that a quantiser makes, in a folder where it may lie already."""
    _, call, settings = QUANTISERS[quantiser]
    folder.mkdir(parents=True, exist_ok=True)
    source, target = folder / f"{network}.onnx", folder / f"{network}-{quantiser}.onnx"
    if target.is_file():
        return target
    if not source.is_file():
        onnx.save(NETWORKS[network](), source)
    logging.disable(logging.WARNING)  # advice
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(source, target, **settings)
    logging.disable(logging.NOTSET)
    return target


def takes(quantiser: str, network: str) -> bool:
    """Whether there is a form of the network that the quantiser reads."""
    return QUANTISERS[quantiser][1] is not _brevitas or network in TORCH_NETWORKS


def version(quantiser: str) -> str:
    """Package and version."""
    package = QUANTISERS[quantiser][0]
    return f"{package} {importlib.metadata.version(package)}"
