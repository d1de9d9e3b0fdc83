"""onnxruntime's sessions on a network, and what it says and raises in our words.

Q and DQ stay where they are written, and what is between is computed in float32: onnxruntime's sums of 8-bit products
saturate on CPUs without VNNI, which would show other figures there.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnxruntime

from tvmcnn.errors import ModelError, TvmcnnError
from tvmcnn.network import Array
from tvmcnn.onnx_file import one_line

VERSION: str = onnxruntime.__version__
Run = Callable[[dict[str, Array]], dict[str, Array]]


def session(proto: onnx.ModelProto, label: str, taps: Iterable[str] = ()) -> Run:
    """A network as a function, from arrays by input name to the outputs, and to the tensors `taps`, by name."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    known = {value.name for value in proto.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors, which are raised too
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    with raised(f"onnxruntime cannot load {label}"):
        loaded = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in loaded.get_outputs()]

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        with raised(f"onnxruntime cannot run {label}"):
            return dict(zip(names, map(np.asarray, loaded.run(None, feed)), strict=True))

    return run


@contextlib.contextmanager
def raised(what: str) -> Iterator[None]:
    """Within it what onnxruntime and onnx raise becomes a ModelError that says `what` could not be done."""
    try:
        yield
    except (TvmcnnError, MemoryError):
        raise
    except Exception as error:  # onnxruntime has one class of its own for each of its statuses
        raise ModelError(f"{what}: {one_line(error)}") from error


@contextlib.contextmanager
def heard(report: Callable[[str], None], what: str, level: int = logging.WARNING) -> Iterator[None]:
    """`raised`, and what onnxruntime's quantiser logs from `level` on is reported, a line each; what it prints is not.

    It logs by Python's root logger, which would be set up to write on standard error for good if it had no handler.
    """
    handler = _Lines(report, level)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with contextlib.redirect_stdout(io.StringIO()), raised(what):
            yield
    finally:
        root.removeHandler(handler)


class _Lines(logging.Handler):
    """Each record's first line to a report, once."""

    def __init__(self, report: Callable[[str], None], level: int) -> None:
        super().__init__(level)
        self.report = report
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage().partition("\n")[0]
        if line not in self.said:
            self.said.add(line)
            self.report(f"onnxruntime: {line}")
