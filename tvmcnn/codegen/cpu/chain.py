"""The chain: one C function that calls the kernels in order, and what surrounds it, as a C source a person can read.

    int32_t lenet5_run_threads(const float *input, float *scores, void *arena, int32_t threads) {
      const lenet5_frame frame = {input, scores, arena};
      tvmcnn_k0_conv(&frame, scratch, 0, 1);
      tvmcnn_parallel(tvmcnn_k1_conv, &frame, 28, threads, scratch, 0);
      ...

The Python runner steps through the same calls one at a time (`lenet5_step`), so that both agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvmcnn.codegen import entries
from tvmcnn.codegen.cpu.call import call, kernel_function
from tvmcnn.codegen.cpu.features import asked
from tvmcnn.codegen.jobs import Symbols
from tvmcnn.codegen.signature import Signature
from tvmcnn.codegen.templates import filled
from tvmcnn.network import Program, Step
from tvmcnn.targets import Target


def exports(name: str) -> tuple[str, ...]:
    """The symbols that a program's library exports."""
    ours = [f"{name}_{word}" for word in ("missing", "check", "run", "run_threads", "step", "open", "trace")]
    return (*ours, f"__tvm_ffi_{name}_run", f"__tvm_ffi_{name}_bind")


def header(programs: Sequence[Program], target: Target) -> str:
    """The C header of a compiled network, for programs that link the library; one section a size."""
    return entries.header(programs, target.name, _declarations)


def _declarations(program: Program) -> str:
    signature = Signature.of(program.network)
    name, upper = signature.name, signature.name.upper()
    return f"""#define {upper}_ARENA_BYTES {max(program.arena_bytes + program.thread_bytes, 64)}
#define {upper}_THREAD_BYTES {program.thread_bytes} /* more for each thread but the first */
{entries.sizes(signature)}

/* Returns 0 if this CPU has the instructions that the library uses, 2 if not: then call nothing else. */
int32_t {name}_check(void);

/* Runs the network. Any number of threads may call at once, each with an arena of its own.
{entries.shapes(signature)}
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
    stamped = "\n".join(
        f"  *stamps++ = tvmcnn_now();\n  {calls.get(s.choice.name, '')}".rstrip() for s in program.steps
    )
    return filled(
        "chain.c.in",
        name=name,
        target=target.name,
        features=", ".join(target.features),
        asked=asked(target),
        weights=weights,
        parameters=parameters,
        arguments=signature.arguments,
        arena_bytes=program.arena_bytes,
        prototypes="\n".join(_prototypes(program, symbols)),
        fields="".join(f"  {field.strip()};\n" for field in parameters.split(",")),
        kernels="\n\n".join(kernel_function(step, signature, symbols) for step in steps),
        nulls=" || ".join(f"!{word}" for word in words),
        read=_unpack(signature),
        chain="\n".join(f"  {each}" for each in calls.values()),
        stamped=stamped,
        cases=cases,
        open_cases=open_cases,
    )


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


def _unpack(signature: Signature) -> str:
    count = len(signature.tensors)
    lines = [
        f"  if (count != {count + 2})",
        f'    return tvmcnn_raise("TypeError", "expected {count} tensors, the arena and the threads");',
        *entries.tensors_read(signature, "kDLCPU", lambda position, word: f"frame->{word}"),
    ]
    lines += [
        f"  if (args[{count}].type_index != kTVMFFIInt || args[{count + 1}].type_index != kTVMFFIInt)",
        '    return tvmcnn_raise("TypeError", "the arena must be given as its address, the threads as a number");',
        f"  frame->arena = (void*)(intptr_t)args[{count}].v_int64;",
        f"  *threads = (int32_t)args[{count + 1}].v_int64;",
    ]
    return "\n".join(lines)
