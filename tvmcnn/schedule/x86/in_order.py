"""Kernels that are written as loops already, see ops/in_order.py."""

from __future__ import annotations

from tvm.s_tir import Schedule

from tvmcnn.configs import InOrderConfig


def in_order(sch: Schedule, config: InOrderConfig, lanes: int) -> None:
    """Leave the loops as they are: the innermost run along memory, for LLVM to vectorise."""
