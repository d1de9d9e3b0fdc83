"""The plots of the page, as SVG: the roofline, and the arena over time. Marks are links to the kernels' rows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvmcnn.report.facts import Facts, KernelFact
from tvmcnn.report.labels import AWAY, Box, along, around, beside, shortened
from tvmcnn.report.quantities import counted

INK = "#33383f"
COLOURS = {  # by algorithm; Okabe and Ito's, which the colour-blind can tell apart
    "direct": "#0072b2",
    "depthwise": "#56b4e9",
    "winograd": "#d55e00",
    "streamed": "#e69f00",
    "dense": "#009e73",
    "columns": "#cc79a7",
    "dots": "#f0e442",
}
OTHER = "#8a9199"
NAMED = 8  # kernels that the roofline names: those that take most of the time
LONGEST, FEWEST = 24, 4  # characters of a tensor's name in its box
MARGIN = 2  # pixels beside it: a browser's letters may be wider than matplotlib's


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {
        "figure.dpi": 72,  # as an SVG has: a pixel is a point
        "svg.fonttype": "none",  # text stays text
        "text.parse_math": False,  # a tensor may be named $x$
        "svg.hashsalt": "tvmcnn",  # the same figures give the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
        axes.spines[["top", "right"]].set_visible(False)
        try:
            yield figure, axes
        finally:
            pyplot.close(figure)


def _svg(figure: Any, label: str) -> str:
    """The figure as an element that shrinks with the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="plot" role="img" aria-label="{label}">{rest}'


def roofline(facts: Facts) -> str:
    """GFLOP/s of each kernel over the FLOP that it does for each byte, under the machine's two limits.

    They are those of all threads; a second roof is that of one, where some kernels have no more.
    """
    kernels = [kernel for kernel in facts.kernels if kernel.flop and kernel.microseconds]
    limits = [limit for limit in facts.limits if limit.threads in (1, facts.threads) and limit.gflops]
    if not kernels or not limits:
        return ""
    with _figure(9.6, 4.6) as (figure, axes):
        total = sum(kernel.microseconds or 0.0 for kernel in kernels)
        low = min(0.3, *(kernel.flop / kernel.bytes for kernel in kernels)) / 2
        high = max(300.0, *(kernel.flop / kernel.bytes for kernel in kernels)) * 2
        roofs = []
        for limit in reversed(limits):
            corners = [
                (low, low * limit.gigabytes),
                (limit.gflops / limit.gigabytes, limit.gflops),
                (high, limit.gflops),
            ]
            label = (
                f"{counted(limit.threads)}: FMA peak {limit.gflops:.0f} GFLOP/s,\ncopying {limit.gigabytes:.0f} GB/s"
            )
            style = "-" if limit is limits[-1] else "--"
            axes.plot(*zip(*corners, strict=True), style, color=INK, linewidth=1.5, label=label)
            roofs.append(corners)
        marks = []
        for kernel in kernels:
            x, y = kernel.flop / kernel.bytes, kernel.gflops or 0.0
            size = 30 + 600 * (kernel.microseconds or 0.0) / total
            mark = axes.scatter(
                [x], [y], s=size, color=COLOURS.get(kernel.algorithm, OTHER), alpha=0.75, edgecolors="white"
            )
            mark.set_urls([f"#{kernel.name}"])
            marks.append((kernel, x, y, size))
        for algorithm in dict.fromkeys(kernel.algorithm for kernel in kernels):
            axes.scatter([], [], color=COLOURS.get(algorithm, OTHER), label=algorithm)
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, position: f"{value:g}")  # matplotlib's own is TeX
            axis.set_minor_formatter(lambda value, position: "")
        axes.set_xlim(low, high)
        axes.set_ylim(top=2 * max(*(limit.gflops for limit in limits), *(kernel.gflops or 0.0 for kernel in kernels)))
        axes.set_xlabel("FLOP for each byte that the kernel reads or writes")
        axes.set_ylabel("GFLOP/s")
        axes.grid(alpha=0.25)
        _settle(figure)
        _name(figure, axes, sorted(marks, key=lambda mark: -mark[3]), roofs)
        return _svg(figure, "Roofline: the kernels' GFLOP/s under the machine's limits")


def _name(figure: Any, axes: Any, marks: Sequence[tuple[KernelFact, float, float, float]], roofs: Any) -> None:
    """Names beside the largest marks, clear of each other, of all marks and of the roofs; with a line to the mark where
    the name is not next to it."""
    places = [axes.transData.transform((x, y)) for _, x, y, _ in marks]
    boxes = [around(x, y, size**0.5 / 2) for (x, y), (*_, size) in zip(places, marks, strict=True)]
    taken = [
        *boxes,
        *(box for corners in roofs for box in along([tuple(axes.transData.transform(c)) for c in corners])),
    ]
    inside = Box(*axes.get_window_extent().extents)
    for (kernel, x, y, _), mark in list(zip(marks, boxes, strict=True))[:NAMED]:
        text = axes.text(0, 0, kernel.name, fontsize=8)
        extent = _extent(figure, text)
        text.remove()
        box = beside(mark, extent.right - extent.left, extent.top - extent.bottom, taken, inside)
        if box is None:
            continue
        taken.append(box)
        line = None if mark.grown(AWAY[0] + 1).overlaps(box) else {"arrowstyle": "-", "color": OTHER, "linewidth": 0.7}
        axes.annotate(
            kernel.name, (x, y), ((box.left + box.right) / 2, (box.bottom + box.top) / 2), textcoords="figure pixels",
            ha="center", va="center", fontsize=8, arrowprops=line,
        )  # fmt: skip


def arena(facts: Facts) -> str:
    """Which tensor has which bytes of the arena, from the kernel that writes it to the last that reads it."""
    if not facts.held:
        return ""
    from matplotlib.patches import Rectangle

    unit, scale = ("MB", 1e6) if facts.arena_bytes >= 1e6 else ("KB", 1e3)
    with _figure(8.6, 4.2) as (figure, axes):
        span = max(last for *_, last in facts.held) + 1
        drawn = []
        for index, (name, offset, size, first, last) in enumerate(facts.held):
            place, width, height = (first - 0.5, offset / scale), last - first + 1, size / scale
            url = f"#{_maker(facts, first)}"
            box = Rectangle(place, width, height, color=f"C{index % 10}", alpha=0.6, linewidth=0, url=url)
            drawn.append((name, axes.add_patch(box)))
        axes.axhline(facts.arena_lower_bound / scale, color=INK, linestyle="--", linewidth=1)
        bound = axes.annotate(
            f"no plan needs less than {facts.arena_lower_bound / scale:.3g} {unit}",
            (span - 0.5, facts.arena_lower_bound / scale),
            ha="right",
            va="bottom",
            fontsize=9,
        )
        axes.set_xlim(-0.5, span - 0.5)
        axes.set_ylim(0, 1.12 * max(facts.arena_bytes, facts.arena_lower_bound) / scale)
        axes.set_xlabel("kernel")
        axes.set_ylabel(f"{unit} of the arena")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _settle(figure)
        taken = _extent(figure, bound)
        for name, box in drawn:
            _write_into(figure, axes, name, _extent(figure, box), taken)
        return _svg(figure, "Arena: which tensor has which bytes while which kernel runs")


def _write_into(figure: Any, axes: Any, name: str, box: Box, taken: Box) -> None:
    """As much of the end of a name as fits into a box, in its middle; nothing where that says nothing."""
    place = ((box.left + box.right) / 2, (box.bottom + box.top) / 2)
    room = Box(box.left + MARGIN, box.bottom, box.right - MARGIN, box.top)
    for most in range(min(len(name), LONGEST), FEWEST - 1, -1):
        text = axes.annotate(
            shortened(name, most), (0, 0), place, textcoords="figure pixels", ha="center", va="center", fontsize=7
        )
        extent = _extent(figure, text)
        if room.contains(extent) and not extent.overlaps(taken):
            return
        text.remove()
        if len(name) <= FEWEST:
            return


def _settle(figure: Any) -> None:
    """Lay the figure out, for good: what is added knows where the rest is."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _extent(figure: Any, artist: Any) -> Box:
    return Box(*artist.get_window_extent(figure.canvas.get_renderer()).extents)


def _maker(facts: Facts, index: int) -> str:
    return facts.kernels[index].name if index < len(facts.kernels) else ""
