"""What Winograd's convolutions cost in precision: the error of networks with them, beside direct convolution.

    python tools/winograd_error.py [--models resnet18,vgg16@128,path/to/model.onnx:2] [--size 224]
                                   [--json errors.json] [--markdown docs/winograd-error.md]

An error is the largest difference of an output to the NumPy reference in float64, relative to the largest output, on
one seeded random image. Exit status 1 if a network is wrong by either.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench_models import Entry, parse, parse_size
from models import SIZE

import tvmcnn
from tvmcnn.artifact import write_file
from tvmcnn.targets import cpu_name, resolve

NETWORKS = "resnet18,resnet50,vgg16,vgg19,squeezenet,densenet121,inception_v1,inception_v2,unet"
ALGORITHMS = ("winograd", "streamed")
PAGE = """# Winograd's error

Made by `python tools/winograd_error.py --markdown docs/winograd-error.md`: the largest difference of an output to the
NumPy reference in float64, relative to the largest output, on one seeded random image. `--exact` convolves directly.

| network | convolutions | by Winograd | error | with `--exact` | ratio |
| --- | --: | --: | --: | --: | --: |
"""


@dataclass(frozen=True)
class Row:
    """One network: its convolutions, those by Winograd, and both errors relative to the largest output."""

    network: str
    convolutions: int
    winograd: int
    error: float
    exact_error: float

    def __str__(self) -> str:
        ratio = f"{self.error / self.exact_error:.1f}" if self.exact_error else ""
        return (
            f"| {self.network} | {self.convolutions} | {self.winograd} | {self.error:.1e} | {self.exact_error:.1e}"
            f" | {ratio} |"
        )


def compare(entry: Entry, target: str) -> Row:
    """Compile a network both ways and verify both. Raises VerifyError for one that is wrong."""
    errors, counts = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = entry.file(folder)
        for exact in (False, True):
            made = tvmcnn.compile(model, target, folder / "network.so", batch=entry.batch, exact=exact)
            assert made.verdict is not None, "compile verifies unless it is told not to"
            errors[exact] = made.verdict.as_json()["error"]
            counts[exact] = [s.choice.algorithm for s in made.program.steps if s.choice.kernel.anchor.op == "Conv"]
    winograd = sum(algorithm in ALGORITHMS for algorithm in counts[False])
    return Row(str(entry), len(counts[False]), winograd, errors[False], errors[True])


def main() -> int:
    """Print a line a network as it is done; write what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default=NETWORKS, metavar="NAME[@SIZE][:BATCH],…", help="%(default)s")
    parser.add_argument("--size", default=str(SIZE), help="of made networks: 224, or rows x columns as 192x256")
    parser.add_argument("--target", default="native")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = []
    for entry in parse(options.models, parse_size(options.size)):
        try:
            rows.append(compare(entry, options.target))
        except tvmcnn.TvmcnnError as error:
            parser.exit(1, f"{entry}: {error}\n")
        print(rows[-1], flush=True)
    target = f"tvmcnn {tvmcnn.__version__} for {resolve(options.target).name} on {cpu_name()}."
    if options.json:
        write_file(options.json, json.dumps([dataclasses.asdict(row) for row in rows], indent=2).encode() + b"\n")
    if options.markdown:
        write_file(options.markdown, (PAGE + "\n".join(map(str, rows)) + f"\n\n{target}\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
