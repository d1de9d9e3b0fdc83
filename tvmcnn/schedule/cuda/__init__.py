"""Schedules for NVIDIA GPUs, one rule a family of kernels: (schedule, config) --> loops bound to blocks and threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.s_tir import Schedule

from tvmcnn.schedule.cuda.gemm import gemm
from tvmcnn.schedule.cuda.gemv import gemv
from tvmcnn.schedule.cuda.mma import mma
from tvmcnn.schedule.cuda.planes import planes
from tvmcnn.schedule.cuda.recurrent import recurrent
from tvmcnn.schedule.cuda.rows import rows
from tvmcnn.schedule.cuda.single_launch import whole
from tvmcnn.schedule.cuda.threads import threads

RULES: dict[str, Callable[[Schedule, Any], None]] = {
    "gemm": gemm,
    "mma": mma,
    "gemv": gemv,
    "planes": planes,
    "recurrent": recurrent,
    "rows": rows,
    "threads": threads,
    "fallback": threads,
    "whole": whole,
}
