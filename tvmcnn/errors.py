"""The mistakes that a user can make, each told in one sentence, and the place where our own are caught.

A `TvmcnnError` carries a message that says what was found, what is allowed and where; the command line prints
it and exits with status 1. Nothing else leaves a public function (`caught`): what we did not foresee is written with
its traceback into a file, and the sentence names the file and asks for a report.
"""

from __future__ import annotations

import errno
import functools
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXTRAS = {"report": ("igraph", "jinja2", "markupsafe"), "quant": ("onnxruntime",)}  # others are of "compiler"
MACHINE = (
    *(errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOSPC, errno.EPERM, errno.EROFS),
)  # what a machine may lack or forbid at any time
LINE_LIMIT = 300  # characters of another library's error


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


class InternalError(TvmcnnError):
    """A fault of tvmcnn's own. `report` is the file that has its traceback, None if it could not be written."""

    def __init__(self, text: str, report: str | None = None) -> None:
        self.report = report
        super().__init__(text)

    def __reduce__(self) -> tuple[type[InternalError], tuple[str, str | None]]:
        return type(self), (str(self), self.report)


# ---- our own faults -------------------------------------------------------------------------------------------------


def caught(function: Callable[P, R]) -> Callable[P, R]:
    """A public function that lets out nothing but TvmcnnError, and what is the caller's own: a keyword that it has not,
    what a function that the caller gave raises, an interrupt, a pipe that nobody reads."""

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return function(*arguments, **keywords)
        except Exception as error:
            if _is_callers_own(error, arguments, keywords):
                raise
            if odd := _misfit(function, arguments, keywords):
                raise InputError(f"{function.__qualname__} takes {odd}") from error
            raise explained(error, _shown(function.__qualname__, arguments, keywords)) from error

    return call


def explained(error: Exception, doing: str) -> TvmcnnError:
    """What to raise for an exception that nobody foresaw while `doing` something: the one place that decides."""
    if isinstance(error, TvmcnnError):
        return error
    if isinstance(error, MemoryError):
        return ToolError(f"there is not enough memory for this: {_line(error)}")
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] != "tvmcnn":
        return needs("this", error.name)
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return InputError("a path has a null character in it")
    if isinstance(error, OSError) and error.errno in MACHINE:
        return ToolError(f"{error.strerror}{f': {error.filename}' if error.filename else ''}")
    found = f"{type(error).__name__}: {_line(error)}"
    try:
        report = _written(error, doing)
    except OSError as obstacle:
        lost = f"its report cannot be written ({obstacle.strerror})"
        return InternalError(f"{found}: this is a fault of tvmcnn, please report it; {lost}")
    return InternalError(f"{found}: this is a fault of tvmcnn, please report it with the file {report}", report)


def needs(what: str, module: str) -> ToolError:
    """The error for a package that is not installed."""
    extra = next((extra for extra, modules in EXTRAS.items() if module.split(".")[0] in modules), "compiler")
    return ToolError(f"{what} needs {module}: install it by pip install 'tvmcnn[{extra}]'")


def _is_callers_own(error: Exception, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> bool:
    if isinstance(error, TvmcnnError | BrokenPipeError):
        return True
    trace = error.__traceback__
    if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
        return True  # Python's own, for a keyword that there is not: the function was never entered
    given = [getattr(value, "__code__", None) for value in (*arguments, *keywords.values()) if callable(value)]
    while trace is not None:
        if trace.tb_frame.f_code in given:
            return True
        trace = trace.tb_next
    return False


def _misfit(function: Callable[..., Any], arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """The first argument that is not of the type that the function declares, in words; empty if all are."""
    import inspect
    import re

    signature = inspect.signature(function)
    for name, value in signature.bind(*arguments, **keywords).arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        declared = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            hint = typing.get_type_hints(declared, function.__globals__).get(name, Any)
        except (NameError, TypeError):  # a type that only the type checker knows
            continue
        if not _fits(value, hint):
            wanted = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", inspect.formatannotation(hint))
            return f"{name} as {wanted}, not {_word(value)}"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, its elements too; what is not known to be wrong is."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    kind = (int, float) if hint is float else origin or hint
    if isinstance(value, str) and kind in (Iterable, Sequence):
        return False  # of letters: one name for several is a slip
    if isinstance(value, bool) and kind in (int, (int, float)):
        return False
    if not isinstance(kind, type | tuple):
        return True
    if not isinstance(value, kind):
        return False
    if isinstance(value, Mapping) and kind is Mapping and inner:
        return all(_fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items())
    if isinstance(value, list | tuple) and inner and (kind in (Iterable, Sequence) or inner[-1] is Ellipsis):
        return all(_fits(each, inner[0]) for each in value)
    return True


def _shown(name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> str:
    """A call as Python writes it, arrays and models by their types alone."""
    words = [*map(_word, arguments), *(f"{key}={_word(value)}" for key, value in keywords.items())]
    return f"{name}({', '.join(words)})"


def _word(value: Any) -> str:
    if value is None or isinstance(value, str | int | float | os.PathLike):
        return repr(value)
    if isinstance(value, list | tuple) and len(value) < 20:
        return f"[{', '.join(map(_word, value))}]"
    if isinstance(value, dict) and len(value) < 20:
        return f"{{{', '.join(f'{key!r}: {_word(each)}' for key, each in value.items())}}}"
    shape = f" {value.shape}" if hasattr(value, "shape") and hasattr(value, "dtype") else ""
    return f"<{type(value).__name__}{shape}>"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text if len(text) <= LINE_LIMIT else f"{text[:LINE_LIMIT]} ...") or type(error).__name__


def _written(error: Exception, doing: str) -> str:
    """The file with all that a report needs: what was done, where, and the traceback. Raises OSError."""
    import platform
    import shlex
    import sys
    import tempfile
    import traceback
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            return f"no {package}"

    packages = ", ".join(map(of, ("tvmcnn", "apache-tvm", "apache-tvm-ffi", "numpy", "onnx", "onnx-ir", "onnxscript")))
    lines = [
        packages,
        f"Python {platform.python_version()} on {platform.platform()}",
        f"in {os.getcwd()}: {shlex.join(sys.orig_argv)}",
        doing,
        "",
        "".join(traceback.format_exception(error)),
    ]
    descriptor, name = tempfile.mkstemp(prefix="tvmcnn-fault-", suffix=".txt")
    with open(descriptor, "w", errors="backslashreplace") as file:
        file.write("\n".join(lines))
    return name
