"""The picture of a search: the best so far of each kernel over time, beside what its computed config takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvmcnn.files import written_whole
from tvmcnn.tuning.problem import short
from tvmcnn.tuning.search import State

NAMED = 12  # kernels in the legend: those that take most of the time


def plot(states: Sequence[State], path: Path, title: str) -> None:
    """Write the picture: time on a logarithmic axis, µs relative to the default in the same rounds, all kernels in
    black."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = [state for state in states if state.log.history]
    known.sort(key=lambda state: -state.problem.count * state.best)
    end = max((state.log.history[-1][0] for state in known), default=1.0)
    figure, axes = pyplot.subplots(figsize=(12, 6), layout="constrained")
    for index, state in enumerate(known):
        times, values = steps(state, end)
        label = f"{short(state.problem.words)}{f' ×{state.problem.count}' if state.problem.count > 1 else ''}"
        style = {"color": pyplot.cm.tab20(index), "label": label} if index < NAMED else {"color": "0.85", "zorder": 0}
        axes.step(times, values, where="post", linewidth=1.4, **style)
    moments = sorted({at for state in known for at, _, _ in state.log.history} | {end})
    axes.step(moments, [whole(known, at) for at in moments], "k", where="post", linewidth=2.5, label="all kernels")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g} s"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tuning")
    axes.set_ylabel("time of the best so far; that of the computed config is 1")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if known:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=130)
    pyplot.close(figure)


def steps(state: State, end: float) -> tuple[list[float], list[float]]:
    """When the best changed, and its time relative to the default's."""
    times, best = [0.1], [1.0]
    for at, value, default in state.log.history:
        times.append(at)
        best.append(min(value / default, best[-1]))
    start = max(0.1, state.log.history[0][0])
    return [start, *times[1:], end], [*best, best[-1]]


def whole(states: Sequence[State], at: float) -> float:
    """The time of all kernels at a moment, relative to that of their defaults, which those not tried yet have."""
    now = sum(
        state.problem.count
        * state.default_time
        * min([1.0, *(best / d for t, best, d in state.log.history if t <= at)])
        for state in states
    )
    return now / sum(state.problem.count * state.default_time for state in states)
