"""The chain: one C function that calls the kernels in order, and what surrounds it, as a C source a person can read.

    int32_t lenet5_run(const float *input, float *scores, void *arena) {
      tvmcnn_conv_1f0c…(input, W(0), W(640), A(0)); /* k0_conv */
      tvmcnn_conv_93ab…(A(0), W(704), W(10304), A(4096)); /* k1_conv */
      ...

The Python runner steps through the same calls one at a time (`lenet5_step`), so that both agree bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvmcnn.codegen.jobs import Symbols
from tvmcnn.network import Network, Place, Program, Step, Tensor, dims
from tvmcnn.targets import Target

# Words that a parameter may not be called: of C, of C++ (for the header), macros, and what the generated functions use.
_TAKEN = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept const consteval
    constexpr constinit const_cast continue co_await co_return co_yield decltype default delete do double dynamic_cast
    else enum explicit export extern false float for friend goto if inline int long mutable namespace new noexcept not
    not_eq nullptr operator or or_eq private protected public register reinterpret_cast requires restrict return short
    signed sizeof static static_assert static_cast struct switch template this thread_local throw true try typedef
    typeid typename typeof union unsigned using virtual void volatile wchar_t while xor xor_eq
    NULL errno int32_t int64_t linux unix arena args count hidden repeat result self step
    """.split()  # noqa: SIM905 (a hundred quoted words read worse)
)
C_TYPES = {
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"float32": "float", "float64": "double", "bool": "bool"},
    "float16": "uint16_t",  # its bits: C11 has no half precision
}
_DLPACK_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat", "b": "kDLBool"}  # by NumPy's kind
_BUILTINS = {"abm": "lzcnt", "bmi1": "bmi", "movbe": None}  # /proc/cpuinfo's flag -> __builtin_cpu_supports' name


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
    def parameters(self) -> str:
        """const float *input, float *scores, void *arena"""
        inputs = [f"const {C_TYPES[tensor.dtype]} *{name}" for name, tensor in self.inputs]
        outputs = [f"{C_TYPES[tensor.dtype]} *{name}" for name, tensor in self.outputs]
        return ", ".join([*inputs, *outputs, "void *arena"])

    @property
    def arguments(self) -> str:
        """input, scores, arena"""
        return ", ".join([*(name for name, _ in (*self.inputs, *self.outputs)), "arena"])


def exports(name: str) -> tuple[str, ...]:
    """The symbols that a program's library exports."""
    return (f"{name}_check", f"{name}_run", f"{name}_step", f"{name}_open", f"__tvm_ffi_{name}_run")


def header(programs: Sequence[Program], target: Target) -> str:
    """The C header of a compiled network, for programs that link the library; one section a batch size."""
    name = programs[0].network.name
    sections = "\n".join(_declarations(program, target) for program in programs)
    return f"""/* {name}: a CNN compiled by tvmcnn for {target.name}. */
#ifndef {name.upper()}_H_
#define {name.upper()}_H_

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{sections}
#ifdef __cplusplus
}}
#endif

#endif /* {name.upper()}_H_ */
"""


def _declarations(program: Program, target: Target) -> str:
    signature = Signature.of(program.network)
    name, upper = signature.name, signature.name.upper()
    shapes = "\n".join(
        f" *   {word}: {tensor.dtype}, {dims(tensor.shape)}, C-contiguous"
        for word, tensor in (*signature.inputs, *signature.outputs)
    )
    sizes = "\n".join(
        f"#define {upper}_{word.upper()}_SIZE {tensor.size} /* elements */"
        for word, tensor in (*signature.inputs, *signature.outputs)
    )
    return f"""#define {upper}_ARENA_BYTES {max(program.arena_bytes, 64)}
{sizes}

/* Returns 0 if this CPU has the instructions that the library uses, 2 if not: then call nothing else. */
int32_t {name}_check(void);

/* Runs the network. Any number of threads may call at once, each with an arena of its own.
{shapes}
 *   arena: {upper}_ARENA_BYTES bytes, aligned to 64 for speed; need not be zeroed
 * Returns 0, or 1 if an argument is NULL. Allocates nothing, prints nothing, keeps nothing between calls. */
int32_t {name}_run({signature.parameters});
"""


def source(program: Program, target: Target, symbols: Symbols, weights: str) -> str:
    """The C source of the chain. `symbols` names the kernels' functions, `weights` is the symbol of the weights."""
    opened = [index for index, step in enumerate(program.steps) if step.choice.name in symbols.opened]
    signature = Signature.of(program.network)
    name = signature.name
    calls = [_call(step, signature, symbols) for step in program.steps]
    cases = "\n".join(
        f"    case {i}:\n      while (repeat-- > 0) {call}\n      return TVMCNN_OK;" for i, call in enumerate(calls)
    )
    open_cases = "\n".join(
        f"    case {i}: {_open_call(program.steps[i], signature, symbols)} return TVMCNN_OK;" for i in opened
    )
    nulls = " || ".join(f"!{word}" for word in signature.arguments.split(", "))
    prototypes = "\n".join(_prototypes(program, symbols))
    body = "\n".join(f"  {call}" for call in calls)
    return f"""/* {name} for {target.name}: generated by tvmcnn. */
#include "entry.h"

extern const char {weights}[] __attribute__((visibility("hidden"), aligned(64)));
{prototypes}

#define W(offset) ((void*)({weights} + (offset)))
#define A(offset) ((void*)((char*)arena + (offset)))

TVMCNN_PUBLIC int32_t {name}_check(void) {{
  __builtin_cpu_init();
  return {_supports(target)} ? TVMCNN_OK : TVMCNN_CPU_TOO_OLD;
}}

TVMCNN_PUBLIC int32_t {name}_run({signature.parameters}) {{
  if ({nulls}) return TVMCNN_NULL_ARGUMENT;
{body}
  return TVMCNN_OK;
}}

/* One step of the chain, `repeat` times, for the graph runner and its profile. */
TVMCNN_PUBLIC int32_t {name}_step(int32_t step, int32_t repeat, {signature.parameters}) {{
  switch (step) {{
{cases}
    default: return TVMCNN_NO_SUCH_STEP;
  }}
}}

/* The open variant of a step: writes the tensors that fusion hides, one behind the other, to `hidden`. */
TVMCNN_PUBLIC int32_t {name}_open(int32_t step, {signature.parameters}, char *hidden) {{
  switch (step) {{
{open_cases}
    default: return TVMCNN_NO_SUCH_STEP;
  }}
}}

/* The same through tvm-ffi: {signature.arguments}, the arena as its address. */
TVMCNN_PUBLIC int __tvm_ffi_{name}_run(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
{_unpack(signature)}
  result->type_index = kTVMFFINone;
  result->zero_padding = 0;
  result->v_int64 = 0;
  return {name}_run({signature.arguments}) == TVMCNN_OK ? 0 : tvmcnn_raise("RuntimeError", "{name}_run failed");
}}
"""


def _place(place: Place, signature: Signature) -> str:
    if place.space == "input":
        return f"(void*){signature.inputs[place.index][0]}"
    if place.space == "output":
        return signature.outputs[place.index][0]
    return f"{'W' if place.space == 'weights' else 'A'}({place.offset})"


def _prototypes(program: Program, symbols: Symbols) -> list[str]:
    """One declaration for each function, however many steps call it."""
    counts = {}
    for step in program.steps:
        name, arguments = step.choice.name, len(step.arguments)
        if name in symbols.kernels:
            counts[symbols.kernels[name]] = arguments
        if name in symbols.opened:
            counts[symbols.opened[name]] = arguments - 1 + len(step.choice.kernel.hidden)
    return [f"extern int32_t {symbol}({_pointers(count)});" for symbol, count in counts.items()]


def _call(step: Step, signature: Signature, symbols: Symbols) -> str:
    name = step.choice.name
    if step.choice.is_view:
        return f"; /* {name}: in place */"
    return f"{symbols.kernels[name]}({_arguments(step, signature)}); /* {name} */"


def _arguments(step: Step, signature: Signature) -> str:
    return ", ".join(_place(place, signature) for place in step.arguments)


def _open_call(step: Step, signature: Signature, symbols: Symbols) -> str:
    offset, hidden = 0, []
    for tensor in step.choice.kernel.hidden:
        hidden.append(f"hidden + {offset}")
        offset += tensor.size * tensor.item_bytes
    given = [_place(place, signature) for place in step.arguments[:-1]]
    return f"{symbols.opened[step.choice.name]}({', '.join([*given, *hidden])});"


def _pointers(count: int) -> str:
    return ", ".join(["void*"] * count)


def _supports(target: Target) -> str:
    names = [_BUILTINS.get(feature, feature) for feature in target.features]
    return " && ".join(f'__builtin_cpu_supports("{name}")' for name in names if name)


def _unpack(signature: Signature) -> str:
    words = [*signature.inputs, *signature.outputs]
    lines = [
        "  (void)self;",
        f"  if (count != {len(words) + 1})",
        f'    return tvmcnn_raise("TypeError", "expected {len(words)} tensors and the arena");',
    ]
    for position, (word, tensor) in enumerate(words):
        shape = ", ".join(map(str, tensor.shape)) or "1"
        const = "const " if position < len(signature.inputs) else ""
        wanted = f"C-contiguous {tensor.dtype} {dims(tensor.shape)}"
        kind = f"{_DLPACK_CODES[np.dtype(tensor.dtype).kind]}, {8 * tensor.item_bytes}"
        lines += [
            f"  static const int64_t tvmcnn_shape_{word}[] = {{{shape}}};",
            f"  {const}{C_TYPES[tensor.dtype]} *{word} =",
            f"      tvmcnn_data(&args[{position}], {kind}, {len(tensor.shape)}, tvmcnn_shape_{word});",
            f"  if ({word} == NULL)",
            f'    return tvmcnn_raise("ValueError", "\'{word}\' must be {wanted}");',
        ]
    lines += [
        f"  if (args[{len(words)}].type_index != kTVMFFIInt)",
        '    return tvmcnn_raise("TypeError", "the arena must be given as its address");',
        f"  void *arena = (void*)(intptr_t)args[{len(words)}].v_int64;",
    ]
    return "\n".join(lines)
