"""New weights in a library: the bytes that a compile would write, or a refusal that names what differs."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from data import LENET5, NVCC
from tuning_runs import Enough, ops_with_a_final

import tvmcnn
from tvmcnn.cli import main
from tvmcnn.codegen import workers
from tvmcnn.errors import ArtifactError, ModelError
from tvmcnn.tuning import measure, search

pytestmark = pytest.mark.slow


def network() -> onnx.ModelProto:
    """One convolution by Winograd, one with a pool, a constant of one value, equal biases, an average with divisors."""
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 15, 12), 16, (3, 3), pads=[1, 1, 1, 1]))
    x = g.node("Mul", x, g.constant(np.float32(0.5)))
    bias = g.constant(np.zeros(16, np.float32))
    x = g.node("MaxPool", g.node("Conv", x, g.draw(16, 16, 3, 2), bias), kernel_shape=[2, 2], strides=[2, 2])
    x = g.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    x = g.node("Conv", x, g.draw(16, 16, 2, 3), g.constant(np.zeros(16, np.float32)))
    g.output(g.node("Gemm", g.node("Flatten", x), g.draw(16 * 5 * 3, 7), g.draw(7)))
    return g.model()


def retrained(model: onnx.ModelProto, seed: int = 3) -> onnx.ModelProto:
    """Other weights; a scalar and zeros are what they were."""
    made, rng = copy.deepcopy(model), np.random.default_rng(seed)
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.size > 1 and array.any() and array.dtype == np.float32:
            array = (rng.standard_normal(array.shape) * array.std()).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return made


def edited(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    """The model with another constant under a name."""
    made = copy.deepcopy(model)
    (tensor,) = (each for each in made.graph.initializer if each.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    return made


def no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where anything is compiled or linked."""
    monkeypatch.setattr(workers, "build", lambda *given: pytest.fail("a kernel was compiled"))
    monkeypatch.setenv("CC", "/nowhere/cc")


@pytest.mark.parametrize(("target", "batch"), [("x86-64-v3", [1, 4]), ("x86-64-v3,x86-64-v4", 1)])
def test_as_compiled(target: str, batch: int | list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte what compiling the new model writes; of the old model, what was there."""
    old, new = network(), retrained(network())
    library = tvmcnn.compile(old, target, tmp_path / "net.so", batch=batch).path
    (tmp_path / "compiled").mkdir()
    wanted = tvmcnn.compile(new, target, tmp_path / "compiled" / "net.so", batch=batch).path.read_bytes()
    no_code(monkeypatch)
    for model, bytes_ in ((old, library.read_bytes()), (new, wanted)):
        verdicts = tvmcnn.reweight(library, model, tmp_path / "again.so")
        assert verdicts
        assert all(verdict.passed for verdict in verdicts)
        assert (tmp_path / "again.so").read_bytes() == bytes_


def test_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export names nodes, tensors and weights anew, and has a word of its own: the library that a compile writes."""
    old, new = network(), retrained(network())
    ends = {each.name for each in (*new.graph.input, *new.graph.output)}
    for node in new.graph.node:
        node.name = f"later/{node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name in ends else f"onnx::{name}" for name in names]
    for tensor in new.graph.initializer:
        tensor.name = f"onnx::{tensor.name}"
    new.metadata_props.add(key="epoch", value="7")
    library = tvmcnn.compile(old, "x86-64-v3", tmp_path / "net.so").path
    (tmp_path / "compiled").mkdir()
    wanted = tvmcnn.compile(new, "x86-64-v3", tmp_path / "compiled" / "net.so").path.read_bytes()
    no_code(monkeypatch)
    (verdict,) = tvmcnn.reweight(library, new, tmp_path / "again.so")
    assert len(verdict.tensors) > 5, "hidden tensors are compared under their new names"
    assert (tmp_path / "again.so").read_bytes() == wanted


def test_tuned_configs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's configs stay, whatever records exist by now."""
    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    monkeypatch.setattr(search, "BATCH", 20)
    tuned = Enough(lambda events: bool(ops_with_a_final(events)))
    tvmcnn.tune(LENET5, "x86-64-v3", records=tmp_path / "my.jsonl", **tuned.given)
    library = tvmcnn.compile(LENET5, "x86-64-v3", tmp_path / "net.so", records=[tmp_path / "my.jsonl"]).path
    (tmp_path / "my.jsonl").unlink()
    no_code(monkeypatch)
    assert main(["reweight", str(library), str(LENET5), "-o", str(tmp_path / "again.so")]) == 0
    assert (tmp_path / "again.so").read_bytes() == library.read_bytes()


def test_what_is_refused(tmp_path: Path) -> None:
    """With names, and nothing is written."""
    model = network()
    library, again = tvmcnn.compile(model, "x86-64-v3", tmp_path / "net.so").path, tmp_path / "again.so"
    names = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    (scalar,) = (name for name, array in names.items() if array.size == 1)
    zeros = [name for name, array in names.items() if array.size == 16 and not array.any()]
    with pytest.raises(ModelError, match=rf"would have other code: .*a constant in its code \({scalar}\)"):
        tvmcnn.reweight(library, edited(model, scalar, np.array(0.75)), again)
    with pytest.raises(ModelError, match=rf"'{zeros[0]}' and '{zeros[1]}' were equal, share memory in the library"):
        tvmcnn.reweight(library, edited(model, zeros[1], np.arange(16)), again)
    both = edited(edited(model, zeros[0], np.arange(16)), zeros[1], np.arange(16))
    assert tvmcnn.reweight(library, both, tmp_path / "both.so")[0].passed
    other = copy.deepcopy(model)
    (pool,) = (node for node in other.graph.node if node.op_type == "AveragePool")
    pool.attribute.append(onnx.helper.make_attribute("count_include_pad", 1))
    with pytest.raises(
        ModelError, match=r"kernel k\d_averagepool of '\w+' would have other code: a shape or an attribute"
    ):
        tvmcnn.reweight(library, other, again)
    g = Graph()
    g.output(g.node("Relu", g.input(1, 16, 15, 12)))
    with pytest.raises(ModelError, match="the model is not the library's with other weights"):
        tvmcnn.reweight(library, g.model(), again)
    assert not again.exists()


def test_libraries_without_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph()
    g.output(g.conv(g.input(1, 3, 5, 7), 16, (3, 2)))
    monkeypatch.setenv("NVCC", str(NVCC))
    path = tvmcnn.compile(g.model(), "cuda:sm_80", tmp_path / "net.so").path
    with pytest.raises(ArtifactError, match="is for GPUs: compile the model for cuda:sm_80"):
        tvmcnn.reweight(path, g.model(), tmp_path / "again.so")
    path = tvmcnn.compile(g.model(), "x86-64-v3", tmp_path / "cpu.so").path
    monkeypatch.setattr("tvmcnn.reweighting.__version__", "9.9")
    with pytest.raises(ArtifactError, match=re.escape("was made by tvmcnn 0.1.0, this is 9.9: compile it")):
        tvmcnn.reweight(path, g.model(), tmp_path / "again.so")


def test_weights_that_might_be_code(tmp_path: Path) -> None:
    """A few zeros are in every library often: where the weights lie is not guessed, and the check reads all."""
    g = Graph()
    g.output(g.node("Add", g.node("Relu", g.input(2, 3, 4, 5)), g.constant(np.zeros((3, 4, 5), np.float32))))
    path = tvmcnn.compile(g.model(), "x86-64-v3", tmp_path / "net.so").path
    manifest = tvmcnn.load(path).manifest
    assert manifest["weights_bytes"] == 240
    assert manifest["code"]["weights_at"] == [0, 0]
    with pytest.raises(ArtifactError, match="has weights whose bytes are in it twice"):
        tvmcnn.reweight(path, g.model(), tmp_path / "again.so")
