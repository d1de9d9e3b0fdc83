"""The chain: one C function that calls the kernels in order, and what surrounds it, as a C source a person can read.

    static void k0_conv(const void *frame, char *scratch, int32_t begin, int32_t end) {
      const lenet5_frame *f = frame;
      tvmcnn_conv_1f0c…(f->input, W(0), W(640), A(0), scratch, begin, end);
    }
    ...
    int32_t lenet5_run_threads(const float *input, float *scores, void *arena, int32_t threads) {
      const lenet5_frame frame = {input, scores, arena};
      k0_conv(&frame, scratch, 0, 1);
      tvmcnn_parallel(k1_conv, &frame, 28, threads, scratch, 0);
      ...

The Python runner steps through the same calls one at a time (`lenet5_step`), so that both agree bit for bit.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvmcnn.codegen.jobs import Symbols
from tvmcnn.layout import stored_bytes
from tvmcnn.network import ALIGNMENT, FLOAT, NO_PADS, Network, Place, Program, Step, Tensor, dims, round_up
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
    NULL errno int32_t int64_t linux unix arena args count f frame here hidden repeat result scratch self step threads
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
    ours = [f"{name}_{word}" for word in ("check", "run", "run_threads", "step", "open")]
    return (*ours, f"__tvm_ffi_{name}_run", f"__tvm_ffi_{name}_bind")


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
    return f"""#define {upper}_ARENA_BYTES {max(program.arena_bytes + program.thread_bytes, 64)}
#define {upper}_THREAD_BYTES {program.thread_bytes} /* more for each thread but the first */
{sizes}

/* Returns 0 if this CPU has the instructions that the library uses, 2 if not: then call nothing else. */
int32_t {name}_check(void);

/* Runs the network. Any number of threads may call at once, each with an arena of its own.
{shapes}
 *   arena: {upper}_ARENA_BYTES bytes, aligned to 64 for speed; need not be zeroed
 * Returns 0, or 1 if an argument is NULL. Allocates nothing, prints nothing, keeps nothing between calls. */
int32_t {name}_run({signature.parameters});

/* The same on up to `threads` threads, the caller's among them, and bit for bit the same result.
 *   arena: {upper}_ARENA_BYTES + (threads - 1) * {upper}_THREAD_BYTES bytes
 * The others belong to one pool of the process, start at the first call that has work for them, spin for 1 ms after
 * their last task and sleep then. While one caller has them, others do their work alone. */
int32_t {name}_run_threads({signature.parameters}, int32_t threads);
"""


def source(program: Program, target: Target, symbols: Symbols, weights: str) -> str:
    """The C source of the chain. `symbols` names the kernels' functions, `weights` is the symbol of the weights."""
    signature = Signature.of(program.network)
    name, parameters = signature.name, signature.parameters
    words = signature.arguments.split(", ")
    steps = [step for step in program.steps if not step.choice.is_view]
    calls = {step.choice.name: _call(step) for step in steps}
    cases = "\n".join(
        f"    case {i}: while (repeat-- > 0) {calls.get(step.choice.name, '; /* in place */')} return TVMCNN_OK;"
        for i, step in enumerate(program.steps)
    )
    open_cases = "\n".join(
        f"    case {i}: {_open_call(step, signature, symbols)} return TVMCNN_OK;"
        for i, step in enumerate(program.steps)
        if step.choice.name in symbols.opened
    )
    nulls = " || ".join(f"!{word}" for word in words)
    fields = "".join(f"  {field.strip()};\n" for field in parameters.split(","))
    kernels = "\n\n".join(_kernel(step, signature, symbols) for step in steps)
    pairs = [(first, step) for first, step in itertools.pairwise(steps) if step.choice.turns]
    kernels += "".join(f"\n\n{_turns(first, second, signature, symbols)}" for first, second in pairs)
    prototypes = "\n".join(_prototypes(program, symbols))
    whole = calls | {second.choice.name: _call_turns(second) for _, second in pairs}
    body = "\n".join(f"  {whole[step.choice.name]}" for step in steps if step not in [first for first, _ in pairs])
    return f"""/* {name} for {target.name}: generated by tvmcnn. */
#include "entry.h"
#include "halo.h"
#include "pool.h"

extern const char {weights}[] __attribute__((visibility("hidden"), aligned(64)));
{prototypes}

typedef struct {{
{fields}}} {name}_frame;

#define W(offset) ((void*)({weights} + (offset)))
#define A(offset) ((void*)((char*)f->arena + (offset)))

{kernels}

TVMCNN_PUBLIC int32_t {name}_check(void) {{
  __builtin_cpu_init();
  return {_supports(target)} ? TVMCNN_OK : TVMCNN_CPU_TOO_OLD;
}}

static void {name}_chain(const {name}_frame *frame, int32_t threads) {{
  char *scratch = (char*)frame->arena + {program.arena_bytes};
  (void)scratch, (void)threads;
{body}
}}

TVMCNN_PUBLIC int32_t {name}_run_threads({parameters}, int32_t threads) {{
  if ({nulls}) return TVMCNN_NULL_ARGUMENT;
  const {name}_frame frame = {{{signature.arguments}}};
  {name}_chain(&frame, threads);
  return TVMCNN_OK;
}}

TVMCNN_PUBLIC int32_t {name}_run({parameters}) {{
  return {name}_run_threads({signature.arguments}, 1);
}}

/* One step of the chain, `repeat` times, for the graph runner and its profile. */
TVMCNN_PUBLIC int32_t {name}_step(int32_t step, int32_t repeat, int32_t threads, {parameters}) {{
  const {name}_frame here = {{{signature.arguments}}}, *frame = &here;
  char *scratch = (char*)arena + {program.arena_bytes};
  (void)scratch, (void)threads;
  switch (step) {{
{cases}
    default: return TVMCNN_NO_SUCH_STEP;
  }}
}}

/* The open variant of a step: writes the tensors that fusion hides, one behind the other, to `hidden`. */
TVMCNN_PUBLIC int32_t {name}_open(int32_t step, {parameters}, char *hidden) {{
  const {name}_frame here = {{{signature.arguments}}}, *f = &here;
  (void)f;
  switch (step) {{
{open_cases}
    default: return TVMCNN_NO_SUCH_STEP;
  }}
}}

/* The same through tvm-ffi: {signature.arguments} as its address, threads. */
static int {name}_read(const TVMFFIAny* args, int32_t count, {name}_frame *frame, int32_t *threads) {{
{_unpack(signature)}
  return 0;
}}

TVMCNN_PUBLIC int __tvm_ffi_{name}_run(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  {name}_frame frame;
  int32_t threads;
  (void)self;
  if ({name}_read(args, count, &frame, &threads) != 0) return -1;
  {name}_chain(&frame, threads);
  return tvmcnn_nothing(result);
}}

/* A function without arguments that runs the network on the tensors given here. */
typedef struct {{
  {name}_frame frame;
  int32_t threads;
}} {name}_bound;

static int {name}_call(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  const {name}_bound *bound = self;
  (void)args;
  if (count != 0) return tvmcnn_raise("TypeError", "a bound network takes no arguments");
  {name}_chain(&bound->frame, bound->threads);
  return tvmcnn_nothing(result);
}}

TVMCNN_PUBLIC int __tvm_ffi_{name}_bind(void* self, const TVMFFIAny* args, int32_t count, TVMFFIAny* result) {{
  {name}_bound given;
  (void)self;
  if ({name}_read(args, count, &given.frame, &given.threads) != 0) return -1;
  return tvmcnn_function({name}_call, &given, sizeof given, result);
}}
"""


def _kernel(step: Step, signature: Signature, symbols: Symbols) -> str:
    """A C function that calls one kernel with its arguments: what `tvmcnn_parallel` takes."""
    call = f"{symbols.kernels[step.choice.name]}({_arguments(step, signature)}, scratch, begin, end);"
    return f"""static void {_thunk(step)}(const void *frame, char *scratch, int32_t begin, int32_t end) {{
  const {signature.name}_frame *f = frame;
  (void)f;
  {call}
}}"""


def _turns(first: Step, second: Step, signature: Signature, symbols: Symbols) -> str:
    """A C function that calls two kernels in turn for each group of maps, of which `scratch` has the one at hand.

    Its address is moved back by the groups before, so that both kernels find theirs where they look for it.
    """
    turns, layout = second.choice.turns, second.choice.reads[0]
    n, blocks, rows, columns, block = layout.physical(second.choice.sources[0].shape)
    maps = n * blocks // turns
    size = maps * rows * columns * block * FLOAT
    halo = ""
    if layout.halo != NO_PADS:
        sizes = ", ".join(map(str, (maps, rows, columns, block * FLOAT, *layout.halo)))
        halo = f"  tvmcnn_halo(scratch, {sizes});\n"
    begin = layout.first(second.choice.sources[0].shape) * FLOAT
    wrote = [_place(place, signature) for place in first.arguments[:-1]]
    made = [_place(place, signature) for place in _shifted(second)[1:]]
    calls = "\n".join(
        f"    {symbols.kernels[step.choice.name]}({', '.join(arguments)}, NULL, i * {count}, (i + 1) * {count});"
        for step, arguments, count in (
            (first, [*wrote, f"maps + {begin}"], first.choice.tasks // turns),
            (second, ["maps", *made], second.choice.tasks // turns),
        )
    )
    return f"""/* {first.choice.name} and {second.choice.name} in turn, {maps} blocks of maps at a time. */
static void {_thunk(second)}_turns(const void *frame, char *scratch, int32_t begin, int32_t end) {{
  const {signature.name}_frame *f = frame;
  (void)f;
{halo}  for (int32_t i = begin; i < end; ++i) {{
    char *maps = scratch - (intptr_t)i * {size};
{calls}
  }}
}}"""


def _call_turns(second: Step) -> str:
    """The statement that runs two kernels in turn."""
    turns = second.choice.turns
    scratch = round_up(stored_bytes(second.choice.sources[0], second.choice.reads[0]) // turns, ALIGNMENT)
    return _with_halo(second, f"tvmcnn_parallel({_thunk(second)}_turns, frame, {turns}, threads, scratch, {scratch});")


def _thunk(step: Step) -> str:
    return f"tvmcnn_{step.choice.name}"


def _place(place: Place, signature: Signature) -> str:
    if place.space == "input":
        return f"(void*)f->{signature.inputs[place.index][0]}"
    if place.space == "output":
        return f"f->{signature.outputs[place.index][0]}"
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


def _call(step: Step) -> str:
    """The statement that runs a step: the halo of its output is zeroed each time, for the arena had other tensors
    there."""
    choice, scratch = step.choice, round_up(step.choice.scratch_bytes, ALIGNMENT)
    call = f"{_thunk(step)}(frame, scratch, 0, 1);"
    if choice.tasks > 1:
        call = f"tvmcnn_parallel({_thunk(step)}, frame, {choice.tasks}, threads, scratch, {scratch});"
    return _with_halo(step, call)


def _with_halo(step: Step, call: str) -> str:
    choice = step.choice
    if choice.makes == choice.writes:
        return call
    n, blocks, rows, columns, block = choice.writes.physical(choice.kernel.output.shape)
    sizes = ", ".join(map(str, (n * blocks, rows, columns, block * FLOAT, *choice.writes.halo)))
    return f"{{ tvmcnn_halo((char*)frame->arena + {step.arguments[-1].offset}, {sizes}); {call} }}"


def _arguments(step: Step, signature: Signature) -> str:
    return ", ".join(_place(place, signature) for place in _shifted(step))


def _shifted(step: Step) -> list[Place]:
    """The places of a step's arguments, the output's behind its halo."""
    first = step.choice.writes.first(step.choice.kernel.output.shape) * FLOAT
    *given, output = step.arguments
    return [*given, replace(output, offset=output.offset + first)]


def _open_call(step: Step, signature: Signature, symbols: Symbols) -> str:
    offset, hidden = 0, []
    for tensor in step.choice.kernel.hidden:
        hidden.append(f"hidden + {offset}")
        offset += tensor.size * tensor.item_bytes
    given = [_place(place, signature) for place in step.arguments[:-1]]
    return f"{symbols.opened[step.choice.name]}({', '.join([*given, *hidden])}, NULL, 0, 1);"


def _pointers(count: int) -> str:
    return ", ".join([*["void*"] * count, "char*", "int32_t", "int32_t"])


def _supports(target: Target) -> str:
    names = [_BUILTINS.get(feature, feature) for feature in target.features]
    return " && ".join(f'__builtin_cpu_supports("{name}")' for name in names if name)


def _unpack(signature: Signature) -> str:
    words = [*signature.inputs, *signature.outputs]
    count = len(words)
    lines = [
        f"  if (count != {count + 2})",
        f'    return tvmcnn_raise("TypeError", "expected {count} tensors, the arena and the threads");',
    ]
    for position, (word, tensor) in enumerate(words):
        shape = ", ".join(map(str, tensor.shape)) or "1"
        wanted = f"C-contiguous {tensor.dtype} {dims(tensor.shape)}"
        kind = f"{_DLPACK_CODES[np.dtype(tensor.dtype).kind]}, {8 * tensor.item_bytes}"
        lines += [
            f"  static const int64_t tvmcnn_shape_{word}[] = {{{shape}}};",
            f"  frame->{word} = tvmcnn_data(&args[{position}], {kind}, {len(tensor.shape)}, tvmcnn_shape_{word});",
            f"  if (frame->{word} == NULL)",
            f'    return tvmcnn_raise("ValueError", "\'{word}\' must be {wanted}");',
        ]
    lines += [
        f"  if (args[{count}].type_index != kTVMFFIInt || args[{count + 1}].type_index != kTVMFFIInt)",
        '    return tvmcnn_raise("TypeError", "the arena must be given as its address, the threads as a number");',
        f"  frame->arena = (void*)(intptr_t)args[{count}].v_int64;",
        f"  *threads = (int32_t)args[{count + 1}].v_int64;",
    ]
    return "\n".join(lines)
