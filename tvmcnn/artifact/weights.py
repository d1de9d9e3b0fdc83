"""Weights: what a library says of those that it has in a half type, and the sentence of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvmcnn.half_weights import LEAST, NORMAL, PRODUCTS, STORED, WORDS, HalfWeights
from tvmcnn.network import FLOAT32, Program, Step, Tensor


def half_weights(programs: Sequence[Program]) -> dict[str, Any]:
    """The entry of the manifest: the type, the tensors rounded to it by their ONNX names, what is stored in it."""
    half = programs[0].network.half_weights
    found = ((program.network, _weight(step)) for program in programs for step in program.steps)
    large = [each for network, each in found if each is not None and network.constants[each[0]].size >= LEAST]
    stored_as = STORED.get(half.kind, "")
    weights = {place: t for _, place, t in large if t.dtype in (FLOAT32, stored_as)}  # others are factors in bfloat16
    stored = [tensor for tensor in weights.values() if tensor.dtype == stored_as]
    before, after = (sum(t.size for t in stored) * size for size in (4, 2))
    entry = {
        "kind": half.kind,
        "type": WORDS[half.kind],
        "rounded": {name: list(facts) for name, facts in half.tensors.items()},  # elements, errors: see HalfWeights
        "stored": len(stored),
        "large": len(weights) if half.kind != "fp32" else 0,
        "bytes": [before, after],
    }
    return entry | {"text": _sentence(half, len(stored), len(weights), before, after)}


def _sentence(half: HalfWeights, stored: int, large: int, before: int, after: int) -> str:
    """weights in float16: 5 tensors, 0.24 -> 0.12 MB, largest relative rounding error 4.9e-04; 2 large ones stay …

    Empty for float32.
    """
    if half.kind == "fp32":
        return ""
    relative, small = (max((facts[place] for facts in half.tensors.values()), default=0.0) for place in (1, 2))
    sizes = f"{before / 1e6:.3g} -> {after / 1e6:.3g} MB"
    text = f"weights in {WORDS[half.kind]}: {stored} tensors, {sizes}, largest relative rounding error {relative:.1e}"
    text += f" (of those below {NORMAL[half.kind]:.1e} at most {small:.1e})" if small else ""
    left = large - stored
    return text + (f"; {left} large one{'s stay' if left > 1 else ' stays'} float32" if left else "")


def stored_in_half(step: Step, kind: str) -> bool:
    """Whether the kernel's weight is stored in the half type `kind`."""
    weight = _weight(step)
    return weight is not None and weight[2].dtype == STORED.get(kind)


def _weight(step: Step) -> tuple[str, int, Tensor] | None:
    """The weight of a product of float32: its name, its place in the library's weights, and as it is packed."""
    choice = step.choice
    anchor = choice.kernel.anchor
    if choice.is_view or anchor.op not in PRODUCTS or choice.kernel.dtype != FLOAT32:
        return None
    places = step.arguments[len(choice.sources) : -1]
    found = ((name, place.offset, t) for place, (name, t) in zip(places, step.packed.items(), strict=True))
    return next((each for each in found if each[0] == anchor.inputs[1]), None)
