"""The plots of the page, as SVG: the roofline, and the arena over time. Marks are links to the kernels' rows."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvmcnn.report.facts import Facts

INK = "#33383f"
COLOURS = {  # by algorithm; Okabe and Ito's, which the colour-blind can tell apart
    "direct": "#0072b2",
    "depthwise": "#56b4e9",
    "winograd": "#d55e00",
    "streamed": "#e69f00",
    "dense": "#009e73",
    "columns": "#cc79a7",
}
OTHER = "#8a9199"
NAMED = 5  # kernels that the roofline names: those that take most of the time


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Any]]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    style = {
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
    """GFLOP/s of each kernel over the FLOP that it does for each byte, under the machine's two limits."""
    kernels = [kernel for kernel in facts.kernels if kernel.flop and kernel.microseconds]
    if not kernels or not facts.peak_gflops or not facts.copy_gigabytes:
        return ""
    with _figure(8.6, 4.6) as (figure, axes):
        total = sum(kernel.microseconds or 0.0 for kernel in kernels)
        low = min(0.3, *(kernel.flop / kernel.bytes for kernel in kernels))
        high = max(300.0, *(kernel.flop / kernel.bytes for kernel in kernels))
        ridge = facts.peak_gflops / facts.copy_gigabytes
        axes.plot(
            [low / 2, ridge, high * 2],
            [low / 2 * facts.copy_gigabytes, facts.peak_gflops, facts.peak_gflops],
            color=INK,
            linewidth=1.5,
        )
        axes.annotate(
            f"FMA peak {facts.peak_gflops:.0f} GFLOP/s", (high * 2, facts.peak_gflops), ha="right", va="bottom"
        )
        axes.annotate(
            f"copying {facts.copy_gigabytes:.0f} GB/s",
            (low, low * facts.copy_gigabytes),
            xytext=(8, -4),
            textcoords="offset points",
            va="top",
            fontsize=9,
        )
        slow = sorted(kernels, key=lambda kernel: -(kernel.microseconds or 0.0))[:NAMED]
        for kernel in kernels:
            x, y = kernel.flop / kernel.bytes, kernel.gflops or 0.0
            size = 30 + 600 * (kernel.microseconds or 0.0) / total
            mark = axes.scatter(
                [x], [y], s=size, color=COLOURS.get(kernel.algorithm, OTHER), alpha=0.75, edgecolors="white"
            )
            mark.set_urls([f"#{kernel.name}"])
            if kernel in slow:
                axes.annotate(kernel.name, (x, y), xytext=(6, -11), textcoords="offset points", fontsize=8)
        for algorithm in dict.fromkeys(kernel.algorithm for kernel in kernels):
            axes.scatter([], [], color=COLOURS.get(algorithm, OTHER), label=algorithm)
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low / 2, high * 2)
        axes.set_ylim(top=2 * max(facts.peak_gflops, *(kernel.gflops or 0.0 for kernel in kernels)))
        axes.set_xlabel("FLOP for each byte that the kernel reads or writes")
        axes.set_ylabel("GFLOP/s")
        axes.grid(alpha=0.25)
        return _svg(figure, "Roofline: the kernels' GFLOP/s under the machine's limits")


def arena(facts: Facts) -> str:
    """Which tensor has which bytes of the arena, from the kernel that writes it to the last that reads it."""
    if not facts.held:
        return ""
    from matplotlib.patches import Rectangle

    unit, scale = ("MB", 1e6) if facts.arena_bytes >= 1e6 else ("KB", 1e3)
    with _figure(8.6, 4.2) as (figure, axes):
        span = max(last for *_, last in facts.held) + 1
        for index, (name, offset, size, first, last) in enumerate(facts.held):
            colour = f"C{index % 10}"
            place = (first - 0.5, offset / scale)
            axes.add_patch(
                Rectangle(
                    place,
                    last - first + 1,
                    size / scale,
                    color=colour,
                    alpha=0.6,
                    linewidth=0,
                    url=f"#{_maker(facts, first)}",
                )
            )
            if size > 0.06 * facts.arena_bytes and (last - first + 1) * 90 > 3.2 * len(name[-18:]) * span / 10:
                axes.annotate(
                    name[-18:], ((first + last) / 2, (offset + size / 2) / scale), ha="center", va="center", fontsize=7
                )
        axes.axhline(facts.arena_lower_bound / scale, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
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
        return _svg(figure, "Arena: which tensor has which bytes while which kernel runs")


def _maker(facts: Facts, index: int) -> str:
    return facts.kernels[index].name if index < len(facts.kernels) else ""
