"""What bench_peers.py found, as values for programs and as tables for people."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peers import PEERS


@dataclass(frozen=True)
class Time:
    """µs a call: the median of the rounds, and the quartiles."""

    median: float
    first_quartile: float
    third_quartile: float

    @staticmethod
    def of(samples: Sequence[float]) -> Time:
        """The figures of many rounds."""
        return Time(*(float(value) for value in np.percentile(samples, [50, 25, 75])))


@dataclass(frozen=True)
class Times:
    """The two calls."""

    plain: Time
    bound: Time


@dataclass(frozen=True)
class PeerTimes:
    """A peer's times and the difference of its outputs to ours, of the largest; or why there are none."""

    times: Times | None = None
    difference: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Layer:
    """One kernel, timed by itself, beside the roofline of as many threads: the FMA peak, and the bandwidth of what no
    cache holds.

    It is no law: operations that a fast algorithm saves count as done, and bytes that lie in a cache as moved.
    """

    kernel: str
    nodes: str
    algorithm: str
    rule: str
    tier: str
    microseconds: float
    share: float  # of all kernels' time
    gflops: float
    threads: int  # that share its tasks
    peak_share: float
    gbs: float
    bound_microseconds: float  # no faster by the roofline
    bound_by: str  # "compute", "memory", or "cache": by memory, were its bytes not in a cache; "" for a view


@dataclass(frozen=True)
class Row:
    """One network at one batch size; ratios above 1 where tvmcnn is faster than the better peer."""

    model: str
    batch: int
    inputs: Mapping[str, Sequence[int]]
    kernels: int
    rounds: int
    ours: Times
    peers: Mapping[str, PeerTimes]
    gflops: float  # of our bound call, from the multiply-accumulates of convolutions and matrix products
    peak: float  # GFLOP/s of fused multiply-adds on as many threads, in the same rounds
    copy_gbs: float  # read and written by a copy on as many threads, in the same rounds
    layers: Sequence[Layer] = field(default=())

    @property
    def peak_share(self) -> float:
        """Share of the FMA peak."""
        return self.gflops / self.peak

    def better(self, call: str) -> str:
        """The peer whose `plain` or `bound` call is the fastest; "" if there is none."""
        medians = {name: getattr(peer.times, call).median for name, peer in self.peers.items() if peer.times}
        return min(medians, key=lambda name: medians[name], default="")

    def ratio(self, call: str) -> float | None:
        """How many times as long the better peer takes; None if there is none."""
        if not (name := self.better(call)):
            return None
        times = self.peers[name].times
        assert times is not None
        return float(getattr(times, call).median / getattr(self.ours, call).median)

    def as_json(self) -> dict[str, Any]:
        """For programs; times in µs."""
        ratios = {
            call: {"ratio": self.ratio(call), "better_peer": self.better(call) or None} for call in ("plain", "bound")
        }
        return {**dataclasses.asdict(self), "peak_share": self.peak_share, "ratios": ratios}


class Table:
    """Lines of the same columns, for a terminal: they may be printed before the next is known."""

    def __init__(self, heads: Sequence[str], texts: int, widths: Sequence[int]) -> None:
        self.heads, self.texts = heads, texts  # the first `texts` columns are words, the others numbers
        self.widths = [max(width, *map(len, _two_lines(head))) for head, width in zip(heads, widths, strict=True)]

    def heading(self) -> str:
        """The heads in two lines, each cut at its first space."""
        return "\n".join(self.line(part) for part in zip(*map(_two_lines, self.heads), strict=True))

    def line(self, cells: Sequence[str]) -> str:
        """One line."""
        aligned = [
            f"{cell:<{width}}" if column < self.texts else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(cells, self.widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()


def heads(peers: Sequence[str]) -> list[str]:
    """The columns of the main table; times are µs."""
    plain = ["net(x)", *(f"{name} {PEERS[name].plain}" for name in peers), "ratio"]
    bound = ["net bound", *(f"{name} {PEERS[name].bound}" for name in peers), "ratio"]
    return ["network", *plain, *bound, "GFLOP/s", "FMA peak", "share", "copy GB/s"]


def cells(row: Row, peers: Sequence[str]) -> list[str]:
    """One line of the main table."""
    found = [row.model]
    for call in ("plain", "bound"):
        times = [row.ours, *(row.peers[name].times for name in peers)]
        found += ["failed" if time is None else _microseconds(getattr(time, call).median) for time in times]
        ratio = row.ratio(call)
        found.append("" if ratio is None else f"{ratio:.2f}")
    return [*found, f"{row.gflops:.1f}", f"{row.peak:.1f}", f"{row.peak_share:.0%}", f"{row.copy_gbs:.1f}"]


LAYER_TEXTS = 6
LAYER_HEADS = ["kernel", "nodes", "algorithm", "rule", "tier", "bound by"]
LAYER_HEADS += ["µs", "share", "GFLOP/s", "of peak", "GB/s", "bound µs"]


def layer_cells(layer: Layer) -> list[str]:
    """One line of the table of kernels."""
    words = [layer.kernel, layer.nodes, layer.algorithm, layer.rule, layer.tier, layer.bound_by]
    rates = [f"{layer.gflops:.1f}", f"{layer.peak_share:.0%}"] if layer.gflops else ["", ""]
    times = [f"{layer.microseconds:.2f}", f"{layer.share:.1%}"]
    return [*words, *times, *rates, f"{layer.gbs:.1f}" if layer.gbs else "", f"{layer.bound_microseconds:.2f}"]


def layer_lines(row: Row) -> list[str]:
    """The kernels of one network beside the roofline, for a terminal."""
    found = [layer_cells(layer) for layer in row.layers]
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    table = Table(LAYER_HEADS, LAYER_TEXTS, widths)
    total = sum(layer.microseconds for layer in row.layers)
    sums = f"kernels {_microseconds(total)} µs one by one, {_microseconds(row.ours.bound.median)} µs in one call"
    title = f"{row.model}, {sums}, FMA peak {row.peak:.1f} GFLOP/s, copy {row.copy_gbs:.1f} GB/s"
    return [title, table.heading(), *map(table.line, found)]


def markdown(header: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The tables, the quartiles left to the JSON, and what they were measured with."""
    peers = list(header["peers"])
    lines = _markdown_table(heads(peers), 1, [cells(row, peers) for row in rows])
    for row in rows:
        lines += [f"\n{row.model}: {name} failed: {peer.reason}" for name, peer in row.peers.items() if peer.reason]
    lines += ["", f"Times are medians in µs, ratios to the better peer. {'. '.join(header_lines(header))}."]
    for row in rows:
        if row.layers:
            lines += ["", f"## {row.model}", ""]
            lines += _markdown_table(LAYER_HEADS, LAYER_TEXTS, [layer_cells(layer) for layer in row.layers])
    return "\n".join(lines) + "\n"


def header_lines(header: Mapping[str, Any]) -> list[str]:
    """Versions, machine and notes."""
    beside = " and ".join(f"{name} {version}" for name, version in header["peers"].items()) or "nobody"
    threads = f"{header['threads']} thread{'' if header['threads'] == 1 else 's'} of {header['cores']} cores"
    lines = [f"tvmcnn {header['tvmcnn']} for {header['target']} beside {beside}; {threads}, {header['cpu']}"]
    lines.append(f"net bound is {header['bound_call']}")
    if header["onednn_max_cpu_isa"]:
        lines.append(f"ONEDNN_MAX_CPU_ISA={header['onednn_max_cpu_isa']}")
    return [*lines, *header["notes"]]


def _markdown_table(heads: Sequence[str], texts: int, lines: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---"] * texts + ["--:"] * (len(heads) - texts)
    return [f"| {' | '.join(line)} |" for line in (heads, rule, *lines)]


def _two_lines(head: str) -> tuple[str, str]:
    above, space, below = head.partition(" ")
    return (above, below) if space else ("", head)


def _microseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
