"""The command `tvmcnn quantize`, what it lets through of onnxruntime, and all that is refused."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph, model_of, node
from quantize_models import made, old_network

import tvmcnn
from tvmcnn.cli import main
from tvmcnn.cli.parser import parser
from tvmcnn.quantising import quantize, static

Array = np.ndarray[Any, Any]


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
