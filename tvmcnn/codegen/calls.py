"""Calls: the C functions through which the chain runs tasks of a kernel, or of two in turn, and the statements that do.

static void tvmcnn_k1_conv(const void *frame, char *scratch, int32_t begin, int32_t end) {
  const lenet5_frame *f = frame;
  tvmcnn_conv_1f0c…(f->input, W(0), W(640), A(0), scratch, begin, end);
}
...
  tvmcnn_parallel(tvmcnn_k1_conv, frame, 28, threads, scratch, 0);
"""

from __future__ import annotations

import math
from dataclasses import replace

from tvmcnn.codegen.jobs import Symbols
from tvmcnn.codegen.signature import Signature
from tvmcnn.layout import scratch_bytes
from tvmcnn.network import ALIGNMENT, FLOAT, NO_PADS, Layout, Place, Shape, Step, round_up
from tvmcnn.tasks import by_rows


def kernel_function(step: Step, signature: Signature, symbols: Symbols) -> str:
    """A C function that calls one kernel with its arguments: what `tvmcnn_parallel` takes."""
    call = f"{symbols.kernels[step.choice.name]}({_arguments(step, signature)}, scratch, begin, end);"
    return f"""static void {_thunk(step)}(const void *frame, char *scratch, int32_t begin, int32_t end) {{
  const {signature.name}_frame *f = frame;
  (void)f;
{_halo(step, step.choice.tasks)}  {call}
}}"""


def turns_function(first: Step, second: Step, signature: Signature, symbols: Symbols) -> str:
    """A C function that calls two kernels in turn for each group of maps, of which `scratch` has the one at hand.

    Its address is moved back by the groups before, so that both kernels find theirs where they look for it.
    """
    turns, source, layout = second.choice.turns, second.choice.sources[0], second.choice.reads[0]
    assert turns is not None
    maps = math.prod(layout.physical(source.shape)[:2]) // turns.groups
    halo = "" if layout.halo == NO_PADS else f"  tvmcnn_halo(scratch, {_maps(source.shape, layout, maps)}, 0, 1, 1);\n"
    begin = layout.first(source.shape) * FLOAT
    wrote = [signature.place(place) for place in first.arguments[:-1]]
    made = [signature.place(place) for place in _shifted(second)[1:]]
    calls = "\n".join(
        f"    for (int32_t t = group * {runs}; t < (group + 1) * {runs}; ++t)\n"
        f"      {symbols.kernels[step.choice.name]}({', '.join(arguments)}, NULL, t * {rows} + band[{at}],"
        f" t * {rows} + band[{at + 1}]);"
        for step, rows, at, arguments in (
            (first, turns.rows[0], 0, [*wrote, f"maps + {begin}"]),
            (second, turns.rows[1], 2, ["maps", *made]),
        )
        for runs in [step.choice.tasks // rows // turns.groups]
    )
    bands = ", ".join(f"{{{', '.join(map(str, band))}}}" for band in turns.bands)
    return f"""/* {first.choice.name} and {second.choice.name} in turn, {maps} blocks of maps at a time. */
static void {_thunk(second)}_turns(const void *frame, char *scratch, int32_t begin, int32_t end) {{
  const {signature.name}_frame *f = frame;
  (void)f;
  static const int32_t bands[][4] = {{{bands}}}; /* rows of both kernels, from and to */
{halo}{_halo(second, turns.count)}  for (int32_t i = begin; i < end; ++i) {{
    const int32_t *band = bands[i / {turns.groups}];
    const int32_t group = i % {turns.groups};
    char *maps = scratch - (intptr_t)group * {scratch_bytes(second.choice)};
{calls}
  }}
}}"""


def call_turns(second: Step) -> str:
    """The statement that runs two kernels in turn."""
    turns = second.choice.turns
    assert turns is not None
    scratch = round_up(scratch_bytes(second.choice), ALIGNMENT)
    return f"tvmcnn_parallel({_thunk(second)}_turns, frame, {turns.count}, threads, scratch, {scratch});"


def _thunk(step: Step) -> str:
    return f"tvmcnn_{step.choice.name}"


def call(step: Step) -> str:
    """The statement that runs a step."""
    choice, scratch = step.choice, round_up(step.choice.scratch_bytes, ALIGNMENT)
    if choice.tasks > 1:
        return f"tvmcnn_parallel({_thunk(step)}, frame, {choice.tasks}, threads, scratch, {scratch});"
    return f"{_thunk(step)}(frame, scratch, 0, 1);"


def _halo(step: Step, tasks: int) -> str:
    """The statement that zeroes the tasks' share of the halo of a step's output, which other tensors may have had the
    place of: nothing if it has none.
    """
    choice = step.choice
    if choice.makes == choice.writes:
        return ""
    shape = choice.kernel.output.shape
    function = "tvmcnn_halo_by_rows" if by_rows(choice) else "tvmcnn_halo"
    maps = _maps(shape, choice.writes, math.prod(choice.writes.physical(shape)[:2]))
    return f"  {function}(A({step.arguments[-1].offset}), {maps}, begin, end, {tasks});\n"


def _maps(shape: Shape, layout: Layout, count: int) -> str:
    """`count` blocks of an image with its halo, as halo.h takes them."""
    _, _, rows, columns, block = layout.physical(shape)
    return f"(tvmcnn_maps){{{', '.join(map(str, (count, rows, columns, block * FLOAT, *layout.halo)))}}}"


def _arguments(step: Step, signature: Signature) -> str:
    return ", ".join(signature.place(place) for place in _shifted(step))


def _shifted(step: Step) -> list[Place]:
    """The places of a step's arguments, the output's behind its halo."""
    first = step.choice.writes.first(step.choice.kernel.output.shape) * FLOAT
    *given, output = step.arguments
    return [*given, replace(output, offset=output.offset + first)]
