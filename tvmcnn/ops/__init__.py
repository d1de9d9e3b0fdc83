"""Declare: a Step becomes a PrimFunc from tensor expressions, one expression an operator, algorithm and layout.

Every operator has an expression in plain layout, for any rank and dtype (PLAIN); those that CNNs spend their time in
have more, in the layouts that suit a CPU's vectors (EXPRESSIONS).

Nothing here names a target, a thread or a loop order: that is schedule/'s. Blocks are named on purpose, for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tvm_ffi
from tvm import te, tirx

from tvmcnn.network import Shape, Step
from tvmcnn.ops import (
    amx,
    bf16,
    boxes,
    compact,
    conv,
    dense,
    dense_bf16,
    dense_dots,
    direct,
    dots,
    elementwise,
    few_maps,
    fill,
    gather,
    images,
    in_order,
    matmul,
    move,
    norm,
    pool,
    quantised,
    recurrent,
    reduce,
    regions,
    resize,
    sample,
    scatter,
    shape,
    top_k,
    windows,
    winograd,
)
from tvmcnn.ops.cuda import gemm, gemm_words, single_launch, winograd_planes
from tvmcnn.ops.operands import Operands, inlined
from tvmcnn.ops.recurrent import Recurrence
from tvmcnn.ops.tiles import Tiled, stored
from tvmcnn.ops.unfused import hidden_tensors

# Operators in plain layout: (node, the Tensor that it makes, *its operands) --> that tensor, a stage named "out"
PLAIN: dict[str, Callable[..., te.Tensor]] = {
    **shape.EXPRESSIONS,
    **move.EXPRESSIONS,
    **gather.EXPRESSIONS,
    **scatter.EXPRESSIONS,
    **fill.EXPRESSIONS,
    **matmul.EXPRESSIONS,
    **windows.EXPRESSIONS,
    **reduce.EXPRESSIONS,
    **resize.EXPRESSIONS,
    **sample.EXPRESSIONS,
    **norm.EXPRESSIONS,
    **quantised.EXPRESSIONS,
}


def plain(step: Step, given: Operands) -> te.Tensor:
    """Any operator of PLAIN: operands and output in plain layout, under their ONNX shapes and dtypes."""
    node, output = step.choice.kernel.anchor, step.choice.kernel.output
    return PLAIN[node.op](node, output, *(given.tensor(name) for name in node.inputs))


# Operators whose kernels are loops in order
STEPS = {**in_order.STEPS, **scatter.STEPS, **top_k.STEPS, **compact.STEPS, **boxes.STEPS}

EXPRESSIONS: dict[str, Callable[[Step, Operands], te.Tensor | Tiled | Recurrence | tirx.PrimFunc]] = {
    "direct": direct.direct,
    "bf16": bf16.bf16,
    "winograd": winograd.winograd,
    "winograd_data": winograd.winograd_data,
    "streamed": winograd.streamed,
    "depthwise": direct.depthwise,
    "columns": conv.columns,
    "pixels": conv.pixels,
    "few_maps": few_maps.few_maps,
    "grouped": conv.grouped,
    "dense": dense.dense,
    "matmul": matmul.matmul_by_tiles,
    "gemm_conv": gemm.gemm_conv,
    "gemm_partial": gemm.gemm_partial,
    "gemm_sum": gemm.gemm_sum,
    "winograd_in": winograd_planes.winograd_in,
    "winograd_gemm": winograd_planes.winograd_gemm,
    "winograd_out": winograd_planes.winograd_out,
    "grouped_conv": gemm.grouped_conv,
    "gemm_dense": gemm.gemm_dense,
    "gemv": gemm.gemv,
    "gemm_words_conv": gemm_words.gemm_words_conv,
    "gemm_words_partial": gemm_words.gemm_words_partial,
    "gemm_words_sum": gemm_words.gemm_words_sum,
    "gemm_words_dense": gemm_words.gemm_words_dense,
    "gemv_words": gemm_words.gemv_words,
    "conv_images": images.conv_images,
    "dense_images": images.dense_images,
    "pool": pool.pool,
    "global_pool": pool.global_pool,
    "elementwise": elementwise.elementwise,
    "plain": plain,
    "quantised": plain,
    "quantised_blocks": quantised.in_blocks,
    "quantised_pool": pool.pool,
    "dots": dots.dots,
    "amx_int8": amx.amx,
    "amx_bf16": amx.amx,
    "dense_dots": dense_dots.dense_dots,
    "dense_bf16": dense_bf16.dense_bf16,
    "resize": resize.resize_blocks,
    "grid_sample": sample.grid_sample_blocks,
    "deform_columns": sample.deform_columns_blocks,
    "regions": regions.regions,
    "depth_to_space": move.depth_to_space_blocks,
    "slice": move.slice_blocks,
    "unfold_frames": move.unfold_frames_blocks,
    "lanes": reduce.in_lanes,
    "softmax": norm.softmax,
    "normalize": norm.normalize,
    "softmax_along": norm.softmax_along,
    "recurrent": recurrent.recurrent,
    "concat": shape.concat_blocks,
    "reorder": shape.reorder,
    "transpose": shape.transpose_blocks,
    "in_order": functools.partial(in_order.in_order, STEPS),
}
EXPRESSIONS["whole"] = functools.partial(single_launch.whole, EXPRESSIONS)


def declare(step: Step) -> tirx.PrimFunc:
    """The PrimFunc of a step: parameters are its inputs, its packed constants and its output, all buffers.

    One of an LSTM, GRU or RNN is a single step over time, around which codegen/over_time.py puts the loop.
    """
    given = Operands.of(step)
    output = EXPRESSIONS[step.choice.algorithm](step, given)
    if isinstance(output, tirx.PrimFunc):
        return output
    if isinstance(output, Recurrence):
        return output.function(given.parameters)
    func = te.create_prim_func([*given.parameters, output.tensor if isinstance(output, Tiled) else output])
    func = func if step.choice.expanded else inlined(func)
    return _with_strides(stored(func, output) if isinstance(output, Tiled) else func, step)


def declare_open(step: Step) -> tirx.PrimFunc:
    """The open variant of a step: it stores every ONNX tensor that the fused kernel hides, each in plain layout."""
    given = Operands.of(step)
    func = inlined(te.create_prim_func([*given.parameters, *hidden_tensors(step, given)]))
    return _with_strides(func, step, opened=True)


def _with_strides(func: tirx.PrimFunc, step: Step, *, opened: bool = False) -> tirx.PrimFunc:
    """Give buffers whose elements are further apart their strides: images in a concatenation, rows between halos."""
    choice = step.choice
    for position, (layout, tensor) in enumerate(zip(choice.reads, choice.sources, strict=True)):
        if layout.pitch:
            func = _strided(func, position, layout.strides(tensor.shape))
    if not opened and choice.writes.block > 1 and (choice.writes.pitch or choice.writes != choice.makes):
        func = _strided(func, len(func.params) - 1, choice.writes.strides(choice.kernel.output.shape))
    return func


def _strided(func: tirx.PrimFunc, position: int, strides: Shape) -> tirx.PrimFunc:
    old = func.params[position]
    new = tirx.decl_buffer(old.shape, old.dtype, old.name, strides=strides)
    body = tvm_ffi.structural_map(func.body, (tirx.Var, lambda var: new if var.same_as(old) else var), order="post")
    params = [new if index == position else param for index, param in enumerate(func.params)]
    return tirx.PrimFunc(params, body, func.ret_type, func.attrs)
