"""tvmcnn: a CNN compiled to one small native library.

    tvmcnn.compile("lenet5.onnx", output="lenet5.so")     # needs tvmcnn[compiler]
    net = tvmcnn.load("lenet5.so")                         # needs numpy and apache-tvm-ffi
    scores = net(x)

Importing tvmcnn loads neither TVM nor ONNX; `compile`, `tune` and `reference` do when they are first used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from tvmcnn.errors import (
    ArtifactError,
    InputError,
    LockError,
    ModelError,
    TargetError,
    ToolError,
    TvmcnnError,
    UnsupportedError,
    VerifyError,
)
from tvmcnn.runner import Runner, load
from tvmcnn.version import __version__

if TYPE_CHECKING:
    from tvmcnn import backend
    from tvmcnn.compiler import compile  # noqa: A004 (the contract's name)
    from tvmcnn.reference import reference
    from tvmcnn.reweight import reweight
    from tvmcnn.tuning import tune

__all__ = [
    "ArtifactError",
    "InputError",
    "LockError",
    "ModelError",
    "Runner",
    "TargetError",
    "ToolError",
    "TvmcnnError",
    "UnsupportedError",
    "VerifyError",
    "__version__",
    "backend",
    "compile",
    "load",
    "reference",
    "reweight",
    "tune",
]

_NEEDS_COMPILER = {
    "compile": "tvmcnn.compiler",
    "reference": "tvmcnn.reference",
    "reweight": "tvmcnn.reweight",
    "tune": "tvmcnn.tuning",
}


def __getattr__(name: str) -> Any:
    if name not in (*_NEEDS_COMPILER, "backend"):
        raise AttributeError(f"module 'tvmcnn' has no attribute '{name}'")
    import importlib

    try:
        value = importlib.import_module(_NEEDS_COMPILER.get(name, f"tvmcnn.{name}"))
        value = getattr(value, name) if name in _NEEDS_COMPILER else value
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "tvmcnn":
            raise
        raise ToolError(f"tvmcnn.{name} needs {error.name}: install it by pip install 'tvmcnn[compiler]'") from error
    # Importing the compiler has bound tvmcnn.reference to the module of that name: bind the function again.
    for public, module in _NEEDS_COMPILER.items():
        if module in sys.modules:
            globals()[public] = getattr(sys.modules[module], public)
    return value
