"""Finals: which candidates are measured again, in turn with the holders of the records, and who has them then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tvmcnn.tuning.journal import OK, Log
from tvmcnn.tuning.space import Key

TOP = 4  # new candidates in one final
WITHIN_NOISE = 1.03  # of the holder's time: measured once, a candidate up to so much slower may be the faster one
UNBANDED_GAIN = 1.05  # on one core what is in no bands must be so much faster: on two cores it is slower by far more


def contenders(log: Log) -> list[Key]:
    """Candidates that were in no final yet and may be faster than the holder of their rule's record, the best first;
    before them the best of each rule that has no holder, however slow: `--exact` needs direct convolution's."""
    tried = {key: each.microseconds * weight(key, log.trials) for key, each in log.trials.items() if each.outcome == OK}
    first: list[Key] = []
    others: list[Key] = []
    for rule in sorted({key[0] for key in tried}):
        held = log.held.get(rule)
        limit = tried.get(held, np.inf) * WITHIN_NOISE if held is not None else np.inf
        mine = [key for key in tried if key[0] == rule and key not in log.finals and tried[key] <= limit]
        mine.sort(key=lambda key: tried[key])
        first += mine[:1] if held is None else []
        others += mine[1:] if held is None else mine
    return [*first, *sorted(others, key=lambda key: tried[key])][: max(TOP, len(first))]


def weight(key: Key, rivals: Iterable[Key]) -> float:
    """Factor on a candidate's time: UNBANDED_GAIN for one without bands where a rival has bands, otherwise 1."""
    cut = any(getattr(config, "bands", 1) > 1 for _, config in rivals)
    return UNBANDED_GAIN if cut and getattr(key[1], "bands", 0) == 1 else 1.0


def winners(keys: Sequence[Key], samples: Sequence[Sequence[float]], held: Mapping[str, Key]) -> dict[str, Key]:
    """Holders of the records after a final, by rule: the fastest of those that beat the holder beyond the spread, else
    the holder. The first of `keys` is the default, and holds its rule's record if nobody does.

    Beyond the spread: three of four of its samples are below three of four of the holder's.
    """
    times = {key: np.asarray(values) * weight(key, keys) for key, values in zip(keys, samples, strict=True)}
    made = dict(held)
    for rule in {rule for rule, _ in keys}:
        mine = [key for key in keys if key[0] == rule]
        holder = held.get(rule, keys[0] if keys[0][0] == rule else None)
        best = min(mine, key=lambda key: float(np.median(times[key])))
        if holder is None or holder not in times:
            made[rule] = best if holder is None else holder
            continue
        wins = np.percentile(times[best], 75) < np.percentile(times[holder], 25)
        made[rule] = best if wins else holder
    return made
