"""The errors of the functions that tvmcnn computes by polynomials of its own, at every float32.

    python tools/function_errors.py [Erf,Log,…] [--step 1] [--json FILE]

Each function is compiled as a network of one node and run on all numbers (`--step 64`: every 64th); the expected value
is NumPy's or the C library's in float64. An error is told in ulp: the spacing of float32 at the expected value. NaN and
infinities must be in their places, and denormals right to their spacing. Pow takes random pairs, and every pair of
special numbers. Exit status 1 if one is off by more than 2 ulp.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import tvmcnn
from tvmcnn.progress import bar

Array = np.ndarray[Any, Any]
AT_ONCE = 1 << 22  # numbers
ALLOWED = 2.0  # ulp
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 1e9],
    np.float32,
)


@dataclass(frozen=True)
class Worst:
    """The largest error of a function, and where."""

    function: str
    numbers: int
    ulp: float
    at: tuple[float, ...]
    found: float
    expected: float


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Exp": np.exp,
    "Log": np.log,
    "Sin": np.sin,
    "Cos": np.cos,
    "Tanh": np.tanh,
    "Softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "Elu": lambda x: np.where(x >= 0, x, np.expm1(np.minimum(x, 0))),
}


def compiled(op: str, operands: int, folder: Path) -> Callable[..., Array]:
    """A network of this one node."""
    names = [f"x{i}" for i in range(operands)]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [AT_ONCE]) for name in (*names, "y")]
    graph = helper.make_graph([helper.make_node(op, names, ["y"])], op, infos[:-1], infos[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return tvmcnn.load(tvmcnn.compile(model, output=folder / f"{op}.so", verify=False).path)


def worst(op: str, given: tuple[Array, ...], found: Array, expected: Array) -> Worst:
    """The largest error of these numbers; a NaN or an infinity out of its place is infinitely wrong."""
    with np.errstate(all="ignore"):
        rounded = expected.astype(np.float32)
        finite = np.isfinite(rounded)
        spacing = np.spacing(np.abs(rounded)).astype(np.float64)
        ulp = np.abs(found.astype(np.float64) - expected) / spacing
        same = (found == rounded) | (np.isnan(found) & np.isnan(rounded))
    ulp = np.where(same, np.where(finite, ulp, 0.0), np.where(finite & np.isfinite(found), ulp, np.inf))
    at = int(ulp.argmax())
    return Worst(
        op, len(ulp), float(ulp[at]), tuple(float(x[at]) for x in given), float(found[at]), float(expected[at])
    )


def of_one(op: str, step: int, folder: Path, progress: Callable[[str, int, int], None]) -> Worst:
    """The largest error of a function of one operand, over all float32."""
    run, largest, count = compiled(op, 1, folder), Worst(op, 0, -1.0, (), 0.0, 0.0), 0
    total = 1 << 32
    for first in range(0, total, AT_ONCE * step):
        bits = np.arange(first, min(first + AT_ONCE * step, total), step).astype(np.uint32)
        x = np.zeros(AT_ONCE, np.float32)
        x[: len(bits)] = bits.view(np.float32)
        with np.errstate(all="ignore"):
            expected = FUNCTIONS[op](x.astype(np.float64))
        each = worst(op, (x,), run(x), expected)
        largest, count = max(largest, each, key=lambda w: w.ulp), count + len(bits)
        progress(op, count, total // step)
    return Worst(**{**asdict(largest), "numbers": count})


def of_two(step: int, folder: Path) -> Worst:
    """The largest error of Pow: bases of every exponent, powers for which few overflow, and the special numbers."""
    run, rng, largest = compiled("Pow", 2, folder), np.random.default_rng(1), Worst("Pow", 0, -1.0, (), 0.0, 0.0)
    rounds = max(1, 64 // step)
    for number in range(rounds):
        x = rng.integers(0, 1 << 32, AT_ONCE, np.uint32).view(np.float32)
        with np.errstate(all="ignore"):
            reach = 130 / np.maximum(np.abs(np.log2(np.abs(x.astype(np.float64)))), 1e-3)
            y = (reach * rng.uniform(-1, 1, AT_ONCE)).astype(np.float32)
            y = np.where(rng.random(AT_ONCE) < 0.25, np.rint(y), y)
            if number == 0:
                pairs = np.stack(np.meshgrid(SPECIAL, SPECIAL), -1).reshape(-1, 2)
                x[: len(pairs)], y[: len(pairs)] = pairs.T
            expected = np.power(x.astype(np.float64), y.astype(np.float64))
        largest = max(largest, worst("Pow", (x, y), run(x, y), expected), key=lambda w: w.ulp)
    return Worst(**{**asdict(largest), "numbers": rounds * AT_ONCE})


def main() -> int:
    """Try them, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("functions", nargs="?", default=",".join([*FUNCTIONS, "Pow"]))
    parser.add_argument("--step", type=int, default=1, help="try every so many floats")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[Worst] = []
    with tempfile.TemporaryDirectory() as name, bar() as progress:
        for op in options.functions.split(","):
            found.append(
                of_two(options.step, Path(name)) if op == "Pow" else of_one(op, options.step, Path(name), progress)
            )
    for each in found:
        where = ", ".join(f"{x:.9g}" for x in each.at)
        told = f"{each.ulp:.3f} ulp at {where}: {each.found:.9g} for {each.expected:.17g}"
        print(f"{each.function:9} {each.numbers:13,} numbers: {told}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in found], indent=2) + "\n")
    return 1 if any(not each.ulp <= ALLOWED for each in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
