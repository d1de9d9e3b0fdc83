"""Networks that `tvmcnn quantize` makes: what is in them, what it says of them, and what it refuses."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph
from data import LENET5
from onnx import numpy_helper
from quantize_models import CLASSES, PIXELS, constants, images, made, old_network, zeros

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.digits import load_mnist
from tvmcnn.quantising import quantize, static
from tvmcnn.quantising.noise import Noise
from tvmcnn.quantising.prepare import _flatten_biases
from tvmcnn.quantising.result import Quantised

Array = np.ndarray[Any, Any]


# ---- what is made ---------------------------------------------------------------------------------------------------


def test_an_old_network(shelf: Path, tmp_path: Path) -> None:
    """Its weights leave the inputs, batch norms fold, the opset has scales by channel, and every sum is of integers."""
    lines = list[str]()
    result, model = made(shelf, tmp_path, report=lines.append)
    onnx.checker.check_model(model)
    assert [value.name for value in model.graph.input] == ["x"]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 17, 13]
    assert {entry.key: entry.value for entry in model.metadata_props} == PIXELS
    assert [(each.domain, each.version >= 13) for each in model.opset_import] == [("", True)]
    operators = [each.op_type for each in model.graph.node]
    assert "BatchNormalization" not in operators
    (scores,) = (each for each in model.graph.node if each.output[0] == "p")
    assert scores.op_type == "Softmax", "scores of classes are not rounded to 8 bits"
    assert all(zero.dtype == np.uint8 and zero.size == 1 for zero in zeros(model)["activations"])
    assert sorted(zero.size for zero in zeros(model)["weights"]) == [5, 16, 16]
    assert "input 'x': its open leading dimension 'N' is bound to 1" in lines
    assert any("opset 7 converted" in line for line in lines)
    assert any("both networks" in line and "onnxruntime" in line for line in lines)
    told = list[str]()
    compiled = tvmcnn.compile(tmp_path / "q.onnx", output=tmp_path / "q.so", report=told.append)
    assert compiled.verdict is not None and compiled.verdict.passed
    (integers,) = (line for line in told if line.startswith("integers:"))
    assert integers.endswith("1 in other types: Softmax")
    assert result.bytes_after < result.bytes_before


def test_figures(shelf: Path, tmp_path: Path) -> None:
    """What is said is what the oracle finds, node by node in NumPy, with images read by formulas of this test."""
    result, model = made(shelf, tmp_path)
    known, calls = constants(model), images(shelf)
    wanted, found = ([reference(m, {"x": x}, every_tensor=True) for x in calls] for m in (old_network(1), model))
    assert result.comparison.samples == len(calls) == 30
    (agreement,) = result.comparison.outputs
    best, other = ([int(each["p"].argmax()) for each in side] for side in (wanted, found))
    assert agreement.output == "p" and agreement.same == np.mean(np.equal(best, other))
    exact, rounded = (np.concatenate([each["p"] for each in side]) for side in (wanted, found))
    assert agreement.relative_error == pytest.approx(np.linalg.norm(rounded - exact) / np.linalg.norm(exact), rel=1e-3)
    accuracy, labels = result.comparison.accuracy, np.repeat(range(5), 6)
    assert accuracy is not None and accuracy.samples == 30
    assert (accuracy.before, accuracy.after) == (np.equal(best, labels).sum(), np.equal(other, labels).sum())
    rows = {row.tensor: row for row in result.layers}
    for name in ("r", "d", "s", "g"):
        after = next(n.output[0] for n in model.graph.node if n.input[0].startswith(f"{name}_Quant"))
        exact, rounded = (np.stack([each[key] for each in side]) for side, key in ((wanted, name), (found, after)))
        level = 20 * math.log10(np.linalg.norm(exact) / np.linalg.norm(rounded - exact))
        assert rows[name].decibels == pytest.approx(level, abs=0.02), name  # a tie goes to either side
        scale, zero = (known[f"{name}_{word}"] for word in ("scale", "zero_point"))
        alone = (np.clip(np.rint(exact / scale) + zero, 0, 255) - zero) * scale
        level = 20 * math.log10(np.linalg.norm(exact) / np.linalg.norm(alone - exact))
        assert rows[name].alone == pytest.approx(level, abs=0.02), name
    (weight,) = (row for row in result.layers if row.is_weight and row.node == "d")
    dense, scale = numpy_helper.to_array(old_network().graph.initializer[5]), known["v_scale"].reshape(-1, 1, 1, 1)
    error = np.linalg.norm(known["v_quantized"] * scale - dense)
    assert weight.decibels == pytest.approx(20 * math.log10(np.linalg.norm(dense) / error), abs=1e-3)
    assert [row.decibels for row in result.layers] == sorted(row.decibels for row in result.layers)
    assert result.bytes_after == (tmp_path / "q.onnx").stat().st_size
    shown = {row.tensor for row in result.worst}
    assert {"m", "f"} <= rows.keys() and not {"m", "f"} & shown, "what only moves has the noise of what it moves"
    assert {"r", "d", "v"} <= shown


def test_choices(shelf: Path, tmp_path: Path) -> None:
    """Each option is in the file."""
    _, model = made(shelf, tmp_path, activations="s8", per_channel=False)
    assert {zero.dtype.name for zero in zeros(model)["activations"]} == {"int8"}
    assert {zero.size for zero in zeros(model)["weights"]} == {1}
    _, kept = made(shelf, tmp_path, keep=["d", "t"])
    assert sorted(zero.size for zero in zeros(kept)["weights"]) in ([16], [5, 16])
    assert next(n for n in kept.graph.node if n.op_type == "Conv" and n.output[0] == "d").input[1] == "v"
    scales = set()
    for method in static.METHODS:
        result, model = made(shelf, tmp_path, method=method)
        scales.add(float(constants(model)["r_scale"]))
        assert result.method == method and result.layers[0].decibels > 10
    assert len(scales) > 1
    lines = list[str]()
    few, _ = made(shelf, tmp_path, calibrate=5, evaluate=25, report=lines.append)
    assert (few.calibrated, few.comparison.samples) == (5, 25)
    assert "5 samples for the ranges (minmax), 25 to compare: none is of both" in lines


def test_histograms_in_parts(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all tensors of all samples do not fit into memory, onnxruntime gets some samples at a time, and all."""
    seen, real = list[tuple[int, int]](), static.Samples.set_range

    def noted(self: static.Samples, start_index: int, end_index: int) -> None:
        seen.append((start_index, end_index))
        real(self, start_index, end_index)

    monkeypatch.setattr(static.Samples, "set_range", noted)
    monkeypatch.setattr(static, "HISTOGRAM_BYTES", 250_000)
    told = list[tuple[str, int, int]]()
    made(shelf, tmp_path, method="percentile", progress=lambda *what: told.append(what))
    assert [what for what in told if what[0] == "calibrating"] == [("calibrating", n, 30) for n in range(1, 31)]
    assert told[-1] == ("measuring noise", 30, 30)
    parts = seen[1:-1]  # the first and the last are of all samples, and of those whose noise is measured
    size = parts[0][1]
    assert 1 < size < 30
    assert parts == [(start, start + size) for start in range(0, 30, size)]


def test_batches(shelf: Path, tmp_path: Path) -> None:
    """A network of a fixed batch gets as many samples a call; those that fill none are left out."""
    onnx.save(old_network(4), tmp_path / "four.onnx")
    four = quantize(tmp_path / "four.onnx", shelf / "images", tmp_path / "q.onnx", calibrate=30)
    assert (four.calibrated, four.comparison.samples) == (28, 28)
    assert four.comparison.accuracy is not None and four.comparison.accuracy.samples == 28
    one, _ = made(shelf, tmp_path)
    assert four.comparison.outputs[0].relative_error == pytest.approx(one.comparison.outputs[0].relative_error, rel=0.5)


def test_arrays(shelf: Path, tmp_path: Path) -> None:
    """The same samples as rows of an array, in order, with the classes in a file: the same network and figures."""
    x = np.concatenate(images(shelf))
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "a.npy", x[:13])
    np.savez(tmp_path / "rows" / "b.npz", x=x[13:29])
    np.save(tmp_path / "rows" / "c.npy", x[29])
    (tmp_path / "labels.txt").write_text("\n".join(str(label) for label in np.repeat(range(5), 6)))
    by_image, first = made(shelf, tmp_path)
    by_row = quantize(
        shelf / "old.onnx", tmp_path / "rows", tmp_path / "rows.onnx", labels=tmp_path / "labels.txt", evaluate=30
    )
    assert constants(onnx.load(tmp_path / "rows.onnx")).keys() == constants(first).keys()
    np.testing.assert_allclose(by_row.layers[0].decibels, by_image.layers[0].decibels, atol=0.02)
    assert by_row.comparison.accuracy == by_image.comparison.accuracy


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("file,class\n" + "\n".join(f"{name}/0.png,{n}" for n, name in enumerate(CLASSES)), 5),
        ("\n".join(f"'cat/{n}.png'; 1" for n in range(6)), 6),
        ("cat/3.png 1\ndog/1.png 2\nnot/there.png 7", 2),
    ],
)
def test_labels(text: str, samples: int, shelf: Path, tmp_path: Path) -> None:
    """Files and numbers in several forms; samples without a class do not count, and that is said."""
    (tmp_path / "labels.csv").write_text(text)
    lines = list[str]()
    result, _ = made(shelf, tmp_path, labels=tmp_path / "labels.csv", report=lines.append)
    assert result.comparison.accuracy is not None and result.comparison.accuracy.samples == samples
    assert any(line.endswith(f"has the class of {samples} of 30 samples") for line in lines)


def test_what_is_no_class(shelf: Path, tmp_path: Path) -> None:
    """An image as output has an error and no best class, and folders that are not as many as classes are none."""
    g = Graph(3)
    g.output(g.node("Relu", g.conv(g.input(1, 3, 17, 13), 9, (3, 3))))
    onnx.save(g.model(), tmp_path / "image.onnx")
    lines = list[str]()
    result = quantize(tmp_path / "image.onnx", shelf / "images", tmp_path / "q.onnx", report=lines.append)
    (output,) = result.comparison.outputs
    assert output.same is None and 0 < output.relative_error < 0.05
    assert result.comparison.accuracy is None
    assert "5 folders in " in next(line for line in lines if "no classes" in line)


# ---- faults that the figures betray ---------------------------------------------------------------------------------


def test_ranges_of_other_channels(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibrated with blue for red, the layers are cut off: the table begins at a few decibels."""
    right, _ = made(shelf, tmp_path)
    real = static.Samples.get_next

    def turned(self: static.Samples) -> dict[str, Array] | None:
        feed = real(self)
        if feed is None or self.doing != "calibrating":
            return feed
        return {name: array[:, ::-1].copy() for name, array in feed.items()}

    monkeypatch.setattr(static.Samples, "get_next", turned)
    wrong, _ = made(shelf, tmp_path)

    def alone(result: Quantised) -> Noise:
        return min((row for row in result.worst), key=lambda row: row.alone)

    assert alone(right).alone > 35
    assert alone(wrong).alone < 15
    assert wrong.worst[0].decibels < right.worst[0].decibels - 20
    assert f"{wrong.worst[0].decibels:>11.1f}" in str(wrong).splitlines()[-len(wrong.worst)]


def test_images_in_the_wrong_order(shelf: Path, tmp_path: Path) -> None:
    """With --bgr for a network of RGB both networks are wrong alike, which the accuracy before shows."""
    labels = tmp_path / "labels.txt"
    answers = [int(reference(old_network(1), {"x": x})["p"].argmax()) for x in images(shelf)]
    labels.write_text("\n".join(map(str, answers)))
    right, _ = made(shelf, tmp_path, labels=labels)
    wrong, _ = made(shelf, tmp_path, labels=labels, bgr=True)
    assert right.comparison.accuracy is not None and wrong.comparison.accuracy is not None
    assert right.comparison.accuracy.before == 30
    assert wrong.comparison.accuracy.before < 20


def test_a_conversion_that_is_wrong(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared is the network of the file: one that preparation damaged does not agree with it."""
    preparing = sys.modules[_flatten_biases.__module__]  # the package has a function of that name
    real = preparing.convert_opset

    def careless(proto: onnx.ModelProto, label: str) -> list[str]:
        notes = real(proto, label)
        (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[:, ::-1], "bias"))
        return notes

    assert made(shelf, tmp_path)[0].comparison.outputs[0].relative_error < 0.05
    monkeypatch.setattr(preparing, "convert_opset", careless)
    assert made(shelf, tmp_path)[0].comparison.outputs[0].relative_error > 0.2


def test_a_file_that_is_wrong(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What onnxruntime writes is imported before it is handed on."""
    real = static.quantize_static

    def careless(source: Path, target: Path, *arguments: Any, **keywords: Any) -> None:
        real(source, target, *arguments, **keywords)
        model = onnx.load(target)
        (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "r_scale")
        scale.CopyFrom(numpy_helper.from_array(np.float32(-0.1), "r_scale"))
        onnx.save(model, target)

    monkeypatch.setattr(static, "quantize_static", careless)
    with pytest.raises(tvmcnn.ModelError, match=r"(?s)what onnxruntime makes of .* cannot be compiled: .*scale"):
        made(shelf, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- LeNet-5 --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lenet5_on_mnist(test_data: Path, tmp_path: Path) -> None:
    """The shipped network in integers recognises as many of 10,000 digits, but for one in a thousand, and the figures
    are those of the compiled libraries."""
    digits = load_mnist(test_data / "data" / "mnist", "t10k")
    facts = {entry.key: entry.value for entry in onnx.load(LENET5).metadata_props}
    pixels = ((digits.images[:, None] / np.float32(255) - float(facts["mean"])) / float(facts["std"])).astype(
        np.float32
    )
    np.save(tmp_path / "digits.npy", pixels)
    (tmp_path / "labels.txt").write_text("\n".join(map(str, digits.labels)))
    result = quantize(
        LENET5, tmp_path / "digits.npy", tmp_path / "q.onnx", labels=tmp_path / "labels.txt", evaluate=10_000
    )
    accuracy = result.comparison.accuracy
    assert accuracy is not None and accuracy.samples == 10_000
    assert accuracy.before > 9900
    assert accuracy.after >= accuracy.before - 10
    right = []
    for path in (LENET5, tmp_path / "q.onnx"):
        tvmcnn.compile(path, output=tmp_path / "n.so", batch=250)
        net = tvmcnn.load(tmp_path / "n.so")
        found = np.concatenate([net(part).argmax(axis=1) for part in np.split(pixels, 40)])
        right.append(int((found == digits.labels).sum()))
    assert right == [accuracy.before, accuracy.after]
