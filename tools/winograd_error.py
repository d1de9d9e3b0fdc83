"""What Winograd's convolutions cost in precision: the errors of networks with them, beside direct convolution.

    python tools/winograd_error.py [--models resnet18,vgg16@128,path/to/model.onnx:2] [--size 224]
                                   [--json errors.json] [--markdown docs/winograd-error.md]

An error is the largest difference of a tensor to the NumPy reference in float64, relative to its largest element, on
one seeded random image: of the tensors that Winograd's convolutions write the worst, and the network's output. Exit
status 1 if a network is wrong by either.
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
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.compiler import Compiled
from tvmcnn.files import write_file
from tvmcnn.machine import cpu_name
from tvmcnn.targets import resolve

NETWORKS = "resnet18,resnet50,vgg16,vgg19,squeezenet,densenet121,inception_v1,inception_v2,unet"
PAGE = """# Winograd's error

Made by `python tools/winograd_error.py --markdown docs/winograd-error.md`: the largest difference of a tensor to the
NumPy reference in float64, relative to its largest element, on one seeded random image. The tensors are those that
Winograd's convolutions write, of which the worst is shown, and the network's output; beside each, what the same tensor
is off by with `--exact`, which convolves directly.

| network | by Winograd | worst tensor | `--exact` | ratio | output | `--exact` | ratio |
| --- | --: | --: | --: | --: | --: | --: | --: |
"""


@dataclass(frozen=True)
class Row:
    """One network: its convolutions by Winograd of all, and pairs of errors, by Winograd and by direct convolution."""

    network: str
    convolutions: int
    winograd: int
    worst: tuple[float, float]
    output: tuple[float, float]

    def __str__(self) -> str:
        pairs = " | ".join(f"{a:.1e} | {b:.1e} | {a / b if b else 1:.1f}" for a, b in (self.worst, self.output))
        return f"| {self.network} | {self.winograd} of {self.convolutions} | {pairs} |"


def compare(entry: Entry, target: str) -> Row:
    """Compile a network both ways and verify both. Raises VerifyError for one that is wrong."""
    made = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = entry.file(folder)
        for exact in (False, True):
            made[exact] = tvmcnn.compile(model, target, folder / "network.so", batch=entry.batch, exact=exact)
    choices = [step.choice for step in made[False].program.steps if step.choice.kernel.anchor.op == "Conv"]
    written = {choice.kernel.output.name for choice in choices if not ALGORITHMS[choice.algorithm].exact}
    worst, output = ((_error(made[False], names), _error(made[True], names)) for names in (written, None))
    return Row(str(entry), len(choices), len(written), worst, output)


def _error(compiled: Compiled, names: set[str] | None) -> float:
    """The worst of the named tensors, or of the outputs."""
    verdict = compiled.verdict
    assert verdict is not None, "compile verifies unless it is told not to"
    found = verdict.outputs if names is None else [tensor for tensor in verdict.tensors if tensor.name in names]
    return max((tensor.difference / tensor.scale for tensor in found), default=0.0)


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
