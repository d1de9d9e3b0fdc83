"""ONNX's own single-node cases, through tvmcnn.backend. The table of all operators is printed at the end of the run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
from data import TOOLS

from tvmcnn.importer.operators import OPERATORS

pytestmark = [pytest.mark.slow, pytest.mark.numbers]

TOOL = TOOLS / "conformance.py"
LEAST = 0.98  # of the counted cases


def tool() -> Any:
    spec = importlib.util.spec_from_file_location("conformance", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conformance"] = module
    spec.loader.exec_module(module)
    return module


conformance = tool()
REMAINING = conformance.REMAINING
CASES = {case.name: (operator, case) for operator, case in conformance.cases()}


@pytest.mark.parametrize("name", sorted(CASES))
def test_case(name: str, record_property: Callable[[str, object], None]) -> None:
    outcome = conformance.outcome(*CASES[name])
    record_property("conformance", [outcome.operator, name, outcome.status, outcome.reason, outcome.kernels])
    if outcome.status == conformance.LEFT_OUT:
        return
    if name in REMAINING:
        assert outcome.status != conformance.PASSED, "it passes now: take it off the list"
        return
    assert outcome.status == conformance.PASSED, outcome.reason
    outputs = CASES[name][1].data_sets[0][1]
    assert outcome.kernels >= sum(getattr(array, "size", 1) > 0 for array in outputs), "no kernel made the answer"


def test_share() -> None:
    counted = [name for name, (_, case) in CASES.items() if not conformance.left_out(case)]
    assert set(REMAINING) <= set(counted)
    assert len(REMAINING) <= (1 - LEAST) * len(counted)
    assert {operator for operator, _ in CASES.values()} == set(conformance.OPERATORS)


def test_a_wrong_kernel_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner sees a formula that is off by one part in a thousand, and a backend that declines."""
    from tvmcnn.ops import formulas

    real = formulas.FORMULAS["Add"]
    monkeypatch.setitem(formulas.FORMULAS, "Add", lambda a, b: real(a, b) * 1.001)
    assert conformance.outcome(*CASES["test_add"]).status == conformance.FAILED
    monkeypatch.delitem(OPERATORS, "Sub")
    declined = conformance.outcome(*CASES["test_sub"])
    assert declined.status == conformance.DECLINED
    assert "operator Sub is not supported" in declined.reason
