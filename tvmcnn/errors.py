"""The mistakes that a user can make, each told in one sentence.

A `TvmcnnError` carries a message that says what was found, what is allowed and where; the command line prints
it and exits with status 1. Anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable


class TvmcnnError(Exception):
    """Base of every error that the user can mend."""


class ModelError(TvmcnnError):
    """The ONNX file is damaged, open where it must be closed, or contradicts itself."""


class UnsupportedError(ModelError):
    """The ONNX file is sound but asks for what tvmcnn does not do; `reasons` has one line a node.

    `undecided` names the tensors whose values must be known when the model is compiled and are not.
    """

    def __init__(self, model: str, reasons: Iterable[str], undecided: Iterable[str] = ()) -> None:
        self.reasons, self.undecided = tuple(reasons), tuple(undecided)
        count = len(self.reasons)
        head = f"{model} has {count} node{'s' if count != 1 else ''} that tvmcnn cannot compile:"
        super().__init__("\n  ".join([head, *self.reasons]))


class TargetError(TvmcnnError):
    """The target is unknown, or this machine lacks what it needs."""


class ArtifactError(TvmcnnError):
    """The library is not ours, damaged, too new, or made for another CPU."""


class InputError(TvmcnnError):
    """An array handed to a compiled network has the wrong name, shape, dtype or byte order."""


class ToolError(TvmcnnError):
    """Something on the machine is missing or failed: the linker, an optional package, the disk."""


class VerifyError(TvmcnnError):
    """A compiled network does not agree with the NumPy reference."""


class LockError(TvmcnnError):
    """A compile would make another library than its lockfile says, or the lockfile is none."""
