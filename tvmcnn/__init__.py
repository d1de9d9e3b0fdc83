"""tvmcnn: a CNN compiled to one small native library.

    tvmcnn.compile("lenet5.onnx", output="lenet5.so")     # needs tvmcnn[compiler]
    net = tvmcnn.load("lenet5.so")                         # needs numpy and apache-tvm-ffi
    scores = net(x)

Importing tvmcnn loads nothing else. `load` needs numpy and tvm_ffi when it is first used, which takes 0.2 s; `compile`,
`tune` and `reference` need TVM and ONNX, `quantize` needs ONNX and onnxruntime.
"""

from __future__ import annotations

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
    needs,
)
from tvmcnn.version import __version__

if TYPE_CHECKING:
    from tvmcnn import backend
    from tvmcnn.check.reference import reference
    from tvmcnn.compiler import compile  # noqa: A004 (the contract's name)
    from tvmcnn.quantising import quantize
    from tvmcnn.reweighting import reweight
    from tvmcnn.run import load
    from tvmcnn.run.runner import Runner
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
    "quantize",
    "reference",
    "reweight",
    "tune",
]

_HOMES = {
    "Runner": "tvmcnn.run.runner",
    "backend": "tvmcnn.backend",
    "compile": "tvmcnn.compiler",
    "load": "tvmcnn.run",
    "quantize": "tvmcnn.quantising",
    "reference": "tvmcnn.check.reference",
    "reweight": "tvmcnn.reweighting",
    "tune": "tvmcnn.tuning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tvmcnn' has no attribute '{name}'")
    import importlib

    try:
        module = importlib.import_module(_HOMES[name])
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "tvmcnn":
            raise
        raise needs(f"tvmcnn.{name}", error.name or "a package") from error
    value = globals()[name] = getattr(module, name, module)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
