#!/usr/bin/env python3
"""ONNX's own single-node cases through tvmcnn.backend, and through onnxruntime beside it.

    python tools/conformance.py                              the table, and each case that does not pass with its reason
    python tools/conformance.py --only '^Resize$'            some operators
    python tools/conformance.py --markdown docs/conformance.md

The cases are those of `onnx.backend.test`, run by its runner with its tolerances. Counted are the cases of one node
whose tensors are float16, float32, float64, bool or integers of 8 to 64 bits; the others (strings, sequences,
optionals, 4-bit and 8-bit floats, training) are left out and counted as such. A case that the backend declines has not
passed.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import unittest
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx.backend.test import BackendTest
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from tvmcnn.backend import TvmcnnBackend, TvmcnnRep
from tvmcnn.errors import UnsupportedError
from tvmcnn.run.runner import Runner

# The operators of a CNN compiler; the others that tvmcnn has are beside the figure.
OPERATORS = """
    Conv ConvTranspose MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool BatchNormalization
    InstanceNormalization LayerNormalization GroupNormalization LRN Relu LeakyRelu PRelu Elu Selu Sigmoid HardSigmoid
    HardSwish Mish Gelu Softplus Tanh Clip Erf Exp Log Sqrt Pow Abs Neg Floor Ceil Add Sub Mul Div Sum Min Max Mean Gemm
    MatMul Softmax LogSoftmax ArgMax ArgMin ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2 Concat Split Slice Pad
    Transpose Reshape Flatten Squeeze Unsqueeze Gather Expand Tile Where Equal Less LessOrEqual Greater GreaterOrEqual
    Cast Resize Upsample DepthToSpace SpaceToDepth Dropout Identity Constant ConstantOfShape Shape ScatterND
    ScatterElements Scatter TopK CumSum Hardmax LpNormalization Shrink MaxUnpool Col2Im CenterCropPad EyeLike LSTM
    GRU RNN GridSample RoiAlign DeformConv HannWindow HammingWindow BlackmanWindow MelWeightMatrix DFT STFT NonZero
    Compress NonMaxSuppression If Loop Scan QuantizeLinear DequantizeLinear DynamicQuantizeLinear QLinearConv
    QLinearMatMul ConvInteger MatMulInteger
""".split()  # noqa: SIM905 (a hundred quoted words read worse)

# Counted cases that do not pass, each with its reason.
REMAINING = dict.fromkeys(
    ("test_resize_downsample_scales_linear_align_corners", "test_resize_downsample_scales_cubic_align_corners"),
    "the case takes 0.6·4 = 2.4 or 0.8·4 = 3.2 for length_resized; ONNX's text, onnxruntime and tvmcnn take the size of"
    " the output, 2 or 3",
) | dict.fromkeys(
    ("test_dft_inverse", "test_dft_inverse_opset19"),
    "what should be 0 is 1.9e-7 in the case, a rounding error of the float32 transform that made it, of which no more"
    " than 1e-7 may be missing",
)
REMAINING |= dict.fromkeys(
    ("test_dequantizelinear_blocked", *(f"test_quantizelinear_blocked_{kind}" for kind in ("asymmetric", "symmetric"))),
    "a scale for each block of elements is not supported",
)
REMAINING |= dict.fromkeys(
    (f"test_qlinearmatmul_{rank}D_{kind}_float16" for rank in (2, 3) for kind in ("int8", "uint8")),
    "scales are float32",
)
REMAINING["test_scan_sum"] = "it is of opset 8, where Scan has a batch; supported is that of opset 9 and later"

_T = onnx.TensorProto
TYPES = {
    *(_T.FLOAT16, _T.FLOAT, _T.DOUBLE, _T.BOOL, _T.INT8, _T.INT16, _T.INT32, _T.INT64),
    *(_T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64),
}


STATUSES = PASSED, FAILED, DECLINED, LEFT_OUT = "passed", "failed", "declined", "left out"


@dataclass(frozen=True)
class Outcome:
    """What became of one case: passed, failed, declined or left out, and why; the kernels that ran."""

    operator: str
    case: str
    status: str
    reason: str = ""
    kernels: int = 0


class Counting(TvmcnnBackend):
    """The backend, which remembers what it prepared last."""

    last: TvmcnnRep | None = None

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> TvmcnnRep:
        """As TvmcnnBackend."""
        cls.last = super().prepare(model, device, **kwargs)
        return cls.last


def cases(only: str = "") -> Iterator[tuple[str, TestCase]]:
    """(operator, case) of every single-node case whose operator is counted and matches the regular expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases compute overflows on purpose
        found = load_model_tests(kind="node")
    for case in found:
        nodes = _graph(case).node
        if len(nodes) == 1 and nodes[0].op_type in OPERATORS and re.search(only, nodes[0].op_type):
            yield nodes[0].op_type, case


def _graph(case: TestCase) -> onnx.GraphProto:
    assert case.model is not None
    return case.model.graph


def left_out(case: TestCase) -> str:
    """Why a case is not counted, or ""."""
    graph = _graph(case)
    for value in (*graph.input, *graph.output):
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            return f"'{value.name}' is a {kind.removesuffix('_type')}"
        if value.type.tensor_type.elem_type not in TYPES:
            return f"'{value.name}' is {_T.DataType.Name(value.type.tensor_type.elem_type).lower()}"
    training = any(a.name == "training_mode" and a.i for a in graph.node[0].attribute) or "training" in case.name
    return "training mode" if training else ""


@functools.cache
def _tests(backend: Any) -> Any:
    """The test case class of a backend, with a method for each case."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BackendTest(backend, __name__).test_cases["OnnxBackendNodeModelTest"]


def outcome(operator: str, case: TestCase, backend: Any = Counting, device: str = "cpu") -> Outcome:
    """Run one case by the runner of `onnx.backend.test`."""
    if reason := left_out(case):
        return Outcome(operator, case.name, LEFT_OUT, reason)
    Counting.last = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the comparison, about infinities
            _tests(backend)(f"{case.name}_{device}").debug()
    except UnsupportedError as error:
        return Outcome(operator, case.name, DECLINED, error.reasons[0])
    except unittest.SkipTest as error:
        return Outcome(operator, case.name, DECLINED, str(error))
    except Exception as error:  # whatever a backend raises
        reason = " ".join(str(error).split()) or type(error).__name__
        return Outcome(operator, case.name, DECLINED if "NOT_IMPLEMENTED" in reason else FAILED, reason)
    libraries: dict[Any, Runner] = Counting.last.libraries if Counting.last is not None else {}
    return Outcome(operator, case.name, PASSED, "", sum(len(net.manifest["kernels"]) for net in libraries.values()))


def table(ours: Sequence[Outcome], theirs: Sequence[Outcome] = ()) -> list[str]:
    """The figures as a Markdown table, one row an operator, the sum last."""

    def row(name: str, mine: Sequence[Outcome], other: Sequence[Outcome]) -> list[object]:
        counts = Counter(o.status for o in mine)
        figures = [*(counts[status] for status in STATUSES), sum(o.kernels for o in mine)]
        return [name, *figures, *([sum(o.status == PASSED for o in other)] if theirs else [])]

    head = ["operator", *STATUSES, "kernels run", *(["onnxruntime passed"] if theirs else [])]
    rows: list[list[object]] = [[*head], ["---", *["---:"] * (len(head) - 1)]]
    for name in sorted({o.operator for o in ours}):
        rows.append(row(name, *([o for o in each if o.operator == name] for each in (ours, theirs))))
    rows.append(row("all", ours, theirs))
    return [f"| {' | '.join(map(str, cells))} |" for cells in rows]


def report(ours: Sequence[Outcome], theirs: Sequence[Outcome] = (), device: str = "cpu") -> str:
    """The page: the shares, the table, and every case that did not pass with its reason."""
    options = "docs/conformance.md" if device == "cpu" else "docs/conformance-cuda.md --device cuda --no-onnxruntime"
    shim = "" if device == "cpu" else ", on the CPU by `NVCC=tests/cuda_shim/nvcc`"
    lines = [
        f"# ONNX conformance{' of GPU kernels' if device == 'cuda' else ''}",
        "",
        f"Made by `python tools/conformance.py --markdown {options}`{shim}: ONNX's own single-node cases, run by",
        f"`onnx.backend.test` of onnx {onnx.__version__} through `tvmcnn.backend`. A passed case ran kernels compiled",
        "from tvmcnn's own tensor expressions. Left out are strings, sequences, optionals, bfloat16, types of fewer",
        "bits that NumPy lacks, and training.",
        "",
        f"tvmcnn passes {share(ours)}{f'; onnxruntime passes {share(theirs)}' if theirs else ''}.",
        "",
        *table(ours, theirs),
        "",
        "## Not passed",
        "",
    ]
    remaining = [o for o in ours if o.status in (FAILED, DECLINED)]
    lines += [
        f"- `{o.case}` ({o.operator}) {o.status}: {REMAINING.get(o.case, o.reason[:300])}" for o in remaining
    ] or ["None."]
    return "\n".join(lines) + "\n"


def share(outcomes: Sequence[Outcome]) -> str:
    """652 of 660 (98.8 %)"""
    counts = Counter(o.status for o in outcomes)
    total = sum(counts[status] for status in (PASSED, FAILED, DECLINED))
    return f"{counts[PASSED]} of {total} ({100 * counts[PASSED] / max(total, 1):.1f} %)"


def main() -> int:
    """Run the cases and print or write the page. Exit status 1 if a case failed (not if one was declined)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="operators whose names match")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--json", action="store_true", help="print one JSON object a case")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(%(default)s)")
    parser.add_argument("--no-onnxruntime", action="store_true", help="only tvmcnn")
    options = parser.parse_args()
    found = list(cases(options.only))
    ours, theirs = [], []
    for number, (operator, case) in enumerate(found, 1):
        if sys.stderr.isatty():
            print(f"\r{number}/{len(found)} {case.name:<60.60}", end="", file=sys.stderr, flush=True)
        ours.append(outcome(operator, case, device=options.device))
        if not options.no_onnxruntime:
            from onnxruntime.backend.backend import OnnxRuntimeBackend

            theirs.append(outcome(operator, case, OnnxRuntimeBackend))
    if options.json:
        print(json.dumps([asdict(o) for o in ours], indent=2))
    elif options.markdown is not None:
        options.markdown.parent.mkdir(exist_ok=True)
        options.markdown.write_text(report(ours, theirs, options.device))
        print(f"tvmcnn passes {share(ours)}; wrote {options.markdown}")
    else:
        print(report(ours, theirs, options.device))
    return 1 if any(o.status == FAILED for o in ours) else 0


if __name__ == "__main__":
    raise SystemExit(main())
