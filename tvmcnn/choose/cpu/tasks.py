"""Tasks: the independent parts of a kernel's work, which threads share. A kernel too small for that has one.

How a thread gets its rows:

    loops.py        says which outer loops a schedule has
    row_bands.py    may cut the rows first, so that each thread keeps to its own
    tasks.py        counts the tasks: how many of the loops are worth sharing
    schedule/x86/   makes those loops one parallel loop: `shared`
    codegen/cpu/    llvm.py gives the kernel `begin` and `end`, call.py calls it
    native/pool.c   deals the ranges while the network runs
"""

from __future__ import annotations

import itertools

from tvmcnn import loops
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.configs import DirectConfig, PairsConfig, WinogradConfig
from tvmcnn.fuse import multiply_accumulates
from tvmcnn.network import FLOAT32, Choice, Network, Shape, moved_bytes
from tvmcnn.targets import Target

ENOUGH_TASKS = 64  # tasks: with fewer outer loops in one, less of its index is a division
MIN_MICROSECONDS = 20.0  # µs of work: a launch costs 0.2 µs, and a worker's cache must fetch what the caller's has
GFLOPS, GIGABYTES = 100.0, 10.0  # a second, of one thread: a guess on the slow side costs a launch


def task_count(network: Network, choice: Choice, target: Target) -> int:
    """How many tasks a kernel has: the product of the fewest outer loops that make enough. No result depends on it."""
    if choice.is_view or _microseconds(network, choice) < MIN_MICROSECONDS:
        return 1
    products = list(itertools.accumulate(outer_loops(choice, target), int.__mul__, initial=1))
    return next((product for product in products if product >= ENOUGH_TASKS), products[-1])


def _microseconds(network: Network, choice: Choice) -> float:
    return max(2 * multiply_accumulates(network, choice.kernel) / GFLOPS, moved_bytes(choice) / GIGABYTES) / 1e3


def outer_loops(choice: Choice, target: Target) -> Shape:
    """Extents of the loops around a kernel's tiles, outermost first, as its rule makes them; () if none is shared."""
    extents = ALGORITHMS[choice.algorithm].cpu.get(choice.rule, loops.none)
    return extents(choice, choice.makes.physical(choice.kernel.output.shape), target.lanes(FLOAT32))


def cut_by_rows(choice: Choice) -> bool:
    """True where consecutive tasks make consecutive rows of an image; otherwise they make its maps."""
    config = choice.config
    if isinstance(config, DirectConfig | PairsConfig):
        return config.bands > 1
    alone = isinstance(config, WinogradConfig) and config.parts == choice.kernel.output.shape[0] == 1
    return alone and choice.tasks > 1
