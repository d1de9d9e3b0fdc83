"""Tune: a time budget in, verified records out.

    problems (distinct kernels) ─▶ space (candidates in order) ─▶ build (isolated) ─▶ measure: check, time, final
        ▲                                                                                  │ journal, synced
        └──────── search: which kernel next, until the budget is spent ◀──────────────────┘ records, rewritten whole

A candidate counts only if its output agrees with NumPy. At any moment the file of records has the best answer so far,
and the journal beside it every measurement: the same command goes on where it ended, however it did.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import NONE
from tvmcnn.codegen.cpu.candidates import Linker
from tvmcnn.codegen.jobs import code_digest
from tvmcnn.errors import ToolError, caught
from tvmcnn.files import PICTURES, check_place, scratch_folder
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.machine import usable_cpus
from tvmcnn.network import Asked
from tvmcnn.onnx_file import Model, with_external_data
from tvmcnn.platforms import platform_of
from tvmcnn.precision import WORDS
from tvmcnn.targets import resolve
from tvmcnn.tuning.before_after import latency
from tvmcnn.tuning.build import Builder
from tvmcnn.tuning.journal import Journal
from tvmcnn.tuning.measure import Measurer, PlaceLostError
from tvmcnn.tuning.options import (
    check_machine,
    journal_path,
    name,
    parse_budget,
    places,
    records_path,
    same_machine,
    snapshot,
)
from tvmcnn.tuning.outcome import Tuned, described_target, tuned, write_records
from tvmcnn.tuning.plot import plot as picture
from tvmcnn.tuning.problem import weights_bytes
from tvmcnn.tuning.search import Search, Watch
from tvmcnn.tuning.starting_point import opening, states

__all__ = ["Tuned", "tune"]


@caught
def tune(
    model: Model,
    target: str = "native",
    budget: str | float = "10m",
    records: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Asked] | None = None,
    *,
    batch: int | None = None,
    seed: int = 0,
    cold: bool = True,
    known_records: bool = True,
    plot: str | PathLike[str] | None = None,
    rpc_tracker: str | None = None,
    rpc_key: str | None = None,
    jobs: int | None = None,
    precision: str = "fp32",
    report: Callable[[str], None] = lambda line: None,
    event: Callable[[Mapping[str, Any]], None] = lambda entry: None,
    watch: Watch = lambda search, seconds: contextlib.nullcontext(),
    measure: bool = True,
    external_data: str | PathLike[str] | None = None,
) -> Tuned:
    """Search the configs of a model's kernels for about `budget` (seconds, or "90s", "10m", "2h").

    The best go to the file `records` (the user's own, which `compile` reads, without it), every measurement to the
    journal beside it; the same call again goes on. `cold` measures with weights as cold as in the network, else with
    weights in cache. `known_records` starts from the records that there are, else from computed configs alone.
    `precision` "bf16" tunes what `compile` makes with it. `plot` is a picture of the best so far over time.
    `rpc_tracker` ("HOST:PORT") and `rpc_key` measure on other machines, by TVM's RPC. `report` receives sentences,
    `event` each measurement; `watch` shows the search; `measure` compares the network's latency at the end.
    `external_data` is a folder, besides the model's own, that its data may lie in.

    Raises ModelError, UnsupportedError, TargetError, ToolError; VerifyError if the network does not agree with NumPy.
    """
    seconds, started = parse_budget(budget), time.monotonic()
    model = with_external_data(model, external_data)
    if plot is not None:
        check_place(Path(plot), PICTURES)
    machine, where = resolve(target), places(target, rpc_tracker, rpc_key)
    check_machine(machine, where)
    path = records_path(records)
    platform_of([machine]).check(path, precision, "fp32")
    network = simplified(import_model(model, input_shapes, batch=batch), in_bytes=machine.multiplies_bytes)
    program = lay_out(network, choose(network, fuse(network), machine, NONE, precision), Weights())
    with scratch_folder() as folder, contextlib.ExitStack() as stack:
        linker, measurers = Linker(folder, machine), [Measurer(place) for place in where]
        cpu = same_machine(measurers, linker)
        conditions = {"isa": machine.isa, "machine": cpu, "cache": "cold" if cold else "warm", "code": code_digest()}
        conditions |= {"precision": precision}
        journal = Journal(journal_path(path), conditions)
        stack.callback(journal.close)
        before = [snapshot(path, folder)] if known_records else []
        kernels = states(program, machine, cpu, path, journal, seed, known=known_records)
        resumed = sum(len(state.log.trials) for state in kernels)
        conditioned = f"{WORDS[precision]}, one thread, weights {conditions['cache']}"
        for line in opening(machine, cpu, kernels, program, path, journal, seconds, conditioned):
            report(line)
        command = f"tvmcnn tune {name(model)} --target {target} --budget {budget}{f' --seed {seed}' if seed else ''}"
        command += f" --precision {precision}" if precision != "fp32" else ""
        journal.write({"event": "start", **conditions, "seed": seed, "command": command, "budget": seconds})
        facts = {"command": command, "cache": conditions["cache"], "target": described_target(machine, cpu)}
        builder = Builder(jobs or usable_cpus())
        stack.callback(builder.close)
        search = Search(
            network, kernels, journal, builder, linker, measurers, machine, folder, weights_bytes(program), cold,
            deadline=started + seconds, began=journal.elapsed - started, event=event,
            records=lambda state: write_records(path, state, facts),
        )  # fmt: skip
        with watch(search, seconds):
            try:
                search.run()
            except PlaceLostError as error:
                raise ToolError(f"nothing is left to measure on: {error}; what was measured is kept") from error
        spent = time.monotonic() - started
        if plot is not None:
            picture(kernels, Path(plot), f"{network.name} for {machine.name} on {cpu}")
        figures = None
        if measure and not rpc_tracker and any(state.log.finals for state in kernels):
            figures = latency(model, target, input_shapes, batch, before, path, folder, precision, known=known_records)
    return tuned(path, search, cpu, spent, resumed, figures)
