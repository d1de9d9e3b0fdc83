"""The C names of a network: its symbol prefix, its parameters, and where the chain finds what it passes to a kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tvmcnn.network import Network, Place, Tensor

# Words that a parameter may not be called: of C, of C++ (for the header), macros, and what the generated functions use.
_TAKEN = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const consteval
    constexpr constinit const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not
    not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires restrict return short
    signed sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef
    typeid typename typeof union unsigned using virtual void volatile wchar_t while xor xor_eq
    NULL errno int32_t int64_t linux unix arena args count f frame here hidden most repeat result scratch self spans
    stamps step threads traced
    """.split()  # noqa: SIM905 (a hundred quoted words read worse)
)
C_TYPES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"float32": "float", "float64": "double", "bool": "bool"},
    "float16": "uint16_t",  # its bits: C11 has no half precision
}


@dataclass(frozen=True)
class Signature:
    """The C names of a network: symbol prefix, inputs and outputs."""

    name: str
    inputs: tuple[tuple[str, Tensor], ...]
    outputs: tuple[tuple[str, Tensor], ...]

    @staticmethod
    def of(network: Network) -> Signature:
        """C identifiers for the ONNX names, made unique."""
        taken: set[str] = set()

        def name(tensor: Tensor) -> str:
            word = re.sub(r"\W", "_", tensor.name, flags=re.ASCII)
            word = f"t{word}" if not word or word[0].isdigit() else word
            ours = word.startswith(("_", "tvmcnn", "TVMCNN", f"{network.name}_"))
            word = f"{word}_" if word in _TAKEN or ours else word
            while word.upper() in taken:  # the macros of their sizes are in capitals
                word += "_"
            taken.add(word.upper())
            return word

        inputs = tuple((name(tensor), tensor) for tensor in network.inputs)
        return Signature(network.name, inputs, tuple((name(tensor), tensor) for tensor in network.outputs))

    @property
    def tensors(self) -> tuple[tuple[str, Tensor], ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)

    @property
    def parameters(self) -> str:
        """const float *input, float *scores, void *arena"""
        inputs = [f"const {C_TYPES[tensor.dtype]} *{name}" for name, tensor in self.inputs]
        outputs = [f"{C_TYPES[tensor.dtype]} *{name}" for name, tensor in self.outputs]
        return ", ".join([*inputs, *outputs, "void *arena"])

    @property
    def arguments(self) -> str:
        """input, scores, arena"""
        return ", ".join([*(name for name, _ in self.tensors), "arena"])

    def place(self, place: Place) -> str:
        """The C expression for an address: of a parameter in the frame f, in the weights or in the arena."""
        if place.space == "input":
            return f"(void*)f->{self.inputs[place.index][0]}"
        if place.space == "output":
            return f"f->{self.outputs[place.index][0]}"
        return f"{'W' if place.space == 'weights' else 'A'}({place.offset})"
