"""Builders of quantised models, and what every test of one asks: equal in every byte to the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from builders import Graph
from onnx import helper, numpy_helper

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.compiler import Compiled

Array = np.ndarray[Any, Any]
TYPES = ("uint8", "int8")


class Quantised(Graph):
    """A graph of integers with scales: methods return the names of the float tensors between."""

    def array(self, array: Any) -> str:
        """A constant of the type that it has."""
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        self.shapes[name] = np.shape(array)
        return name

    def bytes(self, *shape: int, dtype: str = "uint8") -> str:
        """An input of integers."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        self.shapes[name] = shape
        return name

    def any_bytes(self, *shape: int, dtype: str = "int8", least: int | None = None) -> Array:
        """Integers of the whole range of a type, from `least` on."""
        limits = np.iinfo(dtype)
        return self.rng.integers(limits.min if least is None else least, limits.max, shape, dtype, endpoint=True)

    def scale(self, *shape: int) -> Array:
        """Scales, no two alike."""
        return self.rng.uniform(0.01, 0.1, shape).astype(np.float32)

    def down(self, q: str, scale: Any, zero: Any = None, **attributes: Any) -> str:
        """DequantizeLinear."""
        given = [self.array(np.float32(scale)), *([] if zero is None else [self.array(zero)])]
        return self.node("DequantizeLinear", q, *given, **attributes)

    def up(self, x: str, scale: Any, zero: Any, **attributes: Any) -> str:
        """QuantizeLinear."""
        return self.node("QuantizeLinear", x, self.array(np.float32(scale)), self.array(zero), **attributes)

    def source(self, *shape: int, dtype: str = "uint8", zero: int = 7, scale: float = 0.0234) -> str:
        """An input of integers, dequantised."""
        return self.down(self.bytes(*shape, dtype=dtype), scale, np.array(zero, dtype))

    def weight(self, *shape: int, dtype: str = "int8", zero: Any = 0, scale: Any = 0.0321, axis: int = 0) -> str:
        """A constant, dequantised."""
        return self.down(self.array(self.any_bytes(*shape, dtype=dtype)), scale, np.array(zero, dtype), axis=axis)

    def bias(self, maps: int, scale: Any) -> str:
        """An int32 constant of a scale."""
        return self.down(self.array(self.rng.integers(-20000, 20000, maps, np.int32)), scale, axis=0)

    def finished(self, *names: str, dtype: str = "uint8") -> onnx.ModelProto:
        """The model whose outputs are these integers."""
        self.output(*names)
        model = self._model([helper.make_empty_tensor_value_info(name) for name in names])
        for value in model.graph.output:
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        inferred = onnx.shape_inference.infer_shapes(model)
        for value in inferred.graph.output:
            if not value.type.tensor_type.HasField("shape"):
                value.type.tensor_type.shape.SetInParent()
                for extent in self.shape(value.name):
                    value.type.tensor_type.shape.dim.add().dim_value = extent
        return inferred

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of any tensor, by the oracle."""
        if name not in self.shapes:
            model = self._model([helper.make_empty_tensor_value_info(name)])
            every = reference(model, any_input(model), every_tensor=True)
            self.shapes |= {key: value.shape for key, value in every.items()}
        return self.shapes[name]


def any_input(model: onnx.ModelProto, seed: int = 3) -> dict[str, Array]:
    """Integers of the whole range, or floats of a few units with outliers."""
    rng, found = np.random.default_rng(seed), {}
    known = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in known:
            continue
        shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            x = rng.standard_normal(shape)
            found[value.name] = np.where(rng.random(shape) < 1 / 40, 9 * x, x).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            found[value.name] = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return found


def equal(model: onnx.ModelProto, folder: Path, target: str = "native", threads: int = 1) -> Compiled:
    """Compile a model; all its integers must be those of the oracle, and compile's own verification must say so."""
    compiled = tvmcnn.compile(model, target, folder / "q.so")
    assert compiled.verdict is not None and compiled.verdict.passed
    given = any_input(model)
    wanted = reference(model, given, every_tensor=True)
    net = tvmcnn.load(compiled.path, threads=threads)
    ordered = [given[info.name] for info in net.inputs]
    answer = net(*ordered)
    shown = net.activations(*ordered)
    answers = answer if isinstance(answer, tuple) else (answer,)
    found = {**shown, **{info.name: array for info, array in zip(net.outputs, answers, strict=True)}}
    integers = [name for name, array in found.items() if name in wanted and wanted[name].dtype.kind in "iu"]
    assert integers
    for name in integers:
        assert found[name].dtype == wanted[name].dtype, name
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
    return compiled


def operators(compiled: Compiled) -> list[str]:
    """The operators of the kernels."""
    return [step.choice.kernel.ops for step in compiled.program.steps]


def at_halves(x_scale: float, y_scale: float, maps: int, seed: int = 0) -> tuple[Array, Array]:
    """Scales of weights, and sums that the contract rounds otherwise than who multiplies by a factor that was rounded
    once: float32(sum) · ((x_scale · w_scale) / y_scale) lies at a half."""
    rng = np.random.default_rng(seed)
    x, y = np.float32(x_scale), np.float32(y_scale)
    scales, sums = [], []
    while len(sums) < maps:
        w = rng.uniform(0.01, 0.1, 4096).astype(np.float32)
        factor = (x * w) / y
        once = (np.float64(x) * w / np.float64(y)).astype(np.float32)
        total = np.rint((rng.integers(-90, 90, w.size) + 0.5) / factor).astype(np.int32)
        found = np.rint(total.astype(np.float32) * factor) != np.rint(total.astype(np.float32) * once)
        scales += w[found].tolist()
        sums += total[found].tolist()
    return np.float32(scales[:maps]), np.int32(sums[:maps])
