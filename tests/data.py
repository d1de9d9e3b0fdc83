"""Where things lie: the repository, the shipped model, the stand-in for nvcc. The one place that counts folders."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
DOCS, TOOLS, SCHEDULES = ROOT / "docs", ROOT / "tools", ROOT / "schedules"
SHIPPED = ROOT / "tvmcnn" / "data"
LENET5 = SHIPPED / "lenet5.onnx"
GOLDEN = TESTS / "golden"
NVCC = TESTS / "cuda_shim" / "nvcc"  # runs CUDA C++ on the CPU
