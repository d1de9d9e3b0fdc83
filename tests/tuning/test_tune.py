"""Tune and compile with what was found, from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import record
from tuning_models import KERNEL, small, tiny
from tuning_runs import Enough, Event, ops_with_a_final, rules_with_a_record, trials

import tvmcnn
from tvmcnn.choose.records import read_records
from tvmcnn.compiler import Compiled
from tvmcnn.errors import TargetError, ToolError
from tvmcnn.targets import TARGETS, resolve
from tvmcnn.tuning import measure, search
from tvmcnn.tuning.options import parse_budget

pytestmark = pytest.mark.slow


def algorithm(compiled: Compiled) -> tuple[str, str]:
    """Algorithm and tier of the convolution."""
    step = next(s for s in compiled.program.steps if s.choice.kernel.anchor.op == "Conv")
    return step.choice.algorithm, step.choice.tier


# ---- records in use -------------------------------------------------------------------------------------------------


def test_the_faster_record_decides(tmp_path: Path) -> None:
    """Between algorithms too; `exact` takes the record of direct convolution."""
    winograd = {"tile": 2, "rows": 2, "columns": 2, "strip": 7, "vectors": 1, "tiles": 7}
    direct = {"vectors": 1, "rows": 3, "columns": 2}
    for times, wanted in (((1.0, 2.0), "winograd"), ((2.0, 1.0), "direct")):
        path = tmp_path / "records.jsonl"
        path.write_text(record(KERNEL, "winograd", winograd, times[0]) + record(KERNEL, "direct", direct, times[1]))
        compiled = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == (wanted, "given record")
        exact = tvmcnn.compile(small(), output=tmp_path / "small.so", records=[path], exact=True)
        assert algorithm(exact) == ("direct", "given record")
        (config,) = (s.choice.config for s in exact.program.steps if s.choice.kernel.anchor.op == "Conv")
        assert (config.rows, config.columns) == (3, 2)


@pytest.mark.parametrize("tile", [{"rows": 2, "columns": 4}, {"rows": 4, "columns": 3, "blocks": 2}], ids=str)
def test_tiles_need_not_divide(tile: dict[str, int], tmp_path: Path) -> None:
    """Rows, columns and blocks of maps that are left over are smaller tiles, with the same bits."""
    found = []
    vectors = tile.pop("blocks", 1) * 16 // resolve("native").lanes("float32")
    for config in ({"rows": 3, "columns": 7, "vectors": 1}, {"vectors": vectors, "prefetch": True} | tile):
        path = tmp_path / "records.jsonl"
        path.write_text(record(KERNEL.replace("32x16", "48x16"), "direct", config))
        compiled = tvmcnn.compile(small(48), output=tmp_path / "small.so", records=[path])
        assert algorithm(compiled) == ("direct", "given record")
        assert ("prefetcht1" in compiled.code["asm"]()) == config.get("prefetch", False)
        net = tvmcnn.load(compiled.path.rename(tmp_path / f"{len(found)}.so"))
        found.append(net(np.random.default_rng(0).standard_normal((1, 16, 9, 14)).astype(np.float32)).tobytes())
    assert found[0] == found[1]


def test_similar_kernels_lend_their_configs(tmp_path: Path) -> None:
    """A tile of the nearest kernel, if it is among the best estimates here; of one that is far, or other, nothing."""
    isa = "x86-64-v4"  # what is a good tile depends on the registers

    def chosen(maps: int, **changes: int) -> tuple[str, int]:
        config = {"vectors": 1, "rows": 1, "columns": 7} | changes
        lines = record(KERNEL.replace("32x16", f"{maps}x16"), "direct", config, isa=isa)
        (tmp_path / "others.jsonl").write_text(
            lines + record(KERNEL.replace("32x16", "999x16"), "direct", {"columns": 14}, isa=isa)
        )
        records = {"records": [tmp_path / "others.jsonl"], "shipped_records": False, "exact": True}
        compiled = tvmcnn.compile(small(), isa, tmp_path / "small.so", verify=False, **records)
        (choice,) = (s.choice for s in compiled.program.steps if s.choice.kernel.anchor.op == "Conv")
        return choice.tier, choice.config.columns

    computed = chosen(512)
    assert computed[0] == "default" and computed[1] != 7
    assert chosen(64) == ("nearest record", 7)
    assert chosen(32) == ("given record", 7)
    assert chosen(64, columns=1) == computed, "a poor tile here"
    assert chosen(64, unroll=3) == computed, "there are 16 channels"


# ---- from end to end ------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    monkeypatch.setattr(search, "BATCH", 20)


def test_tune(tmp_path: Path, quick: None) -> None:
    """A budget in, records out, that compile follows; the same call again measures nothing twice."""
    model, output = tmp_path / "small.onnx", tmp_path / "mine.jsonl"
    model.write_bytes(small().SerializeToString())
    rules = {"direct", "winograd", "streamed"}

    def enough(events: Sequence[Event]) -> bool:
        known = rules_with_a_record(events, KERNEL) == rules and ops_with_a_final(events) == {"conv", "gemm"}
        return known and sum(each["kernel"] == KERNEL for each in trials(events)) > 20

    said, first = list[str](), Enough(enough)
    tuned = tvmcnn.tune(model, records=output, report=said.append, plot=tmp_path / "best.png", **first.given)
    assert f"records go to {output}, every measurement to {tmp_path / 'mine.trials.jsonl'}" in said
    assert {kernel.kernel.split()[0] for kernel in tuned.kernels} == {"conv", "gemm"}
    conv = next(kernel for kernel in tuned.kernels if kernel.kernel == KERNEL)
    assert conv.best_us > 0 and conv.default_us > 0
    assert conv.tried > 20 and conv.wrong == conv.failed == 0
    assert tuned.latency is not None and tuned.latency.after > 0
    assert (tmp_path / "best.png").read_bytes().startswith(b"\x89PNG")
    found, skipped = read_records(output)
    assert not skipped
    ours = {each.rule: each for each in found if each.kernel == KERNEL}
    assert set(ours) == rules
    wanted = {"spread_us", "default_time_us", "gflops", "peak_share", "max_rel_error", "cache", "date", "command"}
    assert all(wanted <= set(each.entry) and each.entry["max_rel_error"] < 1e-5 for each in found)
    assert ours["direct"].entry["command"] == "tvmcnn tune small.onnx --target native --budget 24h"
    compiled = tvmcnn.compile(model, output=tmp_path / "small.so", records=[output])
    assert algorithm(compiled)[1] == "given record"

    assert len(trials(first.events)) == tuned.measured
    again = Enough(lambda events: len(trials(events)) >= 5)
    tvmcnn.tune(model, records=output, report=said.append, measure=False, **again.given)
    assert f"{tuned.measured} trials of an earlier run are known and not measured again" in said
    both = [(e["kernel"], e["rule"], str(e["config"])) for e in trials([*first.events, *again.events])]
    assert len(both) == len(set(both)) >= tuned.measured + 5


def test_networks_share_a_journal(tmp_path: Path, quick: None) -> None:
    """What another network's kernels know is neither told nor counted."""
    one = Enough(lambda events: len(trials(events)) >= 5)
    tvmcnn.tune(small(), records=tmp_path / "ours.jsonl", measure=False, **one.given)
    said, other = list[str](), Enough(lambda events: len(trials(events)) >= 2)
    tuned = tvmcnn.tune(tiny(), records=tmp_path / "ours.jsonl", measure=False, report=said.append, **other.given)
    assert tuned.measured == len(trials(other.events)) > 0
    assert not any("earlier run" in line for line in said)


def a_final(events: Sequence[Event]) -> bool:
    return bool(ops_with_a_final(events))


def test_records_of_others_stay(tmp_path: Path, quick: None) -> None:
    """Other kernels, other machines, even a broken line: the tuner rewrites its own lines alone."""
    output = tmp_path / "mine.jsonl"
    kept = [record("other", rule, {}).strip() for rule in ("direct", "dense")] + ["broken"]
    output.write_text("\n".join(kept) + "\n")
    tvmcnn.tune(tiny(), records=output, measure=False, **Enough(a_final).given)
    lines = output.read_text().splitlines()
    assert lines[:3] == kept
    assert len(lines) > 3


def test_own_records_are_used_by_themselves(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCNN_RECORDS", str(tmp_path / "new folder" / "own.jsonl"))
    tvmcnn.tune(tiny(), measure=False, **Enough(a_final).given)
    compiled = tvmcnn.compile(tiny(), output=tmp_path / "tiny.so")
    assert algorithm(compiled)[1] == "own record"


@pytest.mark.parametrize(
    ("given", "error", "sentence"),
    [
        ({"budget": "soon"}, ToolError, "the budget 'soon' is no time above 0; write 90s, 10m or 2h"),
        ({"budget": 0}, ToolError, "the budget '0' is no time above 0"),
        ({"records": "mine.txt"}, ToolError, "the records 'mine.txt' end in '.txt'; a file of records ends in .jsonl"),
        ({"records": "no/where.jsonl"}, ToolError, "cannot write no/where.jsonl: the folder no does not exist"),
        ({"plot": "best.gif"}, ToolError, "'best.gif' ends in '.gif'; allowed are .png, .svg, .pdf"),
        ({"plot": "no/best.png"}, ToolError, "cannot write no/best.png: the folder no does not exist"),
        ({"records": None}, ToolError, "there is no place for your own records"),
        ({"rpc_key": "k"}, ToolError, "--rpc-tracker HOST:PORT and --rpc-key KEY belong together"),
        ({"rpc_tracker": "h:1", "rpc_key": "k"}, TargetError, "name the target of the other machines: x86-64-v3 or"),
        ({"rpc_tracker": "h", "rpc_key": "k", "target": "x86-64-v3"}, ToolError, "'h' is not HOST:PORT"),
    ],
    ids=str,
)
def test_mistakes(
    given: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        tvmcnn.tune(small(), **{"records": "mine.jsonl", "budget": "1s", **given})
    assert sentence in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_target_that_cannot_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.targets.kinds.cpu_flags", lambda: frozenset(TARGETS["x86-64-v3"].features))
    with pytest.raises(TargetError, match=r"cannot measure for x86-64-v4 here: this CPU lacks avx512f.*--rpc-tracker"):
        tvmcnn.tune(small(), target="x86-64-v4", records=tmp_path / "mine.jsonl")


def test_budgets() -> None:
    assert [parse_budget(each) for each in (7, "90", "90s", "10m", "1.5h", " 2 m ")] == [
        7,
        90,
        90,
        600,
        5400,
        120,
    ]
