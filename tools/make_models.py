"""Write well-known CNNs as ONNX files with seeded weights: N x 3 x SIZE x SIZE, the batch open.

    python tools/make_models.py OUT_FOLDER [--only resnet18,vgg16] [--size 224] [--list]

The layers are those of the papers; the weights are random, drawn so that activations keep their size. The same command
writes the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from models import NETWORKS, SIZE, make

from tvmcnn.errors import TvmcnnError
from tvmcnn.files import write_file


def main() -> int:
    """Write the files one by one, each whole or not at all; one line a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", metavar="OUT_FOLDER")
    parser.add_argument("--only", metavar="NAME,…", help="these networks, not all")
    parser.add_argument("--size", type=int, default=SIZE, help="rows and columns of the input (%(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names and write nothing")
    options = parser.parse_args()
    if options.list:
        print("\n".join(NETWORKS))
        return 0
    if options.folder is None:
        parser.error("OUT_FOLDER is missing")
    names = options.only.split(",") if options.only else list(NETWORKS)
    if unknown := sorted(set(names) - set(NETWORKS)):
        parser.error(f"there is no network '{unknown[0]}'; there are {', '.join(NETWORKS)}")
    try:
        for name in names:
            print(f"{name} ", end="", flush=True)
            model = make(name, options.size)
            data = model.SerializeToString(deterministic=True)
            write_file(options.folder / f"{name}.onnx", data)
            print(f"{len(model.graph.node)} nodes, {len(data) / 1e6:.1f} MB", flush=True)
    except (TvmcnnError, ValueError) as error:
        print(f"\nmake_models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
