"""Where a search starts: the kernels that have a space, and what records and the journal know of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tvmcnn.choose.kernel_key import distance
from tvmcnn.choose.records import Record, read_records, standing_files, unfit
from tvmcnn.network import Program
from tvmcnn.targets import Target
from tvmcnn.tuning.journal import Journal
from tvmcnn.tuning.problem import Problem, problems
from tvmcnn.tuning.search import State
from tvmcnn.tuning.space import Key

NEIGHBOURS = 2  # records of other kernels that are tried first


def states(
    program: Program, machine: Target, cpu: str, path: Path, journal: Journal, seed: int, *, known: bool
) -> list[State]:
    """The kernels with more than one candidate, each with what records say of it and of the nearest others."""
    ours = [record for record in _fitting(path, machine.isa) if record.machine == cpu]
    others = _known(path, machine.isa) if known else []
    found = []
    for problem in problems(program):
        mine = {record.rule: (record.rule, record.config) for record in ours if record.kernel == problem.words}
        same, near = _nearest(problem, others)
        state = State(problem, journal.log(problem.words), machine, same, near, mine, seed)
        if len(state.order) > 1:
            found.append(state)
    return found


def _fitting(path: Path, isa: str) -> list[Record]:
    """The records of a file that are for this ISA and these versions."""
    return [record for record in read_records(path)[0] if unfit(record, isa) is None] if path.exists() else []


def _known(path: Path, isa: str) -> list[Record]:
    """Every record there is: of the file to fill, the user's own, the shipped ones."""
    return [record for file in dict.fromkeys([path, *standing_files()]) for record in _fitting(file, isa)]


def _nearest(problem: Problem, records: Sequence[Record]) -> tuple[list[Key], list[Key]]:
    """Configs of the same kernel, and of those most like it."""
    apart = [(distance(problem.words, record.kernel), i) for i, record in enumerate(records)]
    same = [i for far, i in apart if far == 0]
    near = [i for far, i in sorted(apart) if 0 < far < float("inf")][:NEIGHBOURS]
    first, others = ([(records[i].rule, records[i].config) for i in each] for each in (same, near))
    return list(dict.fromkeys(first)), list(dict.fromkeys(others))


def opening(
    machine: Target,
    cpu: str,
    states: Sequence[State],
    program: Program,
    path: Path,
    journal: Journal,
    seconds: float,
    conditions: str,
) -> Iterator[str]:
    """What is going to happen."""
    count = sum(len(state.order) for state in states)
    yield f"target {machine}, measured on {cpu}, {conditions}"
    yield f"{len(states)} kernels of {program.network.name} have {count} candidates; {seconds:g} s to try them"
    yield f"records go to {path}, every measurement to {journal.path}"
    if known := sum(len(state.log.trials) for state in states):
        yield f"{known} trials of an earlier run are known and not measured again"
    if journal.foreign:
        yield f"{journal.foreign} trials there are of another machine, target, cache mode or version: not used"
