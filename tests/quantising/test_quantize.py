"""Networks that `tvmcnn quantize` makes: what is in them, what it says of them, and what it refuses."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, graph_of, model_of, node
from data import LENET5
from onnx import numpy_helper
from PIL import Image

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.cli import main
from tvmcnn.cli.parser import parser
from tvmcnn.digits import load_mnist
from tvmcnn.network import Tensor
from tvmcnn.progress import silent
from tvmcnn.quantising import quantize, static
from tvmcnn.quantising.compare import Accuracy, compare
from tvmcnn.quantising.noise import Noise
from tvmcnn.quantising.prepare import _flatten_biases
from tvmcnn.quantising.result import Quantised
from tvmcnn.quantising.samples import Sample, labelled, reader_for, spread
from tvmcnn.quantising.sessions import session
from tvmcnn.run.inputs import Pixels

Array = np.ndarray[Any, Any]
CLASSES = ("bird", "cat", "dog", "fish", "goat")
PIXELS = {"mean": "0.4,0.3,0.1", "std": "0.2,0.3,0.5"}


def old_network(batch: int | str = "N", opset: int = 7) -> onnx.ModelProto:
    """A residual network as files of 2017 have it: weights among the inputs, BatchNormalization, no names of nodes.

    Its first filters read red most, green less and blue hardly, so that channels in the wrong order show.
    """
    rng, head = np.random.default_rng(5), np.random.default_rng(79)  # which tells the shades of draw_images apart
    first = np.abs(rng.standard_normal((16, 3, 3, 3))) * np.array([1, 0.1, 0.01]).reshape(1, 3, 1, 1) / 5
    weights = {
        "w": first,
        "scale": rng.uniform(0.5, 2, 16),
        "shift": rng.standard_normal(16),
        "centre": rng.standard_normal(16),
        "spread": rng.uniform(0.5, 2, 16),
        "v": rng.standard_normal((16, 16, 3, 3)) / 12,
        "dense": head.standard_normal((16, 5)),
        "bias": 3 * head.standard_normal((1, 5)),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c scale shift centre spread", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r v", "d", pads=[1, 1, 1, 1]),
        node("Add", "d r", "a"),
        node("Relu", "a", "s"),
        node("MaxPool", "s", "m", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "m", "g"),
        node("Flatten", "g", "f"),
        node("MatMul", "f dense", "t"),
        node("Add", "t bias", "y"),
        node("Softmax", "y", "p"),
    ]
    given = {"x": (batch, 3, 17, 13), **weights}
    model = model_of(nodes, given, {"p": (batch, 5)}, weights, opset=opset, ir_version=3)
    for key, value in PIXELS.items():
        model.metadata_props.add(key=key, value=value)
    return model


def draw_images(folder: Path, count: int = 6) -> None:
    """Reddish noise, another shade for each class, in a folder for each."""
    rng = np.random.default_rng(7)
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            colour = np.array([120 + 20 * place, 90 - 9 * place, 30])
            pixels = np.clip(colour + rng.normal(0, 25, (19, 14, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old network and its images."""
    folder = tmp_path_factory.mktemp("shelf")
    onnx.save(old_network(), folder / "old.onnx")
    draw_images(folder / "images")
    (folder / "few").mkdir()
    (folder / "few" / "one.png").write_bytes((folder / "images" / "cat" / "0.png").read_bytes())
    (folder / "none").mkdir()
    (folder / "none" / "notes.txt").write_text("no image")
    np.save(folder / "double.npy", np.zeros((1, 3, 17, 13)))
    np.save(folder / "none.npy", np.zeros((2, 3, 4, 5), np.float32))
    return folder


def made(shelf: Path, folder: Path, **options: Any) -> tuple[Quantised, onnx.ModelProto]:
    result = quantize(shelf / "old.onnx", shelf / "images", folder / "q.onnx", **options)
    return result, onnx.load(folder / "q.onnx")


def images(shelf: Path, metadata: dict[str, str] = PIXELS) -> list[Array]:
    """All images as the network takes them, by formulas of their own."""
    mean, std = (np.array([float(word) for word in metadata[key].split(",")]) for key in ("mean", "std"))
    found = []
    for path in sorted((shelf / "images").rglob("*.png")):
        pixels = np.asarray(Image.open(path).resize((13, 17), Image.Resampling.BILINEAR), np.float64)
        found.append(((pixels / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32))
    return found


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def zeros(model: onnx.ModelProto) -> dict[str, list[Array]]:
    """The zero points of activations and of weights in 8 bits."""
    known, found = constants(model), {"activations": [], "weights": []}
    for each in model.graph.node:
        if each.op_type == "QuantizeLinear":
            found["activations"].append(known[each.input[2]])
        if each.op_type == "DequantizeLinear" and each.input[0] in known and known[each.input[0]].dtype == np.int8:
            found["weights"].append(known[each.input[2]])
    return found


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


def test_samples(tmp_path: Path) -> None:
    """Evenly from the whole, in whole calls; folders are classes by their numbers, where their names are some."""
    assert spread(range(30), 5, 1) == [0, 6, 12, 18, 24]
    assert spread(range(10), 99, 4) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert spread(range(10), 1, 4) == [0, 2, 5, 7]
    files = [Sample(tmp_path / name / "a.png") for name in ("10", "3", "9")]
    found = labelled(files, tmp_path, None, 1000, lambda line: None)
    assert [sample.label for sample in found] == [10, 3, 9]
    loose = [*files, Sample(tmp_path / "b.png")]
    assert labelled(loose, tmp_path, None, 4, lambda line: None) == loose


def test_comparison() -> None:
    """Answers that differ, by hand: scores, integers, and outputs of another length."""
    scores = {"scores": np.float32([[1, 3, 2]]), "boxes": np.float32([[[3, 4]]]), "index": np.int64([1, 7])}
    other = {"scores": np.float32([[1, 2, 3]]), "boxes": np.float32([[[3, 3]]]), "index": np.int64([1, 8])}
    answers = iter([scores, other, {**other, "boxes": np.zeros((1, 5, 2), np.float32)}])
    reader = reader_for([Tensor("x", (1, 2), "float32")], Pixels())
    samples = [Sample(Path("a.npy"), 0, 1), Sample(Path("a.npy"), 0, 1), Sample(Path("a.npy"))]
    reader = dataclasses.replace(reader, rows=lambda path: {"x": np.zeros((1, 2), np.float32)})
    found = compare(lambda x: scores, lambda x: next(answers), reader, samples, print, silent)
    assert found.samples == 3
    assert found.accuracy == Accuracy(2, before=2, after=1)
    first, boxes, index = found.outputs
    assert (first.output, first.same) == ("scores", 1 / 3)
    assert first.relative_error == pytest.approx(math.sqrt(4 / 42))
    assert (boxes.same, boxes.relative_error) == (None, math.inf)
    assert index.same == 4 / 6


def test_biases() -> None:
    """Of a Gemm they get rank 1, for onnxruntime takes the first axis for channels; what a branch reads stays."""
    inner = graph_of([node("Identity", "kept", "b")], {}, "b")
    nodes = [
        node("Gemm", "x w row", "y0"),
        node("Gemm", "x v one", "y1", transB=1),
        node("If", "which", "y2", then_branch=inner, else_branch=inner),
    ]
    weights = {
        "w": np.ones((3, 5)),
        "v": np.ones((7, 3)),
        "row": np.arange(5.0).reshape(1, 5),
        "one": np.array([2.0]),
        "kept": np.array([4.0]),
    }
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    model = model_of(nodes, {"x": (1, 3), "which": (onnx.TensorProto.BOOL, ())}, "y0 y1 y2", weights)
    given = {"x": np.ones((1, 3), np.float32), "which": np.array(True)}
    wanted = reference(model, given, every_tensor=True)
    _flatten_biases(model)
    assert {name: array.shape for name, array in constants(model).items()} == {
        **{"w": (3, 5), "v": (7, 3), "kept": (1,)},
        **{"row.flat": (5,), "one.flat": (7,)},
    }
    found = reference(model, given, every_tensor=True)
    for name in ("y0", "y1", "y2"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_what_runs_both_networks() -> None:
    """Roundings are where the file has them: fused, onnxruntime's Add takes other sides of ties, and its sums of
    products saturate on CPUs without VNNI."""
    weights = {"s": np.float32(0.5), "z": np.uint8(0), "t": np.float32(1), "odd": np.uint8(3)}
    nodes = [
        node("DequantizeLinear", "x s z", "a"),
        node("DequantizeLinear", "y s z", "b"),
        node("Add", "a b", "c"),
        node("QuantizeLinear", "c t odd", "d"),
    ]
    x, y = np.arange(256, dtype=np.uint8)[None], np.full((1, 256), 2, np.uint8)
    model = model_of(nodes, {"x": x, "y": y}, {"d": x}, weights)
    found = session(model, "m")({"x": x, "y": y})["d"]
    np.testing.assert_array_equal(found, reference(model, {"x": x, "y": y})["d"])


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


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command(shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", str(shelf / "old.onnx"), "--data", str(shelf / "images"), "-o", str(tmp_path / "q.onnx")]
    assert main([*words, "--method", "entropy", "--keep", "d"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "onnxruntime" in out and "Collecting" not in out
    for head in ("bytes", "right, of 30 samples", "same answer, of 30 samples", "noisiest tensors"):
        assert f"\n{head} " in out
    assert out.endswith(f"wrote {tmp_path / 'q.onnx'}\n")
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["bytes_after"] == (tmp_path / "q.onnx").stat().st_size
    assert found["comparison"]["accuracy"]["samples"] == 30
    assert {"tensor", "node", "op", "is_weight", "decibels", "alone"} == set(found["layers"][0])
    assert "30 samples for the ranges" in err


def test_the_command_has_the_defaults_of_the_function() -> None:
    options = vars(parser().parse_args(["quantize", "m.onnx", "--data", "d", "-o", "q.onnx"]))
    for name, parameter in inspect.signature(quantize).parameters.items():
        if name in options and parameter.default is not inspect.Parameter.empty and name != "input_shapes":
            assert options[name] == parameter.default, name
    assert options["per_tensor"] is False


def test_what_onnxruntime_says(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its warnings are lines of the log, each once, and Python's logging stays as it was."""
    real = static.quantize_static

    def talking(*arguments: Any, **keywords: Any) -> None:
        for _ in range(2):
            logging.warning("mind the gap\nand more")
        print("chatter")
        real(*arguments, **keywords)

    monkeypatch.setattr(static, "quantize_static", talking)
    lines, before = list[str](), list(logging.getLogger().handlers)
    made(shelf, tmp_path, report=lines.append)
    assert lines.count("onnxruntime: mind the gap") == 1
    assert logging.getLogger().handlers == before


# ---- refusals -------------------------------------------------------------------------------------------------------


def quantised_already() -> onnx.ModelProto:
    weights = {"s": np.float32(0.1), "z": np.uint8(3)}
    nodes = [node("QuantizeLinear", "x s z", "q", "to_bytes"), node("DequantizeLinear", "q s z", "y")]
    return model_of(nodes, {"x": (1, 3, 17, 13)}, {"y": (1, 3, 17, 13)}, weights)


def newer_ir() -> onnx.ModelProto:
    model = old_network()
    model.ir_version = onnx.IR_VERSION + 1
    return model


def open_height() -> onnx.ModelProto:
    model = old_network()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    return model


def of_rows() -> onnx.ModelProto:
    g = Graph()
    g.output(g.node("Gemm", g.input(1, 7), g.draw(7, 3)))
    return g.model()


def nothing_to_do() -> onnx.ModelProto:
    g = Graph()
    g.output(g.node("Sigmoid", g.input(1, 3, 17, 13)))
    return g.model()


def two_inputs() -> onnx.ModelProto:
    g = Graph()
    x = g.node("Add", g.input(1, 3, 17, 13), g.input(1, 3, 17, 13))
    g.output(g.conv(x, 9, (1, 1)))
    return g.model()


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str, dict[str, Any], str]] = {
    "no folder": (old_network, "nowhere", {}, "the folder {s}/nowhere does not exist"),
    "no images": (old_network, "none", {}, "{s}/none has no images and no arrays: it takes .png"),
    "quantised": (quantised_already, "images", {}, "is quantised already: node 'to_bytes' (QuantizeLinear) and 1 more"),
    "newer": (newer_ir, "images", {}, f"ir_version {onnx.IR_VERSION + 1}"),
    "open": (open_height, "images", {}, "give its open dimensions by --input-shape x:"),
    "no images' shape": (of_rows, "images", {}, "is an image; the network takes (1, 7), not 1 x 1 x H x W"),
    "other shape": (old_network, "none.npy", {}, "none.npy is 2x3x4x5; the network's 'x' takes 1x3x17x13"),
    "nothing": (nothing_to_do, "images", {}, "has nothing to quantise"),
    "two inputs": (two_inputs, "images", {}, "holds one array; the network has 2 inputs: give an .npz with x0, x1"),
    "keep": (
        old_network,
        "images",
        {"keep": ["d", "conv9"]},
        "has no node 'conv9'; its Conv, Gemm and MatMul are c, d, t/Mat",
    ),
    "method": (
        old_network,
        "images",
        {"method": "mean"},
        "method 'mean' is unknown; allowed are minmax, entropy, perce",
    ),
    "type": (old_network, "images", {"activations": "u4"}, "activations 'u4' is unknown; allowed are u8, s8"),
    "none": (old_network, "images", {"calibrate": 0}, "0 samples cannot be calibrated or compared on"),
    "few": (lambda: old_network(4), "few", {}, "has 1 samples; a call of the network takes 4"),
    "mean": (old_network, "images", {"mean": (1, 2)}, "--mean has 2 values; the network takes 3 channels"),
    "double": (old_network, "double.npy", {}, "double.npy is float64; the network's 'x' takes float32"),
    "suffix": (old_network, "images", {"output": "q.so"}, "ends in '.so'; allowed are .onnx"),
    "itself": (old_network, "images", {"output": "m.onnx"}, "m.onnx is the model itself: name another file"),
    "label": (old_network, "images", {"labels": "cat/1.png 5"}, "1.png is of class 5; the network has classes 0 to 4"),
    "labels": (old_network, "images", {"labels": "0\n1"}, "has 2 classes and no names of files; there are 30 samples"),
    "line": (
        old_network,
        "images",
        {"labels": "a.png 0\nb.png cat"},
        "the line 'b.png cat' does not end in the number",
    ),
    "names": (old_network, "images", {"labels": "a.png 0"}, "names none of the files in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str, shelf: Path, tmp_path: Path) -> None:
    """One sentence, and nothing is written."""
    build, data, options, sentence = REFUSED[case]
    onnx.save(build(), tmp_path / "m.onnx")
    if "labels" in options:
        (tmp_path / "labels").write_text(options["labels"])
        options = {**options, "labels": tmp_path / "labels"}
    output = tmp_path / options.get("output", "q.onnx")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(tvmcnn.TvmcnnError) as found:
        quantize(tmp_path / "m.onnx", shelf / data, output, **{k: v for k, v in options.items() if k != "output"})
    assert not isinstance(found.value, tvmcnn.errors.InternalError)
    assert sentence.format(s=shelf) in str(found.value)
    assert "\n" not in str(found.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_onnxruntime(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name in [name for name in sys.modules if name.startswith(("onnxruntime", "tvmcnn.quantising"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(tvmcnn.__dict__, "quantize", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    words = ["quantize", str(shelf / "old.onnx"), "--data", str(shelf / "images"), "-o", str(tmp_path / "q.onnx")]
    assert main(words) == 1
    sentence = "tvmcnn: tvmcnn.quantize needs onnxruntime: install it by pip install 'tvmcnn[quant]'\n"
    assert capsys.readouterr().err == sentence


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
