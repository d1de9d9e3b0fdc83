"""The chain: one C function that calls the kernels in order, and what surrounds it, as a C source a person can read.

    int32_t lenet5_run_threads(const float *input, float *scores, void *arena, int32_t threads) {
      const lenet5_frame frame = {input, scores, arena};
      tvmcnn_k0_conv(&frame, scratch, 0, 1);
      tvmcnn_parallel(tvmcnn_k1_conv, &frame, 28, threads, scratch, 0);
      ...

The Python runner steps through the same calls one at a time (`lenet5_step`), so that both agree bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from tvmcnn.codegen.calls import call, call_turns, kernel_function, turns_function
from tvmcnn.codegen.jobs import Symbols
from tvmcnn.codegen.signature import Signature
from tvmcnn.network import Program, Step, dims
from tvmcnn.targets import Target

_DLPACK_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat", "b": "kDLBool"}  # by NumPy's kind
_BUILTINS = {"abm": "lzcnt", "bmi1": "bmi", "movbe": None}  # /proc/cpuinfo's flag -> __builtin_cpu_supports' name


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
    calls = {step.choice.name: call(step) for step in steps}
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
    kernels = "\n\n".join(kernel_function(step, signature, symbols) for step in steps)
    pairs = [(first, step) for first, step in itertools.pairwise(steps) if step.choice.turns]
    kernels += "".join(f"\n\n{turns_function(first, second, signature, symbols)}" for first, second in pairs)
    prototypes = "\n".join(_prototypes(program, symbols))
    whole = calls | {second.choice.name: call_turns(second) for _, second in pairs}
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
  return {supports(target)} ? TVMCNN_OK : TVMCNN_CPU_TOO_OLD;
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


def _prototypes(program: Program, symbols: Symbols) -> list[str]:
    """One declaration for each function, however many steps call it."""
    counts = {}
    for step in program.steps:
        name, arguments = step.choice.name, len(step.arguments)
        if name in symbols.kernels:
            counts[symbols.kernels[name]] = arguments
        if name in symbols.opened:
            counts[symbols.opened[name]] = arguments - 1 + len(step.choice.kernel.hidden)
    return [f"extern int32_t {symbol}({pointers(count)});" for symbol, count in counts.items()]


def _open_call(step: Step, signature: Signature, symbols: Symbols) -> str:
    offset, hidden = 0, []
    for tensor in step.choice.kernel.hidden:
        hidden.append(f"hidden + {offset}")
        offset += tensor.size * tensor.item_bytes
    given = [signature.place(place) for place in step.arguments[:-1]]
    return f"{symbols.opened[step.choice.name]}({', '.join([*given, *hidden])}, NULL, 0, 1);"


def pointers(count: int) -> str:
    """The parameters of a kernel's function: its arguments, scratch, and the tasks from and to."""
    return ", ".join([*["void*"] * count, "char*", "int32_t", "int32_t"])


def supports(target: Target) -> str:
    """The C expression that is true where the CPU has what the target needs."""
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
