"""From a naive schedule to the peak: one convolution, a step at a time, with the GFLOP/s of each beside the FMA peak.

    python tools/rule_steps.py [--target x86-64-v3] [--json OUT.json]

All steps compute the same convolution, 64 maps of 56 x 56 pixels from as many by filters of 3 x 3, on one thread, and
are compared with NumPy. They are measured in turn, round after round, so that all see the same drift of the clock.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

import tvmcnn
from tvmcnn.check.bisect import built
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.cpu.defaults import direct_config
from tvmcnn.choose.records import NONE
from tvmcnn.configs import DirectConfig
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.machine import cpu_name
from tvmcnn.network import Choice
from tvmcnn.run import load
from tvmcnn.run.runner import Runner
from tvmcnn.targets import Target, resolve
from tvmcnn.tuning.machine_peak import FmaPeak

MAPS, SIDE = 64, 56
ROUNDS, SECONDS = 3, 0.02
TOLERANCE = 1e-4  # of the largest output


def model() -> onnx.ModelProto:
    """The convolution, with drawn weights."""
    weight = np.random.default_rng(0).standard_normal((MAPS, MAPS, 3, 3), np.float32) / 24
    shape = [1, MAPS, SIDE, SIDE]
    info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "conv", info[:1], info[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def steps(target: Target) -> list[tuple[str, bool, DirectConfig | None]]:
    """What each step does, whether images are in blocks, and the rule's numbers (None: the loops as written)."""
    network = simplified(import_model(model(), name="conv"))
    (kernel,) = fuse(network)
    best = direct_config(kernel, MAPS, 16, target)
    return [
        ("the sum as the formula is written, NCHW", False, None),
        ("the same loops over blocks of 16 channels, NCHW16c", True, None),
        ("16 channels in vectors, one pixel at a time", True, DirectConfig(1, 1, 1, unroll=1)),
        ("4 pixels: 4 sums that do not wait for each other", True, DirectConfig(1, 1, 4, unroll=1)),
        (f"a tile that fills the registers: {best.vectors} vectors, {best.rows} x {best.columns} pixels", True,
         dataclasses.replace(best, unroll=1)),
        (f"and {best.unroll} input channels in one loop body: the computed config", True, best),
    ]  # fmt: skip


def library(blocked: bool, config: DirectConfig | None, target: Target, folder: Path) -> Runner:
    """The convolution compiled by one step."""
    network = simplified(import_model(model(), name="conv"))
    choices = choose(network, fuse(network), target, NONE, exact=True, blocked=blocked)
    folder.mkdir()
    net = load(built(network, [_as(choice, config) for choice in choices], target, folder), threads=1)
    assert isinstance(net, Runner)
    return net


def _as(choice: Choice, config: DirectConfig | None) -> Choice:
    if choice.kernel.anchor.op != "Conv":
        return choice
    if config is None:
        return dataclasses.replace(choice, rule="fallback", tasks=1)
    return dataclasses.replace(choice, rule="direct", config=config, tasks=1)


def measure(nets: Sequence[Runner], target: Target) -> tuple[list[float], float]:
    """GFLOP/s of each, the median of rounds in which all take their turns, and the peak's."""
    kernels = [next(k for k in net.manifest["kernels"] if k["macs"]) for net in nets]
    peak, rates = FmaPeak(target), list[list[float]]()
    for _ in range(ROUNDS):
        pairs = zip(nets, kernels, strict=True)
        found = [net.profile(seconds=SECONDS, kernel=kernel["name"])[0].gflops for net, kernel in pairs]
        rates.append([*found, peak.measure(SECONDS)])
    *ours, limit = (float(np.median(column)) for column in zip(*rates, strict=True))
    return ours, limit


def main() -> int:
    """Compile, compare, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", default="native", help="(%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    options = parser.parse_args()
    target = resolve(options.target)
    todo = steps(target)
    x = np.random.default_rng(1).standard_normal((1, MAPS, SIDE, SIDE), np.float32)
    wanted = tvmcnn.reference(model(), x)["y"]
    with tempfile.TemporaryDirectory() as folder:
        nets = [
            library(blocked, config, target, Path(folder) / str(index))
            for index, (_, blocked, config) in enumerate(todo)
        ]
        for net, (words, *_) in zip(nets, todo, strict=True):
            error = float(np.abs(net(x) - wanted).max() / np.abs(wanted).max())
            if not error <= TOLERANCE:
                raise RuntimeError(f"{words}: off by {error:.1e}")
        rates, peak = measure(nets, target)
    rows = [(words, rate, rate / peak) for (words, *_), rate in zip(todo, rates, strict=True)]
    print(f"{MAPS} maps of {SIDE} x {SIDE} pixels by 3 x 3 on one thread, {target.name}, {cpu_name()}")
    print(f"{'':<66} {'GFLOP/s':>8} {'of peak':>8}")
    for words, rate, share in rows:
        print(f"{words:<66} {rate:>8.1f} {share:>8.0%}")
    print(f"{'fused multiply-adds that wait for nothing':<66} {peak:>8.1f}")
    if options.json is not None:
        options.json.write_text(json.dumps({"steps": rows, "peak": peak, "target": target.name}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
