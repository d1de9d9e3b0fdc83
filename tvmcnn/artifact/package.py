"""Package: a compiled network as a Python package that needs numpy and apache-tvm-ffi, and no tvmcnn.

import lenet5
scores = lenet5.run(x)
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tvmcnn.artifact.container import read_manifest
from tvmcnn.errors import ToolError

PACKAGE = Path(__file__).parent.parent
OURS = re.compile(r"^( *)from tvmcnn\.([\w.]+) import", flags=re.MULTILINE)  # the only form in which run/ imports them

_INIT = '''"""{name}: a CNN compiled by tvmcnn {version} for {target}.

{shapes}
"""

from pathlib import Path

from .run import load

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
            for source, text in runner_sources().items():
                (made / source.parent).mkdir(exist_ok=True)
                dots = "." * len(source.parts)
                (made / source).write_text(OURS.sub(rf"\1from {dots}\2 import", text))
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            made.rename(folder)
    except OSError as error:
        raise ToolError(f"cannot write the package {folder}: {error.strerror or error}") from error
    return folder


def runner_sources() -> dict[Path, str]:
    """The text of each file, by its place in this package, that loading and running a library takes: run/, and what it
    imports, anywhere."""
    found: dict[Path, str] = {}
    wanted = ["run"]
    while wanted:
        module = wanted.pop()
        for source in _files_of(module):
            if source not in found:
                found[source] = (PACKAGE / source).read_text()
                wanted += [name for _, name in OURS.findall(found[source])]
    return found


def _files_of(module: str) -> list[Path]:
    """The file of a module such as run.runner, and those of the folders that it lies in: run/__init__.py."""
    *folders, name = module.split(".")
    found = [Path(*folders[: depth + 1], "__init__.py") for depth in range(len(folders))]
    folder = Path(*folders, name)
    return [*found, folder / "__init__.py" if (PACKAGE / folder).is_dir() else folder.with_suffix(".py")]
