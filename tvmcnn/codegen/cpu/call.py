"""Calls: the C functions through which the chain runs tasks of a kernel, and the statements that do.

static void tvmcnn_k1_conv(const void *frame, char *scratch, int32_t begin, int32_t end) {
  const lenet5_frame *f = frame;
  tvmcnn_conv_1f0c…(f->input, W(0), W(640), A(0), scratch, begin, end);
}
...
  tvmcnn_parallel(tvmcnn_k1_conv, frame, 28, threads, scratch, 0);
"""

from __future__ import annotations

from dataclasses import replace

from tvmcnn.choose.cpu.tasks import cut_by_rows
from tvmcnn.codegen.jobs import Symbols
from tvmcnn.codegen.signature import Signature
from tvmcnn.network import ALIGNMENT, Place, Step, round_up, stored_bytes


def kernel_function(step: Step, signature: Signature, symbols: Symbols) -> str:
    """A C function that calls one kernel with its arguments: what `tvmcnn_parallel` takes."""
    call = f"{symbols.kernels[step.choice.name]}({_arguments(step, signature)}, scratch, begin, end);"
    return f"""static void {_thunk(step)}(const void *frame, char *scratch, int32_t begin, int32_t end) {{
  const {signature.name}_frame *f = frame;
  (void)f;
{_ends(step)}{_halo(step)}  {call}
}}"""


def _thunk(step: Step) -> str:
    return f"tvmcnn_{step.choice.name}"


def call(step: Step) -> str:
    """The statement that runs a step."""
    choice, scratch = step.choice, round_up(step.choice.scratch_bytes, ALIGNMENT)
    if choice.tasks > 1:
        return f"tvmcnn_parallel({_thunk(step)}, frame, {choice.tasks}, threads, scratch, {scratch});"
    return f"{_thunk(step)}(frame, scratch, 0, 1);"


def _halo(step: Step) -> str:
    """The statement that fills the tasks' share of the halo of a step's output, which other tensors may have had the
    place of: nothing if it has none.
    """
    choice = step.choice
    if choice.makes == choice.writes:
        return ""
    shape = choice.kernel.output.shape
    function = "tvmcnn_halo_by_rows" if cut_by_rows(choice) else "tvmcnn_halo"
    images, blocks, rows, columns, block = choice.writes.physical(shape)
    numbers = (
        images * blocks,
        rows,
        columns,
        block * choice.writes.item_bytes(choice.kernel.output.dtype),
        *choice.writes.halo,
        choice.writes.fill,
    )
    maps = f"(tvmcnn_maps){{{', '.join(map(str, numbers))}}}"
    return f"  {function}(A({step.arguments[-1].offset}), {maps}, begin, end, {choice.tasks});\n"


def _ends(step: Step) -> str:
    """The statements by which the first task and the last zero the images before and behind those of a step."""
    offset, (before, after) = step.arguments[-1].offset, step.choice.end_bytes
    size = stored_bytes(step.choice.kernel.output, step.choice.writes)
    return "".join(
        f"  if ({test}) memset(A({place}), 0, {count});\n"
        for test, place, count in (
            ("begin == 0", offset - before, before),
            (f"end == {step.choice.tasks}", offset + size, after),
        )
        if count
    )


def _arguments(step: Step, signature: Signature) -> str:
    return ", ".join(signature.place(place) for place in _shifted(step))


def _shifted(step: Step) -> list[Place]:
    """The places of a step's arguments, the output's behind its halo."""
    made = step.choice.kernel.output
    layout = step.choice.writes
    first = layout.first(made.shape) * layout.item_bytes(made.dtype)
    *given, output = step.arguments
    return [*given, replace(output, offset=output.offset + first)]
