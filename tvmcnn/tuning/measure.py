"""Measure: candidates of one library, checked one by one and timed in turn, in a process that may die of any."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tvmcnn.errors import ToolError
from tvmcnn.tuning.candidate import Prepared
from tvmcnn.tuning.journal import FAILED, OK, WRONG, Tried
from tvmcnn.tuning.remote import servers
from tvmcnn.tuning.worker import Place
from tvmcnn.worker_process import Isolated, LostError, last_line

CODE = "tvmcnn.tuning.worker"
OPENING = 60.0  # seconds to reach a place and send it a library
SECONDS = 10.0  # for one call of a candidate: the slowest kernel of VGG-16 takes 0.02
SAMPLE = 0.005  # seconds of one measurement
ROUNDS, AGAIN = 3, 9  # measurements of each candidate, and of those in the final
MEMORY = 2 << 30  # bytes that a process may take beside the candidates' memory
LOSSES = 2  # of a server with the same candidate in hand, before that is to blame
FRESH = 50  # libraries that one process opens: it unloads none


class PlaceLostError(Exception):
    """The machine that measures is gone, or cannot run what is compiled; the text says why."""


class Measurer:
    """A place where candidates are measured. One library at a time is open there."""

    def __init__(self, place: Place, seconds: float = SECONDS) -> None:
        self.place, self.seconds = place, seconds
        self.machine = ""
        self._process: Isolated | None = None
        self._opened = 0
        self._killed = False
        self._losses: dict[object, int] = {}

    def open(self, library: Path, memory: int) -> None:
        """Open a library of trials. Raises PlaceLostError where that fails."""
        if self._killed:
            raise PlaceLostError("the search was stopped")
        limit = MEMORY + 2 * memory
        if self._process is None or (self._process.memory or 0) < limit or self._opened % FRESH == 0:
            self.close()
            self._process = Isolated(limit, quiet=True)
        self._opened += 1
        try:
            self.machine = self._process.call(f"{CODE}:open_library", library, memory, self.place, seconds=OPENING)
        except Exception as error:  # TVM's RPC raises what it likes
            self.close()
            raise PlaceLostError(last_line(error)) from error

    def tried(
        self, library: Path, candidates: Sequence[Prepared], known: float, done: Callable[[int, Tried], None]
    ) -> None:
        """Check and time every candidate of a library, telling each outcome as soon as it is known.

        If the first is `known` to take so many µs, the others' times are relative to its in the same rounds: that the
        machine is slower now is none of their fault.
        """
        memory = max(each.memory for each in candidates)
        self.open(library, memory)
        good: list[tuple[int, float]] = []
        for index, each in enumerate(candidates):
            try:
                error = self._call("check", index, each.trial)
            except LostError as lost:
                if self._blames(each):
                    done(index, Tried(FAILED, reason=str(lost)))
                self.open(library, memory)
                continue
            if error <= each.trial.tolerance:
                good.append((index, error))
            else:  # NaN, too
                reason = f"off by {error:.3g}, allowed are {each.trial.tolerance:.3g}"
                done(index, Tried(WRONG, 0.0, error, each.trial.tolerance, reason))
        times = self._times(library, memory, [index for index, _ in good], ROUNDS)
        first = times.get(0) if known else None
        for index, error in good:
            samples = times[index]
            if isinstance(samples, str):
                done(index, Tried(FAILED, error=error, reason=samples))
                continue
            if isinstance(first, list) and len(first) == len(samples):
                samples = [known * ours / reference for ours, reference in zip(samples, first, strict=True)]
            done(index, Tried(OK, statistics.median(samples), error, candidates[index].trial.tolerance))

    def final(self, library: Path, candidates: Sequence[Prepared]) -> tuple[list[list[float]], float]:
        """Samples of each candidate, all in turn, and the FMA peak of the same rounds; raises LostError if one dies."""
        memory = max(each.memory for each in candidates)
        self.open(library, memory)
        peak = self._call("peak", SAMPLE)
        samples = self._call("times", list(range(len(candidates))), AGAIN, SAMPLE, rounds=AGAIN * len(candidates))
        return samples, max(peak, self._call("peak", SAMPLE))

    def alive(self, places: int) -> bool:
        """Whether as many `places` have somewhere to measure: always here, elsewhere as many as servers are left."""
        if self.place is None:
            return True
        host, port, key = self.place
        with contextlib.suppress(ToolError):
            return servers(f"{host}:{port}", key)[2] >= places
        return False

    def _times(self, library: Path, memory: int, indices: list[int], rounds: int) -> dict[int, list[float] | str]:
        """Samples by trial; the reason for one that died."""
        if not indices:
            return {}
        try:
            samples = self._call("times", indices, rounds, SAMPLE, rounds=rounds * len(indices))
            return dict(zip(indices, samples, strict=True))
        except LostError as lost:
            self.open(library, memory)
            if len(indices) == 1:
                return {indices[0]: str(lost)}
        found: dict[int, list[float] | str] = {}
        for index in indices:
            found |= self._times(library, memory, [index], rounds)
        return found

    def _blames(self, candidate: Prepared) -> bool:
        """Whether a candidate is to blame: at once here, elsewhere if it happens again, for servers die of old age."""
        key = candidate.choice.rule, candidate.choice.config, candidate.trial.expected
        self._losses[key] = self._losses.get(key, 0) + 1
        return self.place is None or self._losses[key] >= LOSSES

    def _call(self, function: str, *arguments: Any, rounds: int = 1) -> Any:
        assert self._process is not None
        try:
            return self._process.call(f"{CODE}:{function}", *arguments, seconds=self.seconds * max(1, rounds / 3))
        except LostError:
            raise
        except Exception as error:  # of TVM's RPC, which raises what it likes
            raise LostError(last_line(error)) from error

    def kill(self) -> None:
        """End what it does, from another thread; it measures no more."""
        self._killed = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.close()
