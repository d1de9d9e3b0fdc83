"""Check and time libraries for GPUs, beside PyTorch: prepared where the compiler is, run where the GPU is.

    python tools/gpu_check.py prepare build/gpu --target cuda:sm_80,sm_90       libraries, and onnxruntime's outputs
    python tools/gpu_check.py run build/gpu --json gpu.json --markdown gpu.md   needs torch, numpy and apache-tvm-ffi

A network agrees if its outputs are within TOLERANCE of onnxruntime's, relative to their largest value. Times are of the
device, by events around calls on PyTorch's stream, in turn; PyTorch runs the same nodes with weights of its own, TF32
off: as they come, compiled, and as a CUDA graph with cuDNN's fastest algorithms. The device's limits are measured: FMA
by a large product, memory by a copy. A model's path may stand among the networks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the GPU is, nothing of ours need be installed

NETWORKS = "lenet5,lenet5:65536,resnet18,resnet50,resnet50:64,mobilenet_v2,squeezenet,vgg16"
TOLERANCE = 1e-4
ROUNDS = 15
SECONDS = 420.0  # of them all: what is left out then is said


def prepare(folder: Path, networks: str, target: str) -> None:
    """Write a library, an input, onnxruntime's output and the nodes of each network to a folder."""
    import onnxruntime
    from bench_models import parse

    import tvmcnn
    from tvmcnn.fuse.passes import simplified
    from tvmcnn.importer import import_model

    folder.mkdir(parents=True, exist_ok=True)
    plan = []
    for entry in parse(networks, (224, 224)):
        name = str(entry).replace("@", "_").replace(":", "_b")
        with tempfile.TemporaryDirectory() as models:
            model = entry.file(Path(models))
            network = simplified(import_model(model, batch=entry.batch))
            tvmcnn.compile(model, target, folder / f"{name}.so", batch=entry.batch, report=print)
            x = np.random.default_rng(0).standard_normal(network.inputs[0].shape, dtype=np.float32)
            session = onnxruntime.InferenceSession(str(model))
            few = x[: min(len(x), 64)]  # outputs of the first images are enough, and travel
            y = np.concatenate([session.run(None, {network.inputs[0].name: image[None]})[0] for image in few])
            np.savez(folder / f"{name}.npz", y=y)
        nodes = [{"op": n.op, "in": n.inputs, "out": n.output, "attributes": n.attributes} for n in network.nodes]
        constants = {key: list(array.shape) for key, array in network.constants.items()}
        tensors = {"x": network.inputs[0].name, "shape": network.inputs[0].shape, "y": network.outputs[0].name}
        plan.append({"name": name, "nodes": nodes, "constants": constants, **tensors})
    (folder / "plan.json").write_text(json.dumps(plan))
    print(f"prepared {len(plan)} networks in {folder}; there: python tools/gpu_check.py run {folder}")


# ---- there ----------------------------------------------------------------------------------------------------------


def torch_network(entry: Mapping[str, Any], torch: Any, device: str) -> Callable[[Any], Any]:
    """The nodes as a function of PyTorch's, with drawn weights: as fast as with the right ones."""
    f, draw = torch.nn.functional, {}
    generator = torch.Generator(device="cpu").manual_seed(0)
    for key, shape in entry["constants"].items():
        draw[key] = (torch.randn(shape, generator=generator) / 16).to(device)

    def padded(x: Any, a: Mapping[str, Any], value: float = 0.0) -> Any:
        top, left, bottom, right = a["pads"]
        return f.pad(x, (left, right, top, bottom), value=value) if any(a["pads"]) else x

    def conv(a: Mapping[str, Any], x: Any, w: Any, b: Any = None) -> Any:
        top, left, bottom, right = a["pads"]
        if (top, left) == (bottom, right):
            return f.conv2d(x, w, b, a["strides"], (top, left), a["dilations"], a["group"])
        return f.conv2d(padded(x, a), w, b, a["strides"], 0, a["dilations"], a["group"])

    operators: dict[str, Callable[..., Any]] = {
        "Conv": conv,
        "Relu": lambda a, x: f.relu(x),
        "Clip": lambda a, x, *bounds: x.clamp(a["min"], a["max"]),
        "Sigmoid": lambda a, x: x.sigmoid(),
        "HardSwish": lambda a, x: f.hardswish(x),
        "Add": lambda a, x, y: x + y,
        "Sum": lambda a, x, y: x + y,
        "Mul": lambda a, x, y: x * y,
        "BatchNormalization": lambda a, x, s, b: x * s.view(1, -1, 1, 1) + b.view(1, -1, 1, 1),
        "MaxPool": lambda a, x: f.max_pool2d(padded(x, a, -np.inf), a["kernel_shape"], a["strides"]),
        "AveragePool": lambda a, x: f.avg_pool2d(padded(x, a), a["kernel_shape"], a["strides"]),
        "GlobalAveragePool": lambda a, x: x.mean((2, 3), keepdim=True),
        "Gemm": lambda a, x, w, b=None: x @ w if b is None else torch.addmm(b, x, w),
        "MatMul": lambda a, x, w: x @ w,
        "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
        "Flatten": lambda a, x: x.flatten(1),
        "Reshape": lambda a, x: x.flatten(1),
        "Softmax": lambda a, x: x.softmax(a["axis"]),
    }

    def run(x: Any) -> Any:
        values = {**draw, entry["x"]: x}
        for node in entry["nodes"]:
            values[node["out"]] = operators[node["op"]](node["attributes"], *(values[name] for name in node["in"]))
        return values[entry["y"]]

    return run


def captured(function: Callable[[Any], Any], x: Any, torch: Any) -> Callable[[Any], Any]:
    """The function as a CUDA graph on the memory of `x`."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(x)
    return lambda _: graph.replay()


def times(functions: Mapping[str, Callable[[Any], Any]], x: Any, torch: Any) -> dict[str, float]:
    """Median µs of the device for one call of each, in turn."""
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            function(x)
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            repeat = max(3, min(200, int(5000 / (samples[name][-1] if samples[name] else 100))))
            begin.record()
            for _ in range(repeat):
                function(x)
            end.record()
            torch.cuda.synchronize()
            samples[name].append(1000 * begin.elapsed_time(end) / repeat)
    return {name: statistics.median(values) for name, values in samples.items()}


def limits(torch: Any) -> dict[str, float]:
    """GFLOP/s of a large float32 product, and GB/s of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
    found = times({"product": lambda _: a @ b, "copy": lambda _: a.clone()}, None, torch)
    return {"gflops": 2 * 8192**3 / found["product"] / 1e3, "gigabytes": 2 * a.numel() * 4 / found["copy"] / 1e3}


def checked(entry: Mapping[str, Any], folder: Path, torch: Any) -> dict[str, Any]:
    """Agreement and times of one network."""
    import tvmcnn

    net = tvmcnn.load(folder / f"{entry['name']}.so")
    x = np.random.default_rng(0).standard_normal(entry["shape"], dtype=np.float32)
    expected = np.load(folder / f"{entry['name']}.npz")["y"]
    given = torch.from_numpy(x).to("cuda")
    here, there = net(x)[: len(expected)], net(given).cpu().numpy()[: len(expected)]
    scale = float(np.abs(expected).max())
    error = float(max(np.abs(found - expected).max() for found in (here, there)) / scale)
    out = torch.empty(net.outputs[0].shape, device="cuda")
    eager = torch_network(entry, torch, "cuda")
    functions: dict[str, Callable[[Any], Any]] = {"tvmcnn": lambda x: net(x, out=out), "eager": eager}
    for name, make in (("compiled", lambda: torch.compile(eager)), ("graph", lambda: captured(eager, given, torch))):
        try:
            functions[name] = make()
            functions[name](given)
        except Exception as problem:  # whatever a compiler of theirs raises
            functions.pop(name, None)
            print(f"{entry['name']}: PyTorch {name} left out: {str(problem).splitlines()[0]}", file=sys.stderr)
    spent = times(functions, given, torch)
    flops, moved = (sum(kernel[word] for kernel in net.manifest["kernels"]) for word in ("macs", "bytes"))
    work = {"flops": 2 * flops, "bytes": moved}
    return {"name": entry["name"], "error": error, "passed": error <= TOLERANCE, "us": spent, **work}


def sanitized(folder: Path, name: str) -> str:
    """What compute-sanitizer says of one call, "" where it says nothing; "not here" without it."""
    if shutil.which("compute-sanitizer") is None:
        return "not here"
    call = "import sys, numpy as np, tvmcnn; net = tvmcnn.load(sys.argv[1]);"
    call += " net(*(np.zeros(i.shape, i.dtype) for i in net.inputs))"
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", call]
        done = subprocess.run([*command, str(folder / f"{name}.so")], capture_output=True, text=True)
        if done.returncode:
            return f"{tool}: {(done.stdout + done.stderr).strip().splitlines()[-1]}"
    return ""


def page(results: Sequence[Mapping[str, Any]], device: str, found: Mapping[str, float]) -> str:
    """The figures as a page."""
    names = ("tvmcnn", "eager", "compiled", "graph")
    lines = [
        "# On a GPU",
        "",
        f"{device}; float32, TF32 off; limits, measured: {found['gflops'] / 1e3:.1f} TFLOP/s,"
        f" {found['gigabytes']:.0f} GB/s.",
        "µs of the device for one call, medians in turn; the ratio is PyTorch's best over tvmcnn's; shares are of the",
        "limits, products counted as direct convolution's.",
        "",
        "| network | tvmcnn | PyTorch eager | torch.compile | CUDA graph | ratio | of FMA | of memory | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        cells = [f"{r['us'][name]:.1f}" if name in r["us"] else "" for name in names]
        ratio = min(r["us"][name] for name in names[1:] if name in r["us"]) / r["us"]["tvmcnn"]
        rate = 1e-3 / r["us"]["tvmcnn"]
        shares = f"{r['flops'] * rate / found['gflops']:.0%} | {r['bytes'] * rate / found['gigabytes']:.0%}"
        lines.append(f"| {r['name']} | {' | '.join(cells)} | {ratio:.2f} | {shares} | {r['error']:.1e} |")
    return "\n".join([*lines, ""])


def run(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Check every network, while there is time; its results and the page."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    torch.set_grad_enabled(False)
    end = time.monotonic() + SECONDS
    plan, results = json.loads((folder / "plan.json").read_text()), []
    for entry in plan:
        if time.monotonic() > end:
            print(f"{entry['name']}: left out, the time is up", file=sys.stderr)
            continue
        results.append(checked(entry, folder, torch))
        print(json.dumps(results[-1]), flush=True)
    results[0]["sanitizer"] = sanitized(folder, results[0]["name"])
    return results, page(results, torch.cuda.get_device_name(0), limits(torch))


def main() -> int:
    """Prepare here, or run there: exit status 1 if a network does not agree."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", default=NETWORKS, help="to prepare (%(default)s)")
    parser.add_argument("--target", default="cuda:sm_80,sm_90", help="to prepare for (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT.json")
    parser.add_argument("--markdown", type=Path, metavar="OUT.md")
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.folder, options.networks, options.target)
        return 0
    results, text = run(options.folder)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(text)
    wrong = [r["name"] for r in results if not r["passed"] or r.get("sanitizer", "") not in ("", "not here")]
    print(f"not right: {', '.join(wrong)}" if wrong else "all agree")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
