"""How many parts a kernel's work has: one where threads would cost more than they save."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from builders import Graph

import tvmcnn
from tvmcnn import loops
from tvmcnn.configs import RowsConfig

KILOBYTE = 256  # float32


def tasks(g: Graph, folder: Path) -> int:
    compiled = tvmcnn.compile(g.model(), "x86-64-v3", folder / "x.so", verify=False)
    (step,) = compiled.program.steps
    return step.choice.tasks


@pytest.mark.parametrize(("kilobytes", "several"), [(24, False), (96, False), (120, True), (960, True)])
def test_memory_bound_kernels_by_their_bytes(kilobytes: int, several: bool, tmp_path: Path) -> None:
    """20 µs at 10 GB/s are 200 KB, read and written: 100 KB of a tensor."""
    g = Graph()
    g.output(g.node("Relu", g.input(3, kilobytes // 3, KILOBYTE)))
    assert (tasks(g, tmp_path) > 1) == several


def test_rows_of_tensors_of_any_rank() -> None:
    """All axes but the last two, and tiles of rows."""
    config = RowsConfig(rows=4)
    choice: Any = SimpleNamespace(numbers=lambda kind: config)
    assert loops.rows(choice, (6, 5, 40), 16) == (6, 2)
    assert loops.rows(choice, (2, 3, 7, 9, 40), 16) == (2, 3, 7, 3)
    assert loops.rows(choice, (40,), 16) == ()


@pytest.mark.parametrize(("rows", "several"), [(4, False), (25, False), (40, True)])
def test_products_by_their_operations(rows: int, several: bool, tmp_path: Path) -> None:
    """20 µs at 100 GFLOP/s are two million operations."""
    g = Graph()
    g.output(g.node("Gemm", g.input(rows, 128), g.draw(128, 256)))
    assert (tasks(g, tmp_path) > 1) == several
