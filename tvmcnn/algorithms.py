"""ALGORITHMS: how kernels can be computed, with what each stage must know of it. Needs no TVM.

A choice names an algorithm. The expression of that name is in ops/, the schedules that fit it are in schedule/, and
everything else that depends on the algorithm is a field here: no stage compares names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from tvmcnn import loops, packing, precision, winograd
from tvmcnn.network import VIEW, Array, Choice, Shape

Packing: TypeAlias = Callable[[Choice, Array], Array]  # (choice, ONNX's array) --> as the expression reads it
Constants: TypeAlias = Callable[
    [Choice, Mapping[str, Array]], Iterator[tuple[str, Array]]
]  # all that it reads, by name
Made: TypeAlias = Callable[[Choice], Iterator[tuple[str, Array]]]  # constants that no model has, by name
Loops: TypeAlias = Callable[[Choice, Shape, int], Shape]  # (choice, output in memory, lanes) --> extents, see loops.py
Growth: TypeAlias = Callable[[Mapping[str, Any]], float]  # a config's numbers --> how much larger rounding errors are
Rate: TypeAlias = Callable[[Mapping[str, Any]], float]  # a config's numbers --> the rate of its products, in FMAs'

# By the products that one instruction adds: vpdpbusd's peak, and that of vpmaddwd with an addition, measured on an AMD
# EPYC (Zen 4) beside float32's
TIMES_FMA = {4: 4.0, 2: 1.5}


def _as_a_sum(numbers: Mapping[str, Any]) -> float:
    """No larger than those of the sum as the formula is written."""
    return 1.0


def _by_tile(numbers: Mapping[str, Any]) -> float:
    """What Winograd's transforms of a tile add."""
    return winograd.error_growth(numbers["tile"], numbers.get("kernel", 3))


def _by_fmas(numbers: Mapping[str, Any]) -> float:
    """The rate of float32."""
    return 1.0


def _by_dots(numbers: Mapping[str, Any]) -> float:
    """That of the instruction that adds so many products."""
    return TIMES_FMA.get(numbers["terms"], 1.0)


def _by_factors(numbers: Mapping[str, Any]) -> float:
    """What rounded factors add: those of tensor cores, or of Winograd's planes before they are kernels of their own."""
    if "precision" in numbers:
        return precision.error_growth(numbers["precision"])
    return winograd.error_growth(numbers["winograd"]) if numbers["winograd"] else 1.0


class Makes(Enum):
    """What a kernel's output is to the network."""

    TENSOR = "a tensor of the network"
    COPY = "a tensor in another layout"
    PART = "data that the next kernel of the same convolution goes on with"
    NOTHING = "a tensor that lies in memory which other kernels wrote"


@dataclass(frozen=True)
class Algorithm:
    """How a kernel is computed. `cpu` and `cuda` name the schedules that fit the expression, the usual one first."""

    cpu: Mapping[str, Loops] = field(default_factory=dict)  # with the loops of each that threads share
    cuda: tuple[str, ...] = ()
    weight: Packing | None = None  # the anchor's second operand; None where it is a constant like others, or none
    operand: Packing = packing.by_channel  # every other constant
    made: Made = packing.nothing
    constants: Constants | None = None  # in the place of these three
    packed_by: tuple[str, ...] = ()  # numbers of the config that packing reads
    exact: bool = True  # sums the formula's own terms: `--exact` chooses no other
    keeps: bool = True  # the weight's own elements, which may then be of a half type: `--weights` chooses no other
    growth: Growth = _as_a_sum  # of rounding errors, which `verify` and the tuner allow
    rate: Rate = _by_fmas  # of its products at best
    rounds: str = ""  # to what precision both factors of its products are rounded, as the oracle does then too
    # The largest blocks of channels of bfloat16 that it reads, and that it writes; 0: of none. See narrow_images.py
    reads_narrow: int = 0
    writes_narrow: int = 0
    on_stack: bool = True  # whether its intermediates fit the stack in any schedule
    makes: Makes = Makes.TENSOR
    counted: bool = True  # whether the anchor's products are this kernel's, not those of one before it


FALLBACK = "fallback"  # fits every expression: its loops as they are written, of which threads share none
ALGORITHMS: Mapping[str, Algorithm] = {
    # ---- CPUs: convolutions and products of matrices
    "direct": Algorithm({"direct": loops.direct}, weight=packing.direct, writes_narrow=32),
    "depthwise": Algorithm({"direct": loops.direct}, weight=packing.depthwise, writes_narrow=32),
    "winograd": Algorithm(
        {"winograd": loops.winograd},
        weight=packing.winograd,
        packed_by=("tile", "parts"),
        exact=False,
        keeps=False,
        growth=_by_tile,
        on_stack=False,
    ),
    "streamed": Algorithm(
        {"streamed": loops.streamed}, weight=packing.streamed, exact=False, growth=_by_tile, on_stack=False
    ),
    "bf16": Algorithm(
        {"pairs": loops.pairs},
        weight=packing.pairs,
        rate=lambda numbers: 2.0,
        rounds="bf16",
        reads_narrow=16,
        writes_narrow=16,
        on_stack=False,
    ),
    "amx_bf16": Algorithm(
        {"amx": loops.amx},
        weight=packing.amx_bf16,
        packed_by=("maps",),
        rate=lambda numbers: 16.0,
        rounds="bf16",
        reads_narrow=32,
        writes_narrow=32,
        on_stack=False,
    ),
    "dense_bf16": Algorithm(
        {"dense_pairs": loops.dense},
        weight=packing.dense_pairs,
        operand=packing.by_column,
        packed_by=("width",),
        rate=lambda numbers: 2.0,
        rounds="bf16",
        on_stack=False,
    ),
    "winograd_data": Algorithm(
        {"winograd_data": loops.image_maps}, exact=False, on_stack=False, makes=Makes.PART
    ),
    "columns": Algorithm({"columns": loops.images}, weight=packing.taps),
    "pixels": Algorithm({"pixels": loops.pixels}, weight=packing.as_it_is),
    "few_maps": Algorithm({"few_maps": loops.few_maps}, weight=packing.channels_last),
    "grouped": Algorithm({"rows": loops.none}, weight=packing.as_it_is),
    "dense": Algorithm(
        {"dense": loops.dense}, weight=packing.dense, operand=packing.by_column, packed_by=("width",)
    ),
    "matmul": Algorithm({"matmul": loops.matmul}, operand=packing.as_it_is),
    "conv_images": Algorithm({"images": loops.conv_images}, weight=packing.taps),
    "dense_images": Algorithm({"images": loops.dense_images}, weight=packing.terms),
    # ---- CPUs: the rest of a network in blocks of channels, and rows of reductions
    "resize": Algorithm({"memory": loops.all_but_two}, operand=packing.as_it_is),
    "grid_sample": Algorithm({"memory": loops.sampled}, operand=packing.as_it_is),
    "deform_columns": Algorithm({"memory": loops.sampled}, operand=packing.as_it_is),
    "regions": Algorithm({"rows": loops.sampled}, ("threads",), operand=packing.as_it_is),
    "depth_to_space": Algorithm({"memory": loops.all_but_two}),
    "slice": Algorithm({"memory": loops.all_but_two}),
    "unfold_frames": Algorithm({"memory": loops.all_but_two}),
    "transpose": Algorithm({"memory": loops.all_but_two}),
    "concat": Algorithm({"memory": loops.image_maps}),
    "reorder": Algorithm({"memory": loops.reordered}, makes=Makes.COPY),
    "lanes": Algorithm({"lanes": loops.elements}),
    "softmax": Algorithm({"softmax": loops.softmax}),
    "normalize": Algorithm({"normalize": loops.normalized_rows}, operand=packing.as_it_is),
    VIEW: Algorithm(makes=Makes.NOTHING),  # no code
    # ---- both
    "pool": Algorithm(
        {"pool": loops.image_rows}, ("threads",), made=packing.divisors, reads_narrow=32, writes_narrow=32
    ),
    "global_pool": Algorithm({"pool": loops.image_rows}, ("rows", "threads"), reads_narrow=32),
    "elementwise": Algorithm(
        {"memory": loops.all_but_two}, ("threads",), operand=packing.aligned, reads_narrow=16, writes_narrow=16
    ),
    "recurrent": Algorithm(
        {"recurrent": loops.recurrent}, ("recurrent",), weight=packing.recurrent, operand=packing.as_it_is
    ),
    "plain": Algorithm(
        {"memory": loops.moved, "rows": loops.none}, ("threads", "rows"), operand=packing.as_it_is
    ),
    "dots": Algorithm({"dots": loops.direct}, constants=packing.dots, rate=_by_dots),
    "amx_int8": Algorithm(
        {"amx": loops.amx},
        constants=packing.amx_int8,
        packed_by=("maps",),
        rate=lambda numbers: 32.0,
        on_stack=False,
    ),
    "dense_dots": Algorithm(
        {"dense_dots": loops.dense},
        constants=packing.dense_dots,
        packed_by=("width", "terms", "shift", "narrow"),
        rate=_by_dots,
    ),
    "quantised_blocks": Algorithm({"memory": loops.all_but_two}, operand=packing.several_by_channel),
    "quantised_pool": Algorithm({"pool": loops.image_rows}, operand=packing.as_it_is),
    "quantised": Algorithm(
        {"memory": loops.all_but_two, "rows": loops.rows}, ("threads",), operand=packing.as_it_is
    ),
    "in_order": Algorithm({"in_order": loops.in_order}, ("threads",), operand=packing.as_it_is),
    # ---- CUDA
    "gemm_conv": Algorithm(cuda=("gemm", "mma"), weight=packing.gemm, growth=_by_factors),
    "gemm_dense": Algorithm(cuda=("gemm", "mma"), weight=packing.gemm, growth=_by_factors),
    "gemm_partial": Algorithm(cuda=("gemm", "mma"), weight=packing.gemm, growth=_by_factors, makes=Makes.PART),
    "gemm_sum": Algorithm(cuda=("threads",), counted=False),
    "gemv": Algorithm(cuda=("gemv",), weight=packing.gemv),
    "gemm_words_conv": Algorithm(cuda=("gemm",), constants=packing.gemm_words),
    "gemm_words_partial": Algorithm(cuda=("gemm",), weight=packing.gemm_words_weight, makes=Makes.PART),
    "gemm_words_sum": Algorithm(cuda=("threads",), constants=packing.of_sums, counted=False),
    "gemm_words_dense": Algorithm(cuda=("gemm",), constants=packing.gemm_words),
    "gemv_words": Algorithm(cuda=("gemv",), constants=packing.gemv_words),
    "grouped_conv": Algorithm(cuda=("threads",), weight=packing.as_it_is),
    "winograd_in": Algorithm(cuda=("planes",), exact=False, makes=Makes.PART),
    "winograd_gemm": Algorithm(cuda=("gemm",), weight=packing.planes, exact=False, keeps=False, makes=Makes.PART),
    "winograd_out": Algorithm(cuda=("planes",), exact=False, growth=_by_tile),
    "softmax_along": Algorithm(cuda=("rows", "threads")),
    "whole": Algorithm(cuda=("whole",)),
}  # fmt: skip
