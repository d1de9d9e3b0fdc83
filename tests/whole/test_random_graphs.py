"""Random graphs, seeded: what they draw compiles to what the oracle computes, and planted faults are found.

The number is what a minute or so of one CPU compiles; `python tools/fuzz.py graphs --count 20000` draws more.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import pytest
from graphs import explore as exploring
from graphs.explore import Explored, draws, explore
from graphs.plants import PLANTS
from helpers import TARGETS

from tvmcnn.importer.operators import OPERATORS

pytestmark = pytest.mark.slow

COUNT = 200  # graphs, in two runs: they take a third of a second each
RUNS = 2
DRAWN = 600  # graphs until every operator has been drawn
MOST = 80  # graphs of a seed until a planted fault is found, by the second seed


@pytest.fixture(scope="module", autouse=True)
def _worker_ends() -> Iterator[None]:
    yield
    exploring.close()


@pytest.fixture
def _own_worker() -> Iterator[None]:
    """One that no fault was planted in before, and none is left in."""
    exploring.close()
    yield
    exploring.close()


def told(found: Explored) -> str:
    return "\n\n".join(f"{each.kind}\n{each.text}\n{each.drawn}" for each in found.failures)


@pytest.mark.parametrize("number", range(RUNS))
def test_a_seeded_run(number: int) -> None:
    found = explore(number, COUNT // RUNS, targets=("native", "x86-64-v3") if len(TARGETS) > 1 else ("native",))
    assert not found.failures, told(found)
    assert found.graphs >= COUNT // RUNS // 2, "hypothesis gave up early"
    assert found.ends["ok"] >= 0.9 * found.graphs, found.refusals


@pytest.mark.usefixtures("_own_worker")
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_fault_is_found(plant: str) -> None:
    runs = (explore(seed, MOST, setup=f"graphs.plants:{plant}", shrink=False, stop=True) for seed in (7, 8))
    assert any(found.failures for found in runs), f"{plant} is not found in {2 * MOST} graphs"


def test_every_operator_is_drawn() -> None:
    """Sought for where it fits; and models are valid to ONNX's own checker, their declared shapes and types those that
    it infers."""
    missing = set(OPERATORS)
    for found in draws(5, DRAWN, missing):
        onnx.checker.check_model(found.model, full_check=True)
        missing -= {node.op_type for node in found.model.graph.node}
        if not missing:
            break
    assert not missing
