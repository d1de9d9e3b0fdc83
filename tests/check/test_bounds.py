"""Bounds by disturbed runs, and the steps behind which either answer is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import model_of, node
from onnx import TensorProto

import tvmcnn
from tvmcnn.check import bounds as bounding
from tvmcnn.check.bounds import Bounds, bounds_of, half_spacing
from tvmcnn.check.factors import Factors
from tvmcnn.check.follow import Follower
from tvmcnn.check.jumps import PLACE_ROUNDING, admissible, is_step, same_side
from tvmcnn.check.observe import Observed
from tvmcnn.check.random_inputs import drawn_inputs
from tvmcnn.check.reference import reference
from tvmcnn.check.verify import Verdict, compare, verify_library
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Array, Network, Node, Tensor

SHAPE = (3, 5, 37)
Model = Any


def model(
    nodes: list[Any], *outputs: tuple[str, int], constants: dict[str, Array] | None = None, **inputs: Any
) -> Model:
    """A model of inputs x=(type, shape) and so on."""
    return model_of(nodes, inputs, dict(outputs), constants, opset=18)


def unary(*ops: str, out: int = TensorProto.FLOAT, kind: int = TensorProto.FLOAT, **attributes: Any) -> Model:
    """x through operators, one behind the other; the last has the attributes."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [node(op, a, b) for op, a, b in zip(ops[:-1], names, names[1:], strict=False)]
    nodes.append(node(ops[-1], names[-2], "y", **attributes))
    return model(nodes, ("y", out), x=(kind, SHAPE))


def found_bounds(proto: Model, x: Array, growths: dict[str, float] | None = None) -> tuple[Network, Bounds]:
    network = simplified(import_model(proto))
    inputs = {"x": x}
    return network, bounds_of(network, inputs, lambda follow: reference(proto, inputs, follow=follow), growths)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape or SHAPE).astype(np.float32)


def judged(proto: Model, x: Array, spoil: Callable[[dict[str, Array]], None] = lambda found: None) -> Verdict:
    """The verdict on NumPy's own float32 results, spoilt by a planted error."""
    network = simplified(import_model(proto))
    values = {name: np.array(a) for name, a in reference(proto, {"x": x}, every_tensor=True).items()}
    spoil(values)
    outputs = tuple(values[tensor.name] for tensor in network.outputs)
    return compare(Observed(values, outputs), network, proto, {"x": x}, Factors(), 0)


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_what_computes_nothing_is_exact() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("Transpose", "a", "b", perm=[2, 0, 1]),
        node("Neg", "b", "y"),
    ]
    _, bounds = found_bounds(model(nodes, ("y", 1), x=(1, SHAPE)), normal())
    assert {name: error for name, error in bounds.errors.items() if error} == {}


@pytest.mark.parametrize("op", ["Exp", "Sqrt", "Sigmoid", "Tanh", "Erf"])
def test_a_bound_is_that_of_float32_not_more(op: str) -> None:
    """float32 itself stays within the bound, and the bound within 64 roundings of the largest value.

    8 standard deviations of √9 roundings are 24; the disturbed runs may double that. Bounds ten times too loose fail.
    """
    x = np.abs(normal())
    _, bounds = found_bounds(unary(op), x)
    largest = np.abs(bounds.values["y"]).max()
    assert 8 * 2.0**-24 * largest < bounds.errors["y"] < 64 * 2.0**-24 * largest


@pytest.mark.parametrize("depth", [9, 577])
def test_a_sum_is_bounded_by_the_root_of_its_length(depth: int) -> None:
    weight = normal(depth, 7, seed=1)
    nodes = [node("MatMul", "x w", "y")]
    x = normal(3, 5, depth)
    _, bounds = found_bounds(model(nodes, ("y", 1), constants={"w": weight}, x=(1, (3, 5, depth))), x)
    error = np.abs((x @ weight).astype(np.float64) - bounds.values["y"]).max()
    unit = 2.0**-24 * np.abs(bounds.values["y"]).max() * np.sqrt(depth + 8)
    assert error < bounds.errors["y"]
    assert 8 * unit <= bounds.errors["y"] < 24 * unit


def test_a_sum_that_cancels_has_the_errors_of_its_terms() -> None:
    nodes = [
        node("Mul", "x big", "a"),
        node("Add", "a x", "b"),
        node("Sub", "b a", "y"),
    ]
    big = np.array([3e5], np.float32)
    _, bounds = found_bounds(model(nodes, ("y", 1), constants={"big": big}, x=(1, SHAPE)), x := normal())
    in_float32 = (x * big + x) - x * big
    error = np.abs(in_float32.astype(np.float64) - bounds.values["y"]).max()
    assert 1e-3 < error < bounds.errors["y"] < 100 * error


@pytest.mark.parametrize("op", ["Sum", "Mean"])
def test_what_cancels_in_one_operator_has_the_errors_of_its_terms(op: str) -> None:
    """300000 + x − 300000 in float32, computed by one node, is no nearer to x than float32 is at 300000."""
    constants = {"big": np.array([3e5], np.float32), "less": np.array([-3e5], np.float32)}
    proto = model([node(op, "big x less", "y")], ("y", 1), constants=constants, x=(1, SHAPE))
    _, bounds = found_bounds(proto, x := normal())
    in_float32 = ((constants["big"] + x) + constants["less"]) / np.float32(3 if op == "Mean" else 1)
    error = np.abs(in_float32.astype(np.float64) - bounds.values["y"]).max()
    assert 1e-3 < error < bounds.errors["y"] < 100 * error


def test_a_disturbance_that_leaves_a_function_s_domain_spoils_nothing_behind_it() -> None:
    """cosh(0) is 1; a little less has no acosh, and one NaN would make a whole group NaN and its bound nothing."""
    nodes = [node("Cosh", "x", "a"), node("Acosh", "a", "b"), node("LayerNormalization", "b scale", "y", axis=1)]
    scale = np.ones((5, 37), np.float32)
    _, bounds = found_bounds(model(nodes, ("y", 1), constants={"scale": scale}, x=(1, SHAPE)), x := normal() / 1000)
    in_float32 = np.arccosh(np.cosh(x)).reshape(3, -1)
    centred = in_float32 - in_float32.mean(axis=1, keepdims=True)
    ours = (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)).reshape(SHAPE)
    error = np.abs(ours.astype(np.float64) - bounds.values["y"]).max()
    assert 1e-3 < error < bounds.errors["y"] < 100 * error


def test_what_cuts_keeps_the_error_of_what_it_cuts() -> None:
    """Clip to [0, 60] of sums that reach 600: the error is that of the sums, not one relative to 60."""
    nodes = [node("MatMul", "x w", "a"), node("Clip", "a low high", "y")]
    constants = {"w": 30 * normal(37, 11), "low": np.float32(0) * np.ones(()), "high": np.float32(60) * np.ones(())}
    constants = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    x = normal()
    _, bounds = found_bounds(model(nodes, ("y", 1), constants=constants, x=(1, SHAPE)), x)
    assert bounds.errors["a"] / 10 < bounds.errors["y"] <= 2 * bounds.errors["a"]


def test_growth_is_of_the_node_that_has_it() -> None:
    proto = unary("Exp")
    _, plain = found_bounds(proto, normal())
    _, grown = found_bounds(proto, normal(), {"y": 10.0})
    assert grown.errors["y"] == pytest.approx(10 * plain.errors["y"])


def test_float64_is_held_to_float64() -> None:
    _, bounds = found_bounds(unary("Exp", out=TensorProto.DOUBLE, kind=TensorProto.DOUBLE), normal().astype(np.float64))
    assert bounds.errors["y"] < 100 * 2.0**-53 * np.abs(bounds.values["y"]).max()


def test_bounds_are_finite_behind_steps() -> None:
    nodes = [
        node("Exp", "x", "e"),
        node("Cast", "e", "i", to=TensorProto.INT32),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Greater", "e f", "g"),
        node("Where", "g e x", "w"),
        node("Mul", "w f", "y"),
    ]
    _, bounds = found_bounds(model(nodes, ("y", 1), x=(1, SHAPE)), normal())
    assert all(np.isfinite(error) for error in bounds.errors.values())
    assert bounds.errors["i"] == bounds.errors["f"] == 0
    assert 0 < bounds.errors["y"] < 1e-5 * np.abs(bounds.values["y"]).max()


def test_half_spacing() -> None:
    ones = np.array([1.0, 1e6, np.inf])
    np.testing.assert_array_equal(half_spacing(ones, np.dtype("float16")), [2.0**-11, 16, 2.0**-25])
    assert half_spacing(ones, np.dtype("int8")).tolist() == [0, 0, 0]


# ---- steps ----------------------------------------------------------------------------------------------------------


def step(op: str, **attributes: Any) -> Node:
    return Node(op, op, ("x", "z"), "y", attributes)


CASES: list[tuple[Node, list[Any], Any, Any, Any]] = [  # operands, expected, found, whether it may be
    (step("Floor"), [[2.9999, 2.9999, 2.5]], [2, 2, 2], [3, 1, 3], [True, False, False]),
    (step("Ceil"), [[2.0001, 2.5]], [3, 3], [2, 2], [True, False]),
    (step("Round"), [[2.5001, 2.6]], [3, 3], [2, 2], [True, False]),
    (step("Sign"), [[1e-5, 1e-5, 1.0]], [1, 1, 1], [-1, 0, -1], [True, True, False]),
    (step("Cast", to="int32"), [[2.9999, -0.9999, 2.5]], [2, 0, 2], [3, -1, 3], [True, True, False]),
    (step("Cast", to="bool"), [[1e-5, 0.0, 0.5]], [True, False, True], [False, True, False], [True, True, False]),
    (step("Less"), [[1.0, 1.0], [1.0001, 2.0]], [True, True], [False, False], [True, False]),
    (step("Equal"), [[1.0, 1.0], [1.0001, 1.5]], [False, False], [True, True], [True, False]),
    (
        step("ThresholdedRelu", alpha=1.0),
        [[1.0001, 1.0001, 3.0]],
        [1.0001, 1.0001, 3],
        [0, 0.5, 0],
        [True, False, False],
    ),
    (
        step("Shrink", lambd=1.0, bias=0.5),
        [[1.0001, -1.0001, -1.0001, 3.0]],
        [0.5001, -0.5001, -0.5001, 2.5],
        [0, 0, 0.5, 0],
        [True, True, False, False],
    ),
    (
        step("Mod", fmod=False),
        [[5.9999, 5.9999, 5.0], [3.0, 3.0, 3.0]],
        [2.9999, 2.9999, 2],
        [0, 1, 0],
        [True, False, False],
    ),
    (step("IsInf"), [[float(np.finfo(np.float32).max), 1.0]], [False, False], [True, True], [True, False]),
    (step("ArgMax", axes=(1,)), [[[1.0, 1.0001, 0.5], [1.0, 2.0, 0.5]]], [[1], [1]], [[0], [0]], [[True], [False]]),
    (step("ArgMax", axes=(0,)), [[[1.0, 2.0], [1.0001, 1.0]]], [1, 0], [0, 5], [True, False]),
]


@pytest.mark.parametrize(
    ("node", "operands", "expected", "found", "right"), CASES, ids=lambda each: getattr(each, "op", None)
)
def test_an_answer_may_differ_beside_a_step(
    node: Node, operands: list[Any], expected: Any, found: Any, right: Any
) -> None:
    given = [np.asarray(operand, np.float64) for operand in operands]
    answers = np.asarray(expected), np.asarray(found)
    assert is_step(node)
    assert admissible(node, given, [1e-3] * len(given), *answers).tolist() == right
    assert not admissible(node, given, [0.0] * len(given), *answers).any(), "exact operands leave no choice"


@pytest.mark.parametrize("order", [0, 1])
def test_an_index_of_the_same_window_may_stand_for_another(order: int) -> None:
    x = np.zeros((2, 3, 4, 5))
    x[1, 2, 1, 2], x[1, 2, 1, 3], x[1, 2, 3, 3] = 1.0, 1.0001, 1.0001
    node = step("MaxPoolIndices", kernel_shape=(2, 2), dilations=(1, 1), storage_order=order)

    def flat(h: int, w: int) -> int:
        return 5 * 20 + (h + 4 * w if order else 5 * h + w)

    expected = np.array([flat(1, 3)] * 4)
    found = np.array([flat(1, 2), flat(3, 3), flat(0, 3), -1])
    assert admissible(node, [x], [1e-3], expected, found).tolist() == [True, False, False, False]


# ---- verdicts -------------------------------------------------------------------------------------------------------


def test_one_element_beside_a_step_is_excused_and_followed() -> None:
    """What comes behind is expected from the library's answer: 7 for 8, and 49 for 64."""
    nodes = [
        node("Sqrt", "x", "s"),
        node("Floor", "s", "f"),
        node("Mul", "f f", "y"),
    ]
    proto, x = model(nodes, ("y", 1), x=(1, SHAPE)), np.abs(normal()) + 3
    x[1, 2, 3] = 64.0000001

    def spoil(found: dict[str, Array]) -> None:
        found["f"][1, 2, 3], found["y"][1, 2, 3] = 7, 49

    verdict = judged(proto, x, spoil)
    assert verdict.passed, verdict
    assert verdict.excused == 1
    assert "1 elements stand at a step" in str(verdict)
    assert verdict.as_json()["excused"] == 1

    def inconsistent(found: dict[str, Array]) -> None:
        spoil(found)
        found["y"][1, 2, 3] = 64

    assert judged(proto, x, inconsistent).first_wrong is not None

    def elsewhere(found: dict[str, Array]) -> None:
        found["f"][0, 0, 0] += 1

    wrong = judged(proto, x, elsewhere).first_wrong
    assert wrong is not None
    assert wrong.name == "f"


@pytest.mark.parametrize("change", [lambda y: y.reshape(5, 3, 37), lambda y: y[:1], lambda y: y.astype(np.float64)])
def test_another_shape_or_type_is_wrong(change: Callable[[Array], Array]) -> None:
    def spoil(found: dict[str, Array]) -> None:
        found["y"] = change(found["y"])

    x = np.zeros(SHAPE, np.float32)
    assert judged(unary("Neg"), x).passed
    wrong = judged(unary("Neg"), x, spoil).first_wrong
    assert wrong is not None
    assert str(wrong) == "y: it is of another shape or type"


def test_large_integers_are_compared_to_the_last_bit() -> None:
    def spoil(found: dict[str, Array]) -> None:
        found["y"][1, 2, 3] += 1

    x = np.full(SHAPE, 2**60, np.int64)
    proto = unary("Neg", kind=TensorProto.INT64, out=TensorProto.INT64)
    assert judged(proto, x).passed
    assert judged(proto, x, spoil).first_wrong is not None


def test_more_than_chance_puts_beside_a_step_is_refused() -> None:
    """Half of all sums are beside 0, where any sign may be right: one that is always True shows its number."""
    nodes = [node("Mul", "x z", "a"), node("Greater", "a z", "y")]
    constants = {"z": np.zeros((1,), np.float32)}
    proto = model(nodes, ("y", TensorProto.BOOL), constants=constants, x=(1, SHAPE))
    nodes[0] = node("Mul", "x one", "b")
    proto = model(
        [*nodes[:1], node("Sub", "b x", "a"), nodes[1]],
        ("y", TensorProto.BOOL),
        constants=constants | {"one": np.ones((1,), np.float32)},
        x=(1, SHAPE),
    )

    def spoil(found: dict[str, Array]) -> None:
        found["y"][:] = True

    assert judged(proto, normal()).passed
    wrong = judged(proto, normal(), spoil).first_wrong
    assert wrong is not None
    assert f"{found_size()} of {found_size()} elements are on the other side of a step" in str(wrong)


def test_what_its_type_rounds_to_a_step_needs_no_excuse() -> None:
    """tanh(12) is 1 in float32 and a little less in float64: in one element of three, and right in all."""
    nodes = [node("Tanh", "x", "t"), node("Floor", "t", "y")]
    x = normal()
    x[1] = 12 + np.abs(x[1])

    def spoil(found: dict[str, Array]) -> None:
        found["y"] = np.floor(np.tanh(x))

    verdict = judged(model(nodes, ("y", 1), x=(1, SHAPE)), x, spoil)
    assert verdict.passed, verdict
    assert verdict.excused == 0


@pytest.mark.parametrize("op", ["GreaterOrEqual", "Equal", "Less"])
def test_what_the_library_s_own_operands_decide_needs_no_excuse(op: str) -> None:
    """(1 + x) − 1 is x, and beside it in float32: every element is a tie, which the library's own numbers decide."""
    nodes = [node("Sum", "one x less", "t"), node(op, "t x", "y")]
    constants = {"one": np.ones((1,), np.float32), "less": -np.ones((1,), np.float32)}
    proto = model(nodes, ("y", TensorProto.BOOL), constants=constants, x=(1, SHAPE))
    x = normal()
    rounded = (constants["one"] + x) + constants["less"]
    answers = {"GreaterOrEqual": rounded >= x, "Equal": rounded == x, "Less": rounded < x}

    def spoil(found: dict[str, Array]) -> None:
        found["t"], found["y"] = rounded, answers[op]

    def other(found: dict[str, Array]) -> None:
        found["t"], found["y"] = rounded, ~answers[op]

    verdict = judged(proto, x, spoil)
    assert verdict.passed, verdict
    assert verdict.excused == 0
    wrong = judged(proto, x, other).first_wrong
    assert wrong is not None
    assert "on the other side of a step" in str(wrong)


def found_size() -> int:
    return int(np.prod(SHAPE))


def test_float16_is_compared_at_its_own_spacing() -> None:
    proto, x = unary("Sigmoid", out=TensorProto.FLOAT16, kind=TensorProto.FLOAT16), normal().astype(np.float16)

    def off(spacings: int) -> Callable[[dict[str, Array]], None]:
        def spoil(found: dict[str, Array]) -> None:
            found["y"][1, 2, 3] += spacings * np.spacing(found["y"][1, 2, 3])

        return spoil

    assert judged(proto, x).passed
    for spacings in (2, 4, -4):
        assert judged(proto, x, off(spacings)).first_wrong is not None


def test_float16_in_between_is_followed() -> None:
    """The other neighbour of a value in the middle of two is right, and so is what follows from it."""
    nodes = [
        node("Exp", "x", "e"),
        node("Cast", "e", "h", to=TensorProto.FLOAT16),
        node("Cast", "h", "f", to=TensorProto.FLOAT),
        node("Mul", "f f", "y"),
    ]
    proto, x = model(nodes, ("y", 1), x=(1, SHAPE)), normal()
    x[1, 2, 3] = np.log(1 + 2.0**-11)

    def spoil(found: dict[str, Array]) -> None:
        other = np.float32(1) if found["f"][1, 2, 3] > 1 else np.float32(1 + 2.0**-10)
        found["h"][1, 2, 3] = found["f"][1, 2, 3] = other
        found["y"][1, 2, 3] = other * other

    assert judged(proto, x, spoil).passed


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "terms"),
    [
        ("GroupNormalization", [(2, 12, 5, 7)], {"num_groups": 3}, 4 * 5 * 7),
        ("InstanceNormalization", [(2, 12, 5, 7)], {}, 5 * 7),
        ("ConvTranspose", [(2, 12, 5, 7), (12, 4, 3, 2)], {"group": 2}, 12 * 3 * 2 // 2),
        ("Gemm", [(5, 9), (9, 4)], {}, 9),
        ("Gemm", [(9, 5), (9, 4)], {"transA": 1}, 9),
        ("ReduceSum", [(3, 5, 7)], {"axes": (0, 2)}, 21),
        ("CumSum", [(3, 5, 7)], {"along": (1, 0, 0)}, 6),
        ("GridSample", [(2, 3, 5, 7), (2, 4, 6, 2)], {"mode": "cubic"}, 16),
        ("Softmax", [(3, 5, 7)], {"axis": 1}, 5),
    ],
    ids=str,
)
def test_roundings_of_an_element(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], terms: int
) -> None:
    """As many as an element's sum has terms: what is more lets errors pass."""
    tensors = {f"t{i}": Tensor(f"t{i}", shape, "float32") for i, shape in enumerate(shapes)}
    network = Network("n", tuple(tensors.values()), (), (), tensors, {}, {})
    assert bounding._terms(network, op, tuple(tensors), attributes) == terms + bounding.OTHER_ROUNDINGS


def test_a_whole_remainder_stays_on_its_side() -> None:
    """Only a Mod of floats moves with its operand."""
    mod = Node("Mod", "m", ("x", "y"), "z", {"fmod": 0})
    five, four, zero = (np.array([value], np.int32) for value in (5, 4, 0))
    assert same_side(mod, five, four, zero, 0.0).tolist() == [0]
    moved = same_side(mod, np.float32([5]), np.float32([4.99]), np.float32([0.01]), 0.0)
    assert moved == pytest.approx(-0.01, rel=1e-4)


@pytest.mark.parametrize(("off", "right"), [(1.0, True), (3.0, False)])
def test_a_place_is_off_by_what_leads_to_a_pixel(off: float, right: bool) -> None:
    """0.9 of an image of 20 pixels is the middle of two: a place there rounds as a number of its whole extent does."""
    sample = Node(
        "GridSample", "s", ("x", "grid"), "y", {"mode": "nearest", "padding_mode": "zeros", "align_corners": 0}
    )
    x = np.arange(20.0, dtype=np.float32).reshape(1, 1, 1, 20)
    grid = np.array([[[[0.9 + off * PLACE_ROUNDING, 0.0]]]])
    found = np.float32([[[[18]]]])
    assert admissible(sample, [x, grid], [0.0, 0.0], np.float32([[[[19]]]]), found).all() == right


# ---- inputs ---------------------------------------------------------------------------------------------------------


def drawn(nodes: list[Any], constants: dict[str, Array], kind: int = TensorProto.INT64, out: int = 1) -> Array:
    """Many draws of input i, of shape (41,)."""
    proto = model(nodes, ("y", out), constants=constants, i=(kind, (41,)))
    network = simplified(import_model(proto))
    return np.concatenate([drawn_inputs(network, seed)["i"] for seed in range(9)])


def test_indices_are_drawn_from_what_they_index() -> None:
    table = {"table": normal(6, 4)}
    gather = node("Gather", "table i", "y", axis=0)
    assert {*drawn([gather], table).tolist()} == {*range(-6, 6)}
    moved = [node("Add", "i two", "j"), node("Gather", "table j", "y", axis=0)]
    assert {*drawn(moved, table | {"two": np.array([2], np.int64)}).tolist()} == {*range(-8, 4)}
    reshaped = [
        node("Unsqueeze", "i axis", "j"),
        node("Cast", "j", "k", to=TensorProto.INT32),
        node("Gather", "table k", "y", axis=1),
    ]
    assert {*drawn(reshaped, table | {"axis": np.array([0], np.int64)}).tolist()} == {*range(-4, 4)}


def test_divisors_are_not_zero() -> None:
    assert drawn([node("Div", "c i", "y")], {"c": np.arange(41, dtype=np.int64)}, out=TensorProto.INT64).min() == 1


def test_bounds_that_arrive_do_not_cross() -> None:
    proto = model([node("Clip", "x low high", "y")], ("y", 1), x=(1, SHAPE), low=(1, ()), high=(1, ()))
    network = simplified(import_model(proto))
    for seed in range(9):
        inputs = drawn_inputs(network, seed)
        assert inputs["low"] <= 0 <= inputs["high"]


def test_other_integers_have_either_sign() -> None:
    found = drawn([node("Cast", "i", "y", to=1)], {})
    assert found.min() < 0 < found.max()


def test_another_third_operand_is_no_image() -> None:
    """One of a Max is drawn as any integer; RoiAlign's is the number of an image."""
    constants = {"x": np.full(41, -9), "z": np.full(41, -7)}
    found = drawn([node("Max", "x z i", "y")], constants, out=TensorProto.INT64)
    assert found.min() < 0 < found.max()


def test_tame_inputs_are_small() -> None:
    proto = model([node("Cast", "i", "y", to=1)], ("y", 1), i=(TensorProto.INT64, (41,)))
    network = simplified(import_model(proto))
    assert {*drawn_inputs(network, 0, tame=1)["i"].tolist()} == {0, 1}
    assert {*drawn_inputs(network, 0, tame=2)["i"].tolist()} == {0}


def test_a_follower_that_agrees_follows_nothing() -> None:
    proto = unary("Floor")
    network, bounds = found_bounds(proto, normal())
    follower = Follower(network, bounds, {"y": bounds.values["y"].astype(np.float32)})
    assert not follower.differs()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_that_cancels(approximate: str, tmp_path: Path) -> None:
    """Gelu of -5.7 is -3e-8 in the reals, and 0 where 1 + erf(-4) is 0 in float32: an error of its operand's size."""
    nodes = [node("Mul", "x s", "m"), node("Add", "m b", "t"), node("Gelu", "t", "y", approximate=approximate)]
    proto = model_of(nodes, {"x": (1,)}, "t y", {"s": np.float32([1e-4]), "b": np.float32([-5.7])}, opset=20)
    made = tvmcnn.compile(proto, output=tmp_path / "gelu.so")
    assert made.verdict is not None and made.verdict.passed
    assert all(error.bound < 2e-5 for error in made.verdict.outputs)


@pytest.mark.parametrize("seed", range(6))
def test_a_sum_that_cancels(seed: int, tmp_path: Path) -> None:
    """A single sum of 900 numbers may be small; its rounding errors are those of its terms."""
    nodes = [
        node("ReduceSum", "x axes", "sum", keepdims=0),
        node("ReduceMean", "x", "mean", axes=[0, 1, 2], keepdims=0),
        node("MatMul", "row column", "product"),
    ]
    inputs = {"x": (15, 6, 10), "row": (1, 900), "column": (900, 1)}
    proto = model_of(nodes, inputs, "sum mean product", {"axes": np.array([0, 1, 2])})
    tvmcnn.compile(proto, output=tmp_path / "sums.so", verify=False)
    (verdict,) = verify_library(tmp_path / "sums.so", proto, seed=seed)
    assert verdict.passed
    assert all(error.bound < 0.02 for error in verdict.outputs)  # a term that is left out would be seen: it is about 1
