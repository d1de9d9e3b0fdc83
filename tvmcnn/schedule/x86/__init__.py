"""The rules for x86, one file a family. Each is a function of (Schedule, config, lanes) that schedules in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.s_tir import Schedule

from tvmcnn.schedule.x86.columns import columns
from tvmcnn.schedule.x86.dense import dense
from tvmcnn.schedule.x86.direct import direct
from tvmcnn.schedule.x86.fallback import fallback
from tvmcnn.schedule.x86.images import images
from tvmcnn.schedule.x86.lanes import lanes
from tvmcnn.schedule.x86.memory import memory
from tvmcnn.schedule.x86.pixels import pixels
from tvmcnn.schedule.x86.pool import pool
from tvmcnn.schedule.x86.rows import rows
from tvmcnn.schedule.x86.softmax import softmax
from tvmcnn.schedule.x86.winograd import streamed, winograd, winograd_data

RULES: dict[str, Callable[[Schedule, Any, int], None]] = {
    "direct": direct,
    "winograd": winograd,
    "winograd_data": winograd_data,
    "streamed": streamed,
    "columns": columns,
    "pixels": pixels,
    "dense": dense,
    "images": images,
    "pool": pool,
    "lanes": lanes,
    "softmax": softmax,
    "memory": memory,
    "rows": rows,
    "fallback": fallback,
}
