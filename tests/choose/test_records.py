"""Records: what is read, what is skipped and said, whose record a kernel takes, and the files kept in order."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import tvmcnn
from tvmcnn.choose import records
from tvmcnn.choose.kernel_key import distance
from tvmcnn.choose.records import GIVEN, NONE, OWN, SHIPPED, load_records, read_records
from tvmcnn.configs import DenseConfig, DirectConfig
from tvmcnn.errors import TvmcnnError
from tvmcnn.targets import TARGETS, Target, kinds
from tvmcnn.tuning import records_file

V3, V4 = TARGETS["x86-64-v3"], TARGETS["x86-64-v4"]
HERE = "this very CPU"
KERNEL = "conv 1x16x9x14 32x16x3x3 k3,3 s1,1 p1,1,1,1 d1,1 g1 float32 +bias +relu"


def entry(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "kernel": KERNEL,
        "rule": "direct",
        "config": {"vectors": 1, "rows": 3, "columns": 2},
        "time_us": 9.5,
        "target": {"isa": "x86-64-v3", "machine": HERE},
        "tvmcnn": tvmcnn.__version__,
        "tvm": version("apache-tvm"),
    }
    return made | changes


def target(isa: str = "x86-64-v3", machine: str = HERE) -> dict[str, str]:
    return {"isa": isa, "machine": machine}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Target:
    """AVX2 on a CPU of a known name that has it."""
    monkeypatch.setattr(kinds, "cpu_flags", lambda: frozenset(V4.features))
    monkeypatch.setattr(kinds, "cpu_name", lambda: HERE)
    return V3


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_record_is_read(tmp_path: Path) -> None:
    (record,), skipped = read_records(write(tmp_path / "a.jsonl", "", entry()))
    assert not skipped
    assert record.config == DirectConfig(vectors=1, rows=3, columns=2)
    assert (record.line, record.microseconds, record.isa, record.machine) == (2, 9.5, "x86-64-v3", HERE)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"kernel": "conv', "is broken: "),
        ("5", "is broken: "),
        ("[]", "is broken: "),
        (entry(rule="clever"), "is broken: there is no rule 'clever'; there are direct, dots, amx, pairs, winograd"),
        (entry(config={"width": 16}), "is broken: DirectConfig.__init__() got an unexpected keyword argument 'width'"),
        (entry(time_us=0), "is broken: time_us is 0, no time"),
        (entry(time_us=math.nan), "is broken: time_us is nan, no time"),
        (entry(time_us="fast"), "is broken: could not convert string to float: 'fast'"),
        ({name: value for name, value in entry().items() if name != "tvm"}, "is broken: lacks 'tvm'"),
        (entry(target={}), "is broken: lacks 'isa'"),
        (entry(target="x86-64-v3"), "is broken: "),
        (entry(config={"rows": 0}), "is broken: rows is 0, but must be at least 1"),
        (entry(config={"bands": 0}), "is broken: bands is 0, but must be at least 1"),
        (entry(config={"rows": -3}), "is broken: rows is -3, but must be at least 1"),
        (entry(config={"vectors": "2"}), "is broken: vectors is '2', but must be a whole number"),
        (entry(config={"columns": 1.5}), "is broken: columns is 1.5, but must be a whole number"),
        (entry(config={"columns": True}), "is broken: columns is True, but must be a whole number"),
        (entry(config={"order": "zz"}), "is broken: order is 'zz', but must be rb, rh, rw and rc in some order"),
        (entry(config={"vectors": 10**9}), "is broken: vectors is 1000000000, but must be at most 1024"),
        (entry(config=5), "is broken: "),
        (entry(kernel=" "), "is broken: kernel is empty"),
        (entry(time_us=10**400), "is broken: int too large"),
        (entry(peak_share="much"), "is broken: peak_share is 'much', no number"),
        ("[" * 100_000, "is broken: maximum recursion depth exceeded"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_broken_line_is_told_and_skipped(line: Any, reason: str, tmp_path: Path, here: Target) -> None:
    path = write(tmp_path / "a.jsonl", line, entry(kernel="another"))
    found, (skipped,) = read_records(path)
    assert [record.kernel for record in found] == ["another"]
    assert skipped.line == 1
    assert skipped.reason.startswith(reason)
    loaded = load_records(here, [path], shipped=False)
    assert list(loaded.found) == ["another"]
    assert loaded.notes == (f"{path}: 1 of 2 records are not used: line 1 {skipped.reason}",)


def test_a_later_line_replaces_an_earlier(tmp_path: Path, here: Target) -> None:
    path = write(tmp_path / "a.jsonl", entry(time_us=3.0), entry(rule="winograd", config={}), entry(time_us=4.0))
    loaded = load_records(here, [path], shipped=False)
    assert loaded.found[KERNEL]["direct"][0].microseconds == 4.0
    assert loaded.notes == (f"{path}: 1 of 3 records are not used: line 1 is replaced by line 3",)


def test_other_targets_and_versions_are_refused(tmp_path: Path, here: Target) -> None:
    """Records of this machine, made for another ISA, are none for this target."""
    lines = [entry(target=target("x86-64-v4")), entry(rule="winograd", config={}, target=target("x86-64-v4"))]
    lines += [entry(kernel="old", tvmcnn="0.0.1"), entry(kernel="other", tvm="0.20.0")]
    path = write(tmp_path / "a.jsonl", *lines)
    loaded = load_records(here, [path], shipped=False)
    assert not loaded.found
    ours, theirs = tvmcnn.__version__, version("apache-tvm")
    assert loaded.notes == (
        f"{path}: 4 of 4 records are not used: 2 are for x86-64-v4;"
        f" 1 is of tvmcnn 0.0.1, this is {ours}; 1 is of TVM 0.20.0, this is {theirs}",
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TvmcnnError, match=r"cannot read the records .*: No such file"):
        load_records(V3, [tmp_path / "none.jsonl"])
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TvmcnnError, match="it is not UTF-8 text"):
        load_records(V3, [tmp_path / "binary.jsonl"])


# ---- lookup ---------------------------------------------------------------------------------------------------------


def test_tiers(tmp_path: Path, here: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given files win over the user's own, and these over the shipped; the later given file over the earlier."""
    monkeypatch.setattr(records, "schedules_folder", lambda: tmp_path / "shipped")
    monkeypatch.setenv("TVMCNN_RECORDS", str(tmp_path / "own.jsonl"))
    (tmp_path / "shipped").mkdir()
    names = ["k1", "k2", "k3", "k4"]
    write(tmp_path / "shipped" / "s.jsonl", *(entry(kernel=name, time_us=1.0) for name in names))
    write(tmp_path / "own.jsonl", *(entry(kernel=name, time_us=2.0) for name in names[:3]))
    first = write(tmp_path / "1.jsonl", *(entry(kernel=name, time_us=3.0) for name in names[:2]))
    second = write(tmp_path / "2.jsonl", entry(kernel="k1", time_us=4.0))
    loaded = load_records(here, [first, second])
    found = {name: loaded.found[name]["direct"] for name in names}
    assert {name: record.microseconds for name, (record, _) in found.items()} == {"k1": 4, "k2": 3, "k3": 2, "k4": 1}
    assert [tier for _, tier in found.values()] == [GIVEN, GIVEN, OWN, SHIPPED]
    assert load_records(here, own=False, shipped=False) == NONE
    assert load_records(here, own=False).found["k3"]["direct"][1] == SHIPPED


def test_a_kernel_takes_the_records_of_one_file(tmp_path: Path, here: Target) -> None:
    """Records of two files were not measured side by side."""
    one = write(tmp_path / "1.jsonl", entry(rule="winograd", config={}, time_us=1.0))
    two = write(tmp_path / "2.jsonl", entry(time_us=2.0))
    assert load_records(here, [one, two], shipped=False).fastest(KERNEL, ("winograd", "direct")) == "direct"
    assert load_records(here, [two, one], shipped=False).fastest(KERNEL, ("winograd", "direct")) == "winograd"


def test_this_machine_ranks_before_others(tmp_path: Path, here: Target) -> None:
    path = write(tmp_path / "a.jsonl", entry(target=target(machine="faster"), time_us=1.0), entry(time_us=2.0))
    assert load_records(here, [path], shipped=False).found[KERNEL]["direct"][0].machine == HERE
    path = write(tmp_path / "b.jsonl", entry(target=target(machine="faster")))
    loaded = load_records(here, [path], shipped=False)
    assert loaded.found[KERNEL]["direct"][0].machine == "faster"
    assert loaded.notes == (f"{path}: measured on faster, not on this {HERE}",)


def test_fastest_of_the_rules_asked_for(tmp_path: Path, here: Target) -> None:
    lines = [entry(time_us=2.0), entry(rule="winograd", config={}, time_us=1.0)]
    loaded = load_records(here, [write(tmp_path / "a.jsonl", *lines)], shipped=False)
    assert loaded.fastest(KERNEL, ("winograd", "direct")) == "winograd"
    assert loaded.fastest(KERNEL, ("streamed", "direct")) == "direct"
    assert loaded.fastest(KERNEL, ("streamed",)) is None
    assert loaded.find(KERNEL, "dense") is None
    assert loaded.find(KERNEL, "direct") == (DirectConfig(vectors=1, rows=3, columns=2), GIVEN)


def test_own_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVMCNN_RECORDS", "off")
    assert records.own_records() is None
    monkeypatch.delenv("TVMCNN_RECORDS")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert records.own_records() == tmp_path / "tvmcnn" / "records.jsonl"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert records.own_records() == tmp_path / ".local/share/tvmcnn/records.jsonl"


def test_shipped_records_are_sound() -> None:
    """Every line is one, of these versions; no two for the same kernel, rule, target and machine."""
    for path in records.schedules_folder().glob("*.jsonl"):
        found, skipped = read_records(path)
        assert found
        assert not skipped
        assert not [record for record in found if records.unfit(record)], path
        assert {record.isa for record in found} == {path.stem}


def test_distance() -> None:
    one = "conv 1x64x56x56 128x64x1x1 k1,1 s1,1 p0,0,0,0 d1,1 g1 float32 +bias"
    assert distance(one, one) == 0
    assert distance(one, one + " +relu") == pytest.approx(0.1)
    assert distance(one, one.replace("128x64", "256x64").replace("64x56x", "64x28x")) == 2
    assert distance(one, one.replace("k1,1", "k3,3")) == math.inf
    assert distance(one, one.replace("s1,1", "s2,2")) == math.inf
    assert distance(one, one.replace("float32", "int8")) == math.inf
    assert distance(one, "gemm 1x64 64x128 float32 +bias") == math.inf
    for extents in ("128x", "0x64", "²x64", "9" * 400 + "x64"):  # of no kernel, but a line may have them
        assert distance(one, one.replace("128x64", extents)) == math.inf
    depthwise = "conv 1x64x56x56 64x1x3x3 k3,3 s1,1 p1,1,1,1 d1,1 g64 float32"
    assert distance(depthwise, depthwise.replace("64x1x3x3", "64x64x3x3").replace("g64", "g1")) == math.inf


# ---- bookkeeping ----------------------------------------------------------------------------------------------------


def test_merge_keeps_the_fastest(tmp_path: Path) -> None:
    one = write(tmp_path / "1.jsonl", entry(time_us=3.0), entry(kernel="only here"), "nonsense")
    two = write(tmp_path / "2.jsonl", entry(time_us=2.0), entry(target=target(machine="other"), time_us=1.0))
    shelf = records_file.merged([one, two], tmp_path / "both.jsonl")
    found, skipped = read_records(tmp_path / "both.jsonl")
    assert not skipped
    assert {(r.kernel, r.machine): r.microseconds for r in found} == {
        (KERNEL, HERE): 2.0,
        (KERNEL, "other"): 1.0,
        ("only here", HERE): 9.5,
    }
    assert [(path, why.line) for path, why in shelf.skipped] == [(one, 3), (one, 1)]
    assert f"{one}, line 1 is slower than {two}, line 1" in str(shelf)
    assert str(shelf).endswith("3 records, 2 lines skipped; wrote " + str(tmp_path / "both.jsonl"))


def test_prune_drops_what_is_never_used(tmp_path: Path) -> None:
    kept = [entry(time_us=4.0), entry(kernel="fine", rule="dense", config=dataclasses.asdict(DenseConfig()))]
    lines = [entry(time_us=3.0), "{", entry(kernel="old", tvm="0.1"), entry(kernel="x", target=target("x86-64-v4"))]
    path = write(tmp_path / "a.jsonl", *lines, *kept)
    shelf = records_file.pruned([path], "x86-64-v3", None)
    assert sorted(map(json.loads, path.read_text().splitlines()), key=str) == sorted(kept, key=str)
    assert sorted(why.kind for _, why in shelf.skipped) == ["broken", "duplicate", "target", "version"]
    again = records_file.pruned([path], "x86-64-v3", None)
    assert not again.skipped


def test_prune_reads_all_before_it_writes_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "{", entry())
    before = path.read_bytes()
    with pytest.raises(TvmcnnError, match="cannot read"):
        records_file.pruned([path, tmp_path / "none.jsonl"], None, None)
    with pytest.raises(TvmcnnError, match="2 files cannot be pruned into one"):
        records_file.pruned([path, path], None, tmp_path / "c.jsonl")
    assert path.read_bytes() == before


def test_list_shows_every_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", entry(default_time_us=19.0, peak_share=0.83, date="2026-11-25"), "{")
    shelf = records_file.listed([path], None)
    text = str(shelf)
    for word in (KERNEL, "direct", "x86-64-v3", HERE, "9.50", "19.00", "83%", "2026-11-25", "vectors=1 rows=3"):
        assert word in text
    assert f"{path}, line 2 is broken" in text
    assert shelf.as_json()["records"][0]["time_us"] == 9.5
    assert str(records_file.listed([], "x86-64-v3")).splitlines()[-1].endswith("lines skipped")
