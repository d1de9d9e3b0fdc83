"""Problems: the distinct kernels of a network that have a space, each with what its candidates must compute.

The oracle is NumPy, node by node on seeded input with outliers, and shares nothing with the expressions and rules that
are tried.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.check.bounds import Follow, bounds_of, largest
from tvmcnn.check.random_inputs import drawn
from tvmcnn.choose.cpu.defaults import winograd_fits
from tvmcnn.choose.cpu.row_bands import in_one_band
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.configs import CONFIGS, Config, StreamedConfig
from tvmcnn.fuse import is_depthwise, multiply_accumulates
from tvmcnn.half_weights import rounded
from tvmcnn.network import BYTES, Array, Choice, Layout, Network, Program, Tensor, moved_bytes
from tvmcnn.tuning.oracle import evaluate, knows
from tvmcnn.tuning.space import SPACES
from tvmcnn.winograd import saving

GIGABYTES = 40.0  # a second, from L2: what no kernel here is faster than
HALF_SPACING = 2.0**-8  # of bfloat16, relative to a number


@dataclass(frozen=True)
class Problem:
    """A kernel to tune: in words, the choice by computed defaults, how often the network has it, its FLOP a call.

    Bands are the network's choice: candidates have none, and are measured in as many as the network would cut them in.
    """

    words: str
    network: Network
    choice: Choice
    count: int
    flops: int
    banded: bool  # cut in bands where they pay

    def floor(self, gflops: float) -> float:
        """µs that no candidate undercuts, on a machine of that FMA peak: the roofline."""
        kernel = self.choice.kernel
        numbers = asdict(self.choice.numbers(Config))
        fewer = ALGORITHMS[self.choice.algorithm].rate(numbers)
        if fewer == 1.0 and kernel.anchor.op == "Conv" and winograd_fits(kernel):
            fewer = saving(kernel.anchor["kernel_shape"][0])
        return max(self.flops / fewer / gflops, moved_bytes(self.choice) / GIGABYTES) / 1e3

    @functools.cached_property
    def inputs(self) -> tuple[Array, ...]:
        """One seeded array an input of the kernel, of its logical shape, as it is stored."""
        tensors = self.choice.kernel.inputs[: self._given]
        pairs = enumerate(zip(tensors, self.choice.reads, strict=False))
        return tuple(_drawn(tensor, layout, seed) for seed, (tensor, layout) in pairs)

    @property
    def _given(self) -> int:
        """How many inputs the kernel itself has: a streamed convolution reads one more, that another kernel makes."""
        return len(self.choice.kernel.inputs) - isinstance(self.choice.config, StreamedConfig)

    @functools.cached_property
    def values(self) -> dict[str, Array]:
        """What NumPy computes from the inputs: every tensor of the kernel by its name, in float64."""
        return self._evaluated(lambda name, value: value)

    def _evaluated(self, follow: Follow) -> dict[str, Array]:
        """`values`, each node's shown to `follow` before the next reads it, see bounds.py."""
        values = {name: array.astype(np.float64) for name, array in self._feeds.items()}
        for node in self.choice.kernel.all_nodes:
            rounds = node is self.choice.kernel.anchor and ALGORITHMS[self.choice.algorithm].rounds == "bf16"
            made = evaluate(node, values, self.network.constants, narrow=rounds)
            values[node.output] = follow(node.output, made)
        return values

    @property
    def _feeds(self) -> dict[str, Array]:
        names = (tensor.name for tensor in self.choice.kernel.inputs)  # streamed adds one, which has no array
        return dict(zip(names, self.inputs, strict=False))

    @functools.cached_property
    def expected(self) -> Array:
        """The kernel's output as NumPy computes it."""
        return self.values[self.choice.kernel.nodes[-1].output]

    @functools.cached_property
    def scale(self) -> float:
        """The largest |value| expected, by which errors are told."""
        return largest(self.expected) or 1.0

    def tolerance(self, choice: Choice) -> float:
        """The error that a candidate's algorithm may have, relative to `scale`, see bounds.py: none in integers."""
        if choice.kernel.output.dtype in BYTES:
            return 0.0
        numbers = asdict(choice.config) if choice.config is not None else {}
        stored = HALF_SPACING if choice.writes.narrow else 0.0
        return self._bound(ALGORITHMS[choice.algorithm].growth(numbers)) + stored

    def _bound(self, growth: float) -> float:
        """`tolerance` by the growth of rounding errors; kept, for candidates are many and algorithms few."""
        if growth not in self._bounds:
            kernel = self.choice.kernel
            growths = {kernel.anchor.output: growth} if growth != 1 else {}
            found = bounds_of(self.alone(kernel.name), self._feeds, self._evaluated, growths)
            self._bounds[growth] = found.errors[kernel.nodes[-1].output] / self.scale
        return self._bounds[growth]

    @functools.cached_property
    def _bounds(self) -> dict[float, float]:
        return {}

    def alone(self, name: str) -> Network:
        """The kernel as a network of that name."""
        network, kernel = self.network, self.choice.kernel
        inputs = kernel.inputs[: self._given]
        return Network(name, inputs, (kernel.output,), kernel.all_nodes, network.tensors, network.constants, folded={})

    def forget(self) -> None:
        """Drop the arrays, which come again when they are asked for."""
        for name in ("inputs", "values", "expected", "scale"):
            self.__dict__.pop(name, None)


def problems(program: Program) -> tuple[Problem, ...]:
    """The distinct kernels of a program that have a space and an oracle, in the order that they run."""
    network = program.network
    words = [kernel_words(network, step.choice.kernel) for step in program.steps]
    first = {each: step.choice for each, step in reversed([*zip(words, program.steps, strict=True)])}
    return tuple(
        _problem(network, each, first[each], count)
        for each, count in Counter(words).items()
        if first[each].rule in CONFIGS
        and type(first[each].config) in SPACES
        and all(knows(network, node) for node in first[each].kernel.all_nodes)
    )


def _problem(network: Network, words: str, choice: Choice, count: int) -> Problem:
    whole = in_one_band(choice)
    banded = not is_depthwise(choice.kernel) or choice != whole
    return Problem(words, network, whole, count, 2 * multiply_accumulates(network, choice.kernel), banded)


def _drawn(tensor: Tensor, layout: Layout, seed: int) -> Array:
    """A seeded array: of bytes all that there are, of floats with outliers, in bfloat16 if they are stored so."""
    if tensor.dtype in BYTES:
        limits = np.iinfo(tensor.dtype)
        rng = np.random.default_rng(seed)
        return rng.integers(limits.min, limits.max, tensor.shape, np.dtype(tensor.dtype), endpoint=True)
    array = drawn(tensor, seed)
    return rounded(array, "bf16") if layout.narrow else array


def weights_bytes(program: Program) -> int:
    """Bytes of all packed weights of a program."""
    return sum(constant.size * constant.item_bytes for step in program.steps for constant in step.packed.values())


def short(words: str) -> str:
    """A kernel's words without what is as usual.

    conv 1x6x14x14 16x6x5x5 k5,5 s1,1 p0,0,0,0 d1,1 g1 float32 +bias +relu    -->    conv 1x6x14x14 16x6x5x5 +relu
    """
    usual = ("s1,1", "p0,0,0,0", "d1,1", "g1", "float32", "+bias")
    return " ".join(word for word in words.split() if word not in usual and not word.startswith("k"))
