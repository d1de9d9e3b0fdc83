"""Emit: a compiled network as a Python package that needs numpy and apache-tvm-ffi, and no tvmcnn.

import lenet5
scores = lenet5.run(x)
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tvmcnn.artifact import read_manifest
from tvmcnn.errors import ToolError

OURS = re.compile(r"^( *)from tvmcnn\.(\w+)", flags=re.MULTILINE)  # the only form in which the runner imports them

_INIT = '''"""{name}: a CNN compiled by tvmcnn {version} for {target}.

{shapes}
"""

from pathlib import Path

from .runner import load

network = load(Path(__file__).parent / "{name}.so")
run = network

__all__ = ["network", "run"]
'''


def write_package(library: Path, header: str, folder: Path) -> Path:
    """Write the package `folder` with the library, its C header and the runner's sources; replace an earlier one.

    Raises ToolError if `folder` is something else, or cannot be written.
    """
    manifest = read_manifest(library)  # not load: the library may be for another CPU
    name, target, version = manifest["name"], manifest["target"]["name"], manifest["versions"]["tvmcnn"]
    if folder.exists() and not (folder / f"{name}.so").is_file():
        raise ToolError(f"{folder} exists and is no package of {name}: move it away or choose another name")
    arrays = (*manifest["inputs"], *manifest["outputs"])
    shapes = "\n".join(f"{array['name']}: {array['dtype']} {tuple(array['shape'])}" for array in arrays)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            shutil.copyfile(library, made / f"{name}.so")
            (made / f"{name}.h").write_text(header)
            init = _INIT.format(name=name, version=version, target=target, shapes=shapes)
            (made / "__init__.py").write_text(init)
            for module, text in runner_sources().items():
                (made / f"{module}.py").write_text(OURS.sub(r"\1from .\2", text))
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            made.rename(folder)
    except OSError as error:
        raise ToolError(f"cannot write the package {folder}: {error.strerror or error}") from error
    return folder


def runner_sources() -> dict[str, str]:
    """The text of each module that loading and running a library takes: the runner, and what it imports, anywhere."""
    found: dict[str, str] = {}
    wanted = ["runner"]
    while wanted:
        module = wanted.pop()
        if module not in found:
            found[module] = (Path(__file__).parent / f"{module}.py").read_text()
            wanted += [name for _, name in OURS.findall(found[module])]
    return found
