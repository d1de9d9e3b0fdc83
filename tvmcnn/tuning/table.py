"""The table of a running search, for a person at a terminal; a line for each gain where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvmcnn.progress import can_draw
from tvmcnn.tuning import Tuned
from tvmcnn.tuning.journal import FAILED, WRONG
from tvmcnn.tuning.problem import short
from tvmcnn.tuning.search import Search, State, Watch

REFRESH = 2  # a second: drawing takes time that others measure
OTHER_LINES = 8  # lines of the terminal that are not the table's rows
WIDE = 110  # columns of a terminal that has room for all heads; another has those of NARROW_COLUMNS
NARROW_COLUMNS = ("kernel", "default µs", "best µs", "gain", "peak", "tried", "may gain µs")
HEADS = ("kernel", "×", "default µs", "best µs", "gain", "GFLOP/s", "peak", "tried", "wrong", "failed", "may gain µs")


def watcher(say: Callable[[str], None], *, live: bool) -> Watch:
    """A live table on standard output, else `say` with a line for every gain."""

    @contextlib.contextmanager
    def watch(search: Search, seconds: float) -> Iterator[None]:
        if not live or not can_draw(sys.stdout):
            search.event = both(search.event, lines(search, say))
            yield
            return
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress
        from rich.text import Text

        console = Console()
        bar = Progress(BarColumn(None), console=console, expand=True)
        task = bar.add_task("", total=seconds)
        start = time.monotonic()

        def picture() -> Group:
            spent = min(seconds, time.monotonic() - start)
            bar.update(task, completed=spent)
            table = _table(search, console.size.height - OTHER_LINES, console.size.width)
            return Group(table, Text(summary(search, seconds - spent)), bar)

        with Live(get_renderable=picture, console=console, refresh_per_second=REFRESH, transient=True):
            yield

    return watch


def both(*receivers: Callable[[Mapping[str, Any]], None]) -> Callable[[Mapping[str, Any]], None]:
    """One that tells all."""

    def tell(entry: Mapping[str, Any]) -> None:
        for receiver in receivers:
            receiver(entry)

    return tell


def lines(search: Search, say: Callable[[str], None]) -> Callable[[Mapping[str, Any]], None]:
    """Receives events and says the gains, and what is lost."""
    best: dict[str, float] = {}

    def tell(entry: Mapping[str, Any]) -> None:
        if entry["event"] == "lost":
            say(f"a place is lost: {entry['reason']}; {entry['left']} left")
        elif entry["event"] == "trial" and entry["outcome"] == WRONG:
            say(f"{entry['at']:7.1f} s  WRONG, never used: {entry['kernel']}: {entry['rule']}, {entry['reason']}")
        elif entry["event"] == "final":
            state = next(each for each in search.states if each.problem.words == entry["kernel"])
            if state.best < best.get(entry["kernel"], float("inf")) * 0.99:
                best[entry["kernel"]] = state.best
                cells = row(state, search.peak)
                say(f"{entry['at']:7.1f} s  {cells[0]}: {cells[3]} µs, default {cells[2]}, {cells[6]} of the peak")

    return tell


def summary(search: Search, left: float) -> str:
    """62 kernels, 411 tried, 0 wrong, 2 failed; 310 s left, about 120 µs of 5100 may still be gained"""
    trials = sum(len(state.log.trials) for state in search.states)
    wrong, failed = (sum(state.log.count(kind) for state in search.states) for kind in (WRONG, FAILED))
    whole = sum(state.problem.count * state.best for state in search.states)
    counts = f"{len(search.states)} kernels, {trials} tried, {wrong} wrong, {failed} failed"
    return f"{counts}; {max(0.0, left):.0f} s left, about {search.gain:.3g} µs of {whole:.4g} may still be gained"


def row(state: State, peak: float) -> tuple[str, ...]:
    """The cells of a kernel, in the order of HEADS."""
    log, best, default = state.log, state.best, state.default_time
    gflops = state.problem.flops / best / 1e3 if best else 0.0
    known = (f"{default:.2f}" if default else "", f"{best:.2f}", f"{default / best:.2f}×" if default else "")
    speed = (f"{gflops:.1f}", f"{gflops / peak:.0%}") if best else ("", "")
    counts = (str(len(log.trials)), *(str(log.count(kind) or "") for kind in (WRONG, FAILED)))
    name = short(state.problem.words)
    return (
        name,
        str(state.problem.count),
        *(known if best else ("", "", "")),
        *speed,
        *counts,
        f"{state.gain(peak):.2g}",
    )


def closing(tuned: Tuned, model: Path, precision: str, *, own: bool) -> Iterator[str]:
    """What a run has come to, kernel by kernel, and what to do with it."""
    for kernel in sorted(tuned.kernels, key=lambda each: -each.count * each.best_us):
        times = f"{kernel.default_us:.2f} -> {kernel.best_us:.2f} µs"
        share = f"{kernel.gflops:.0f} GFLOP/s, {kernel.peak_share:.0%} of the peak, {kernel.rule}"
        yield f"{short(kernel.kernel)}{f' ×{kernel.count}' if kernel.count > 1 else ''}: {times}, {share}"
    tried, wrong, failed = (sum(getattr(k, name) for k in tuned.kernels) for name in ("tried", "wrong", "failed"))
    ended = "nothing is left to try" if tuned.finished else "the same command goes on"
    done = f"{tuned.measured} trials in {tuned.seconds:.0f} s"
    yield f"{done} ({tried} with those of earlier runs; {wrong} wrong, {failed} failed); {ended}"
    if tuned.kernels:
        yield f"kernels: {tuned.default_us:.1f} µs by default, {tuned.best_us:.1f} with the records"
    if tuned.latency is not None:
        before, after = tuned.latency.before, tuned.latency.after
        yield f"network, 1 thread: {before:.1f} µs before, {after:.1f} after: {before / after:.2f} times as fast"
    command = f"tvmcnn compile {model}{f' --precision {precision}' if precision != 'fp32' else ''}"
    yield f"{command} takes the records in {tuned.records} by itself" if own else f"{command} --records {tuned.records}"


def _table(search: Search, height: int, width: int) -> Any:
    from rich.table import Table

    states = sorted(search.states, key=lambda state: -state.gain(search.peak))
    shown: Sequence[State] = states[: max(3, height)]
    heads = HEADS if width >= WIDE else NARROW_COLUMNS
    table = Table(box=None, expand=width < WIDE, pad_edge=False, header_style="bold")
    for name in heads:
        if name == "kernel":  # which gives way to the numbers
            table.add_column(name, ratio=1 if width < WIDE else None, no_wrap=True, overflow="ellipsis")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for state in shown:
        cells = dict(zip(HEADS, row(state, search.peak), strict=True))
        table.add_row(*(cells[name] for name in heads), style="reverse" if state.busy else "")
    if len(shown) < len(states):
        table.caption = f"{len(states) - len(shown)} more, which may gain less"
    return table
