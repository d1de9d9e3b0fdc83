"""Search: the budget is spent batch by batch, each on the kernel that may still gain most.

    share of the network's time x distance from the roofline, less with every batch that found nothing

A batch is some candidates of one kernel, compiled side by side, then checked and timed while nothing else runs. Those
that may be faster than what the kernel has are measured again in turn with it and with the default; only who wins that
beyond the spread gets the record.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvmcnn.choose.fits import misfit
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.network import Choice, Network
from tvmcnn.targets import Target
from tvmcnn.tuning import space
from tvmcnn.tuning.build import Builder
from tvmcnn.tuning.candidate import Prepared, Preparer
from tvmcnn.tuning.final_round import contenders, winners
from tvmcnn.tuning.journal import FAILED, OK, Journal, Log, Tried, described, trial_entry
from tvmcnn.tuning.measure import Measurer, PlaceLostError
from tvmcnn.tuning.problem import Problem
from tvmcnn.tuning.space import Key, key_of
from tvmcnn.worker_process import LostError

FIRST, BATCH = 6, 10  # candidates of a kernel's first batch and of the others, beside the default
RIVAL = 1.3  # of the best time: rules slower than that need not be measured again with it
# Of the distance to the roofline, what all later batches gained after the first: 3 % in LeNet-5, 16 in ResNet-18 and 11
# in MobileNetV2.
HOPE = 0.1
ATTEMPTS = 3  # attempts to reach a lost place again
PAUSE = 2.0  # seconds before each
GUESS = 0.6  # of the FMA peak, what a kernel reaches of which nothing is known yet

Event = Callable[[Mapping[str, Any]], None]
Watch = Callable[["Search", float], AbstractContextManager[None]]  # shows a search while it runs, and its seconds


@dataclass
class State:
    """One kernel in the search: what is left to try, what is known, who holds its records."""

    problem: Problem
    log: Log
    target: Target
    same: Sequence[Key]  # what any records have for this kernel: to be tried first, whether the grid has it or not
    preferred: Sequence[Key]  # what they have for similar ones: next, if the grid has it
    recorded: Mapping[str, Key]  # by rule what the file of records has from an earlier search
    seed: int
    busy: bool = False
    batches: int = 0
    idle: int = 0  # batches since one gained something
    done: bool = False  # nothing is left to try

    @functools.cached_property
    def order(self) -> list[Choice]:
        """The grid, in the order that it is tried."""
        network, default = self.problem.network, self.problem.choice
        grid = space.ordered(network, default, self.target, self.preferred, self.seed)
        rules = {choice.rule for choice in grid}
        recorded = (key for key in (*self.recorded.values(), *self.same) if key[0] in rules)
        known = [key for key in recorded if not misfit(default.kernel, *key)]
        kept = [space.made(network, default, key, self.target) for key in known]
        return list({key_of(choice): choice for choice in (grid[0], *kept, *grid[1:])}.values())

    @property
    def default(self) -> Key:
        """The computed config, which every other is compared with."""
        return key_of(self.problem.choice)

    def waiting(self) -> Iterator[Choice]:
        """Candidates that have not been tried: the grid in its order, and in turn with it the neighbours of the best.

        Neighbours win 30 % of MobileNetV2's depthwise convolutions of 7 x 7 pixels, whose grid is soon exhausted.
        """
        known, seen = self.log.trials, set[Key]()
        grid = (choice for choice in self.order if key_of(choice) not in known)
        near = (choice for choice in self._near() if key_of(choice) not in known)
        for pair in itertools.zip_longest(grid, near):
            for choice in pair:
                if choice is not None and key_of(choice) not in seen:
                    seen.add(key_of(choice))
                    yield choice

    def _near(self) -> Iterator[Choice]:
        """Neighbours of the holders of the records, those of the fastest first."""
        for key in sorted(self.log.held.values(), key=lambda key: self.log.finals[key].median):
            choice = space.made(self.problem.network, self.problem.choice, key, self.target)
            yield from space.neighbours(self.problem.network, choice, self.target)

    @property
    def best(self) -> float:
        """µs of the fastest record; 0.0 before there is one."""
        return min((self.log.finals[key].median for key in self.log.held.values()), default=0.0)

    @property
    def default_time(self) -> float:
        """µs of the default in the last final with it; 0.0 before there was one."""
        final = self.log.finals.get(self.default)
        return final.median if final is not None else 0.0

    def gain(self, peak: float) -> float:
        """µs of the network's time that more candidates are expected to save."""
        best = self.best or self.problem.flops / (GUESS * peak) / 1e3
        distance = max(0.0, best - self.problem.floor(peak))
        return self.problem.count * distance * HOPE / (1 + self.idle) ** 2


@dataclass
class Search:
    """A running search. `records` is called with the state of a kernel whose records have changed."""

    network: Network
    states: Sequence[State]
    journal: Journal
    builder: Builder
    linker: Linker
    measurers: Sequence[Measurer]
    target: Target
    folder: Path
    weights: int
    cold: bool
    deadline: float  # of time.monotonic
    began: float
    event: Event
    records: Callable[[State], None]
    peak: float = 100.0  # GFLOP/s, as measured last
    lost: int = 0  # places
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _names: Iterator[int] = field(default_factory=itertools.count)
    _errors: list[BaseException] = field(default_factory=list)
    _preparers: dict[str, Preparer] = field(default_factory=dict)

    def run(self) -> None:
        """Search until the budget is spent or nothing is left, on every place at once. Ctrl-C ends it at once."""
        threads = [threading.Thread(target=self._work, args=(each,), daemon=True) for each in self.measurers]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.2)
                for thread in threads[1:]:
                    thread.join(0.01)
        finally:
            self._stop.set()
            if any(thread.is_alive() for thread in threads):
                self.builder.kill()
                for measurer in self.measurers:
                    measurer.kill()
            for thread in threads:
                thread.join()
            for measurer in self.measurers:
                measurer.close()
        if self._errors:
            raise self._errors[0]

    @property
    def at(self) -> float:
        """Seconds of tuning, those of earlier runs too."""
        return self.began + time.monotonic()

    @property
    def gain(self) -> float:
        """µs of the network's time that more candidates are expected to save."""
        return sum(state.gain(self.peak) for state in self.states if not state.done)

    def _work(self, measurer: Measurer) -> None:
        try:
            while not self._stop.is_set() and time.monotonic() < self.deadline:
                if (state := self._next()) is None:
                    if not any(each.busy for each in self.states):
                        return
                    time.sleep(0.05)
                    continue
                reason = ""
                try:
                    self._batch(state, measurer)
                except PlaceLostError as lost:
                    reason = str(lost)
                finally:
                    state.busy = False
                if self._gives_up(measurer, reason):
                    return
        except BaseException as error:
            if not self._stop.is_set():
                self._errors.append(error)
                self._stop.set()

    def _gives_up(self, measurer: Measurer, reason: str) -> bool:
        """Whether a place is to be given up: it does not answer any more, or there are more places than servers.

        A server that died is no reason to wait: the others take over what it had in hand. The last place that is lost
        is an error.
        """
        for _ in range(ATTEMPTS if reason else 1):
            if self._stop.wait(PAUSE if reason else 0.0):
                return True
            with self._lock:
                if measurer.alive(len(self.measurers) - self.lost):
                    return False
        with self._lock:
            self.lost += 1
            reason = reason or "its server is gone"
            self.event({"event": "lost", "reason": reason, "left": len(self.measurers) - self.lost})
        if self.lost == len(self.measurers):
            raise PlaceLostError(reason)
        return True

    def _next(self) -> State | None:
        """The kernel with the largest expected gain; those of which nothing is known come first."""
        with self._lock:
            free = [state for state in self.states if not state.busy and not state.done]
            if not free:
                return None
            state = max(free, key=lambda each: (not each.batches and not each.log.finals, each.gain(self.peak)))
            state.busy = True
            return state

    # ---- one batch --------------------------------------------------------------------------------------------------

    def _batch(self, state: State, measurer: Measurer) -> None:
        count = BATCH if state.batches else FIRST
        default = state.log.trials.get(state.default)
        known = default.microseconds if default is not None else 0.0
        fresh = [each for each in itertools.islice(state.waiting(), count + 1) if key_of(each) != state.default]
        first = [] if default is not None and default.outcome != OK else [state.order[0]]
        state.batches += 1
        if not fresh and default is not None:  # all are tried, but an earlier run may have been killed before the final
            self._final(state, measurer)
            state.done = next(state.waiting(), None) is None
            return
        before = state.best
        library, ready = self._built(state, [*first, *fresh[:count]])
        if library is None:
            return

        def done(index: int, tried: Tried) -> None:
            if key_of(ready[index].choice) not in state.log.trials:
                self._tell(state, ready[index].choice, tried)

        measurer.tried(library, ready, known, done)
        library.unlink()
        self._final(state, measurer)
        gained = before > 0 and state.best < before * 0.99
        state.idle = 0 if gained else state.idle + 1
        self._preparer(state.problem).tidy()

    def _tell(self, state: State, choice: Choice, tried: Tried) -> None:
        with self._lock:
            if self._stop.is_set():  # by Ctrl-C, which killed what it ran in
                return
            entry = trial_entry(state.problem.words, choice, tried, self.at)
            self.journal.write(entry)
            self.event(entry)

    def _built(self, state: State, choices: Sequence[Choice]) -> tuple[Path | None, list[Prepared]]:
        """A library of those candidates that compile; the others have failed."""
        preparer = self._preparer(state.problem)
        prepared = [preparer.prepare(choice) for choice in choices]
        jobs = {symbol: job for each in prepared for symbol, job in each.jobs.items()}
        made = self.builder.build(jobs)
        if self._stop.is_set():
            return None, []
        ready = []
        for each in prepared:
            reasons = [data for symbol in each.jobs if isinstance(data := made[symbol], str)]
            if not reasons:
                ready.append(each)
            elif key_of(each.choice) not in state.log.trials:
                self._tell(state, each.choice, Tried(FAILED, reason=reasons[0]))
        if not ready:
            return None, []
        objects = {symbol: data for each in ready for symbol in each.jobs if isinstance(data := made[symbol], bytes)}
        with self._lock:
            return self.linker.link(f"trials{next(self._names)}", [each.calls for each in ready], objects), ready

    def _preparer(self, problem: Problem) -> Preparer:
        with self._lock:
            if problem.words not in self._preparers:
                preparer = Preparer(problem, self.target, self.folder, self.weights, cold=self.cold)
                self._preparers[problem.words] = preparer
            return self._preparers[problem.words]

    # ---- the final --------------------------------------------------------------------------------------------------

    def _final(self, state: State, measurer: Measurer) -> None:
        """Measure the new best candidates again, in turn with the holders of the records and the default."""
        log = state.log
        new = contenders(log)
        if not new:
            return
        holders = [key for key in log.held.values() if log.finals[key].median <= RIVAL * state.best]
        kept = [key for key in state.recorded.values() if not log.finals]
        keys = list(dict.fromkeys([state.default, *holders, *kept, *new]))
        keys = [key for key in keys if key in log.trials and log.trials[key].outcome == OK]
        choices = [space.made(self.network, state.problem.choice, key, self.target) for key in keys]
        library, ready = self._built(state, choices)
        if library is None:
            return
        try:
            samples, peak = measurer.final(library, ready)
        except LostError:  # whoever it was, all had passed: the next final will have others
            return
        finally:
            library.unlink()
        keys = [key_of(each.choice) for each in ready]
        held = winners(keys, samples, log.held or {rule: key for rule, key in state.recorded.items() if key in keys})
        entries = [
            {**described(each.choice), "samples": [round(sample, 4) for sample in values]}
            for each, values in zip(ready, samples, strict=True)
        ]
        with self._lock:
            self.peak = peak
            entry = {"event": "final", "kernel": state.problem.words, "entries": entries, "peak": round(peak, 1)}
            entry |= {
                "held": {rule: keys.index(key) for rule, key in held.items() if key in keys},
                "at": round(self.at, 3),
            }
            entry |= {"default": 0} if keys[0] == state.default else {}
            self.journal.write(entry)
            self.event(entry)
            self.records(state)
