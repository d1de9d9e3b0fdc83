"""The manifest: what a library says of itself. No time, path or host: the same input gives the same bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tvmcnn.algorithms import ALGORITHMS, FALLBACK, Makes
from tvmcnn.artifact.container import Manifest
from tvmcnn.artifact.weights import half_weights, stored_in_half
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.summary import by_winograd, groups_as_one
from tvmcnn.configs import WholeConfig
from tvmcnn.fuse import multiply_accumulates
from tvmcnn.half_weights import WORDS as WEIGHT_WORDS
from tvmcnn.network import Network, Node, Program, Step, Tensor, dims, moved_bytes
from tvmcnn.precision import WORDS
from tvmcnn.targets import Gpu, Target

NAMES = ("nodes", "scalars", "reads", "hidden", "stores", "output")  # what a kernel's entry has of them
ONNX = ("kernel_shape", "strides", "pads", "dilations", "group", "axis", "axes", "perm", "alpha", "beta", "epsilon")


def describe(
    name: str,
    programs: Sequence[Program],
    machine: Target | Gpu,
    versions: Mapping[str, str],
    weights_bytes: int,
    precision: str = "fp32",
    functions: Sequence[Mapping[str, str]] = (),
    *,
    activations: bool,
) -> Manifest:
    """The manifest of a library: everything that the runner needs, and everything that was decided on the way.

    The first program's entries are the library's own; what differs in those of other sizes is in "specialisations",
    and "variants" has what the library is for other classes of CPUs. `name` is the library's, "symbol" begins those of
    a program. `functions` has the C function of each kernel by its name, program by program.
    """
    functions = functions or [{}] * len(programs)
    network = programs[0].network
    return {
        "versions": dict(versions),
        "target": machine.facts,
        "precision": WORDS[precision],
        "weights": half_weights(programs),
        "weights_bytes": weights_bytes,
        "activations": activations,
        "metadata": dict(network.metadata),
        **_program(programs[0], functions[0]),
        "name": name,
        "specialisations": [_program(program, each) for program, each in zip(programs[1:], functions[1:], strict=True)],
        "variants": [],
        "made_of": {},
    }


def _program(program: Program, functions: Mapping[str, str]) -> Manifest:
    network = program.network
    return {
        "name": network.name,
        "symbol": network.name,
        "inputs": [_entry(tensor) | {"stores": _seen(network, tensor.name)[1:]} for tensor in network.inputs],
        "outputs": [_entry(tensor) for tensor in network.outputs],
        "open_batch": dict(network.open_batch),  # the name of each input's leading dimension, where any batch runs
        "arena_bytes": program.arena_bytes,
        "thread_bytes": program.thread_bytes,
        "arena_lower_bound": program.arena_lower_bound,
        "arena": [list(dataclasses.astuple(held)) for held in program.held],  # name, offset, bytes, first, last step
        "fallbacks": fallbacks(program),
        "winograd": by_winograd(step.choice for step in program.steps),  # empty where no convolution goes by it
        "groups": groups_as_one(step.choice for step in program.steps),  # empty where none are
        "folded": dict(network.folded),
        "notes": list(network.notes),
        "kernels": [_kernel(network, step, functions) for step in program.steps],
        "verification": None,
    }


def renamed(entry: Manifest, program: Program) -> Manifest:
    """A program's entry with the names that another model has for the same nodes, tensors and constants: exporters
    number them anew. Where each constant lies stays."""
    new = _program(program, {})
    kernels = []
    for old, kernel in zip(entry["kernels"], new["kernels"], strict=True):
        pairs = zip(kernel["constants"], old["constants"], strict=True)
        constants = [[name, offset] for (name, _), (_, offset) in pairs]
        kernels.append(old | {key: kernel[key] for key in NAMES} | {"constants": constants})
    return entry | {key: new[key] for key in ("arena", "folded")} | {"kernels": kernels}


def fallbacks(program: Program) -> int:
    """Kernels that no rule of their own takes."""
    return sum(step.choice.rule == FALLBACK for step in program.steps)


def kernel_line(step: Step, kind: str = "fp32") -> str:
    """The line that compile prints: name, nodes, algorithm, layout, rule, tier, config and the weight's half type."""
    choice = step.choice
    config = " ".join(f"{key}={value}" for key, value in _config(step).items())
    decided = f"{choice.algorithm} -> {choice.writes}, rule {choice.rule} ({choice.tier}) {config}"
    if stored_in_half(step, kind):
        decided += f" weight={WEIGHT_WORDS[kind]}"
    return f"{choice.name:<14} {choice.kernel.ops:<24} {decided}".rstrip()


def _kernel(network: Network, step: Step, functions: Mapping[str, str]) -> dict[str, Any]:
    choice, place = step.choice, step.arguments[-1]
    tensor = choice.kernel.output
    places = step.arguments[len(choice.sources) : -1]
    weights = sum(constant.size * constant.item_bytes for constant in step.packed.values())
    return {
        "name": choice.name,
        "ops": [node.op for node in choice.kernel.all_nodes],
        "nodes": [node.name for node in choice.kernel.all_nodes],
        "attributes": _plain_attributes(choice.kernel.anchor),
        "algorithm": choice.algorithm,
        "rule": choice.rule,
        "tier": choice.tier,
        "config": _config(step),
        "tasks": choice.tasks,
        "scratch": choice.scratch_bytes,
        "function": functions.get(choice.name, ""),
        "words": kernel_words(network, choice.kernel) if choice.config is not None else "",
        "constants": [[name, place.offset] for name, place in zip(step.packed, places, strict=True)],
        "scalars": list(choice.kernel.scalars),
        "macs": multiply_accumulates(network, choice.kernel),
        "bytes": moved_bytes(choice) + weights,
        "reads": [source.name for source in choice.sources],
        "hidden": [_original(network, hidden.name) for hidden in choice.kernel.hidden],
        "stores": _seen(network, tensor.name),
        "output": {
            "name": tensor.name,
            "space": place.space,
            "index": place.index,
            "offset": place.offset,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "block": choice.writes.block,
            "halo": list(choice.writes.halo),
            "pitch": choice.writes.pitch,
            "images": choice.writes.images,
            "narrow": choice.writes.narrow,
            "ends": list(choice.end_bytes),
        },
    }


def _plain_attributes(node: Node) -> dict[str, Any]:
    """ONNX's own attributes, numbers and words: what importer/operators derived for the expressions is left out."""
    plain = (int, float, str, tuple)
    return {key: value for key, value in node.attributes.items() if isinstance(value, plain) and key in ONNX}


def _config(step: Step) -> dict[str, Any]:
    config = step.choice.config
    if isinstance(config, WholeConfig):
        names = [part.kernel.name for part in config.parts]
        return {"parts": names, "threads": config.threads, "images": config.images}
    return dataclasses.asdict(config) if config is not None else {}


def _entry(tensor: Tensor, order: Sequence[int] = ()) -> dict[str, Any]:
    """A tensor as ONNX has it; `order` says how its axes follow each other in memory where that is another."""
    entry: dict[str, Any] = {"name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype}
    entry |= {"order": list(order)} if order else {}
    return entry | {"counts": [list(pair) for pair in tensor.counts]} if tensor.counts else entry


def _seen(network: Network, name: str) -> list[dict[str, Any]]:
    """The ONNX tensors in the memory of tensor `name`: itself, and its Reshapes, which store nothing of their own."""
    outputs = {tensor.name for tensor in network.outputs}
    sources: dict[str, str] = {}
    for node in network.nodes:
        if node.op == "Reshape" and node.output not in outputs:
            sources[node.output] = sources.get(node.inputs[0], node.inputs[0])
    names = [name, *(alias for alias, source in sources.items() if source == name)]
    known = [(network.original(name), name) for name in names if name in network.tensors]
    seen = {original.tensor.name: name for original, name in known if original.shown}
    return [_original(network, name) for name in seen.values()]


def _original(network: Network, name: str) -> dict[str, Any]:
    original = network.original(name)
    return _entry(original.tensor, original.order)


def tensors_of(manifest: Manifest, entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The ONNX tensors that a kernel makes, hidden ones first. What it stores in blocks may be copied by a reorder into
    the output of that name."""
    stored = entry["stores"]
    if not stored:
        kernels = [kernel for kernel in manifest["kernels"] if kernel["stores"]]
        copies = (kernel for kernel in kernels if ALGORITHMS[kernel["algorithm"]].makes is Makes.COPY)
        stored = next((each["stores"] for each in copies if each["reads"] == [entry["output"]["name"]]), [])
    return [*entry["hidden"], *stored]


def described(manifest: Manifest) -> Iterator[str]:
    """A library in words: what it is, what it was made of, and each kernel's row."""
    variants = [manifest, *manifest["variants"]]
    yield f"{manifest['name']} for {', '.join(entry['target']['name'] for entry in variants)}; {manifest['precision']}"
    for word in ("inputs", "outputs"):
        arrays = (
            f"{entry['name']} {entry['dtype']} {'at most ' if entry.get('counts') else ''}{dims(tuple(entry['shape']))}"
            for entry in manifest[word]
        )
        yield f"{word}: {', '.join(arrays)}"
    others = [dims(entry["inputs"][0]["shape"]) for entry in manifest["specialisations"] if entry["inputs"]]
    if others:
        yield f"other sizes of {manifest['inputs'][0]['name']}: {', '.join(others)}"
    if manifest.get("open_batch"):
        yield f"open: {', '.join(f'{symbol} of {name}' for name, symbol in manifest['open_batch'].items())}"
    yield f"weights {manifest['weights_bytes']:,} bytes; arena {manifest['arena_bytes']:,}, at least" + (
        f" {manifest['arena_lower_bound']:,}; {manifest['thread_bytes']:,} more a thread"
    )
    yield from filter(None, (manifest["weights"]["text"], *map(manifest.get, ("winograd", "groups"))))
    yield f"versions: {', '.join(f'{name} {found}' for name, found in manifest['versions'].items())}"
    for name, digest in {**manifest["made_of"], "image": manifest["sha256"]}.items():
        yield f"SHA-256 of the {name:<8} {digest}"
    for entry in variants:
        verdict = entry["verification"]
        judged = f"outputs within {verdict['error']:.1e} of max" if verdict and verdict["passed"] else "not verified"
        yield f"{entry['target']['name']}, {judged}:"
        yield f"  {'kernel':<12} {'nodes':<21} {'algorithm':<11} {'config':<14} {'MMAC':>7} {'KB':>7}"
        for kernel in entry["kernels"]:
            ops = "+".join(kernel["ops"])
            words = f"  {kernel['name'][:12]:<12} {ops[:21]:<21} {kernel['algorithm'][:11]:<11}"
            yield f"{words} {kernel['tier']:<14} {kernel['macs'] / 1e6:>7.2f} {kernel['bytes'] / 1e3:>7.0f}"
