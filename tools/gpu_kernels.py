"""What nvcc's ptxas gives each rule's kernels: registers, shared memory, spills; as a page.

    python tools/gpu_kernels.py --target cuda:sm_80,sm_90 --markdown docs/gpu-kernels.md

Exit status 1 if a kernel spills registers. Needs nvcc.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench_models import parse

from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.records import NONE
from tvmcnn.codegen.cuda.generate import Kernels
from tvmcnn.codegen.cuda.nvcc import Resources, compile_object, nvcc_version, resources
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.precision import ON_GPUS
from tvmcnn.progress import silent
from tvmcnn.targets import Gpu, resolve_any

NETWORKS = "lenet5,lenet5:65536,resnet18,resnet50,resnet50:64,mobilenet_v2,squeezenet,vgg16"
Found = dict[str, list[Resources]]


def taken(model: Path, batch: int, machine: Gpu, precision: str) -> Found:
    """What ptxas says of each distinct kernel of a model on each architecture, by rule."""
    network = simplified(import_model(model, batch=batch))
    weights = Weights()
    program = lay_out(network, gpu.choose(network, fuse(network), NONE, precision), weights)
    kernels = Kernels.of([program], machine, silent)
    rules = {
        kernels.symbols[0].kernels[step.choice.name]: step.choice.rule
        for step in program.steps
        if not step.choice.is_view
    }
    with tempfile.TemporaryDirectory() as folder:
        _, log = compile_object(Path(folder), "kernels", kernels.source(weights.bytes), machine)
    found: Found = defaultdict(list)
    for each in resources(log):
        found[rules[each.symbol]].append(each)
    return found


def page(machine: Gpu, found: Mapping[str, Sequence[Resources]], networks: str) -> str:
    """A row a rule and architecture, the most that any kernel of it takes."""
    lines = [
        "# Kernels for GPUs",
        "",
        "What ptxas gives each rule's kernels: the most of any in",
        f"{networks.replace(',', ', ')},",
        "in float32 and with tensor cores in TF32 and float16. A multiprocessor has 65,536 registers, a block 48 KB.",
        "",
        f"`python tools/gpu_kernels.py --target {machine.name} --markdown docs/gpu-kernels.md`;"
        f" {nvcc_version().strip().splitlines()[-1]}",
        "",
        "| rule | architecture | kernels | registers a thread | shared memory a block | spilled bytes |",
        "|---|---|---|---|---|---|",
    ]
    for rule in sorted(found):
        for arch in machine.archs:
            own = [each for each in found[rule] if each.arch == arch]
            most = [max(getattr(each, word) for each in own) for word in ("registers", "shared", "spills")]
            lines.append(f"| {rule} | {arch} | {len(own)} | {' | '.join(f'{value:,}' for value in most)} |")
    return "\n".join([*lines, ""])


def main() -> int:
    """Compile the networks and print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", default=NETWORKS, help="%(default)s")
    parser.add_argument("--target", default="cuda:sm_80,sm_90", help="%(default)s")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md")
    options = parser.parse_args()
    machine = resolve_any(options.target)
    if not isinstance(machine, Gpu):
        parser.error(f"--target {options.target}: name GPUs, as in cuda:sm_80")
    distinct: dict[str, dict[tuple[str, str], Resources]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as folder:
        for entry in parse(options.networks, (224, 224)):
            model = entry.file(Path(folder))
            for precision in ON_GPUS:
                print(f"{entry}, {precision}", file=sys.stderr, flush=True)
                for rule, each in taken(model, entry.batch, machine, precision).items():
                    distinct[rule] |= {(one.symbol, one.arch): one for one in each}
    found = {rule: list(each.values()) for rule, each in distinct.items()}
    text = page(machine, found, options.networks)
    print(text)
    if options.markdown is not None:
        options.markdown.write_text(text)
    spilled = [one for every in found.values() for one in every if one.spills]
    for one in spilled:
        print(f"{one.symbol} on {one.arch} spills {one.spills} bytes", file=sys.stderr)
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
