"""A bias that is not of the scale of the sums, and a BatchNormalization: integers, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantised import Quantised, any_input, equal, operators

from tvmcnn.check.reference import reference
from tvmcnn.fuse import integers as fused
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model

X, W = np.float32(0.0234), np.float32(0.0321)  # the scales of x and w
Y = 3.0  # and of y
STEP = X * W


def _normalised(g: Quantised, x: str, maps: int, scale: float = 1.0) -> str:
    """BatchNormalization with factors of both signs."""
    gamma = scale * g.rng.uniform(0.5, 2, maps) * np.where(np.arange(maps) % 3 == 1, -1, 1)
    statistics = gamma, 3 * g.rng.standard_normal(maps), g.rng.standard_normal(maps), g.rng.uniform(0.5, 2, maps)
    return g.node("BatchNormalization", x, *(g.constant(np.float32(each)) for each in statistics), epsilon=1e-3)


def _conv(g: Quantised, bias: Callable[[int], str] | None = None, maps: int = 19, **attributes: int) -> str:
    w = g.weight(maps, 5 // attributes.get("group", 1), 3, 2, scale=g.scale(maps) / 3, zero=np.zeros(maps))
    return g.node("Conv", g.source(2, 5, 9, 7), w, *([] if bias is None else [bias(maps)]), **attributes)


BUILDS: dict[str, Callable[[Quantised], str]] = {
    "floats": lambda g: _conv(g, lambda maps: g.draw(maps)),
    "one-float": lambda g: _conv(g, lambda maps: g.draw(1), maps=1),
    "depthwise": lambda g: _conv(g, lambda maps: g.draw(maps), maps=5, group=5),
    "other-scale": lambda g: _conv(g, lambda maps: g.bias(maps, np.float32(2 * STEP))),
    "bytes": lambda g: _conv(g, lambda maps: g.weight(maps, scale=0.03, zero=5)),
    "norm": lambda g: _normalised(g, _conv(g), 19),
    "norm-floats": lambda g: _normalised(g, _conv(g, lambda maps: g.draw(maps)), 19),
    "norm-relu": lambda g: g.node("Relu", _normalised(g, _conv(g, lambda maps: g.draw(maps)), 19)),
    "norm-integers": lambda g: _normalised(
        g, g.node("Conv", g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2), g.bias(4, STEP)), 4
    ),
    "gemm": lambda g: g.node("Gemm", g.source(5, 33), g.weight(17, 33), g.draw(17), transB=1),
    "gemm-row": lambda g: g.node("Gemm", g.source(5, 33), g.weight(33, 17), g.draw(1, 17)),
    "arriving-weight": lambda g: g.node(
        "Conv", g.source(1, 3, 5, 7), g.down(g.bytes(4, 3, 2, 2), W, np.uint8(9)), g.draw(4)
    ),
}  # fmt: skip


def _model(name: str, scale: float = Y) -> onnx.ModelProto:
    g = Quantised(5)
    return g.finished(g.up(BUILDS[name](g), scale, np.uint8(101)))


@pytest.mark.parametrize("name", BUILDS)
def test_is_computed_in_integers(name: str, target: str, tmp_path: Path) -> None:
    """And differs from what the file's floats round to by one step, as rarely as a factor is large: half of 0.04."""
    model = _model(name)
    compiled = equal(model, tmp_path, target)
    assert not [ops for ops in operators(compiled) if "Quantize" in ops or ops in ("Conv", "Gemm")]
    assert not [note for note in compiled.program.network.notes if "float32" in note]
    given = any_input(model)
    (y,) = reference(model, given).values()
    between = next(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    floats = reference(model, given, every_tensor=True)[between].astype(np.float64)
    wanted = np.clip(np.rint(floats / Y) + 101, 0, 255)
    away = np.abs(y.astype(int) - wanted)
    assert away.max() <= 1
    assert (away > 0).mean() <= 0.02
    assert len(np.unique(y)) > 10


def test_the_bias_is_the_nearest_integer() -> None:
    """In float64, of what float32 holds; halves go to the even one."""
    g = Quantised(5)
    bias = np.float32([0.5, 1.5, -2.5, 1000.25]) * np.float32(2.0**-6)
    conv = g.node("Conv", g.source(1, 3, 5, 7, scale=2.0**-3), g.weight(4, 3, 2, 2, scale=2.0**-3), g.array(bias))
    network = simplified(import_model(g.finished(g.up(conv, 3.0, np.uint8(1)))), in_bytes=True)
    (found,) = (array for array in network.constants.values() if array.dtype == np.int32)
    np.testing.assert_array_equal(found, [0, 2, -2, 1000])


def _tiny_scale(g: Quantised) -> str:
    w = g.weight(4, 3, 2, 2, scale=np.float32([0.03, 1e-12, 0.02, 0.01]), zero=np.zeros(4))
    return g.node("Conv", g.source(1, 3, 5, 7), w, g.draw(4))


def _computed_bias(g: Quantised) -> str:
    return g.node("Conv", g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2), g.node("Relu", g.input(4)))


def _zero_factor(g: Quantised) -> str:
    ones = [g.constant(np.float32(each)) for each in ([0, 1, 1, 1], [1, 2, 3, 4], [0] * 4, [1] * 4)]
    return g.node("BatchNormalization", g.node("Conv", g.source(1, 3, 5, 7), g.weight(4, 3, 2, 2)), *ones)


NONE = {
    "tiny-scale": (_tiny_scale, 3.0, "what is added to its sums ('{}') is not within int32 in their scale"),
    "computed": (_computed_bias, 3.0, "its bias '{}' is not constant"),
    "zero-factor": (_zero_factor, 3.0, "is not within int32 in their scale"),
    "large-step": (BUILDS["floats"], 0.001, "of one of its result, too large a one to round what is added to them"),
    "large-step-norm": (BUILDS["norm"], 0.001, "of one of its result, too large a one to round"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_computed_in_float32(name: str, tmp_path: Path) -> None:
    build, scale, reason = NONE[name]
    g = Quantised(5)
    model = g.finished(g.up(build(g), scale, np.uint8(101)))
    (told,) = (note for note in simplified(import_model(model)).notes if "float32" in note)
    (conv,) = (node for node in model.graph.node if node.op_type == "Conv")
    assert reason.format(conv.input[-1]) in told
    assert not [ops for ops in operators(equal(model, tmp_path)) if "QLinear" in ops]


def test_the_largest_factor(tmp_path: Path) -> None:
    """A quarter is allowed, and what is just above it is not; by the oracle too, or bytes would differ."""
    for scale, count in ((2.0**-4, 1), (np.nextafter(np.float32(2.0**-4), np.float32(0)), 0)):
        g = Quantised(5)
        x, w = g.source(1, 3, 5, 7, scale=2.0**-3), g.weight(4, 3, 2, 2, scale=2.0**-3)
        model = g.finished(
            g.up(g.node("Conv", x, w, g.array(np.float32([0.4, 0.3, 0.2, 0.1]) / 64)), scale, np.uint8(1))
        )
        found = [node.op for node in simplified(import_model(model)).nodes]
        assert found.count("Conv") == 1 - count
        equal(model, tmp_path)


def test_a_bias_that_others_round_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: one more is added to each sum."""
    real = fused.factor_and_bias

    def planted(*given: object) -> object:
        factor, bias = real(*given)  # type: ignore[arg-type]
        return factor, None if bias is None else bias + 200

    monkeypatch.setattr(fused, "factor_and_bias", planted)
    with pytest.raises(Exception, match="differ"):
        equal(_model("norm-floats"), tmp_path)
