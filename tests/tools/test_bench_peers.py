"""The benchmark beside other runtimes: what it reports and refuses. No time is asserted, only what is made of times."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_models
import bench_peers
import numpy as np
import onnx
import pytest
from bench_models import Entry, parse
from bench_tables import PeerTimes, Row, Time, Times, markdown
from builders import Graph
from peers import PEERS, Kind, Peer, Task, difference, find

import tvmcnn
from tvmcnn import machine, targets
from tvmcnn.errors import InputError
from tvmcnn.run.runner import KernelProfile, Runner
from tvmcnn.targets import kinds
from tvmcnn.tuning.machine_peak import CopyBandwidth, FmaPeak, Limit

pytestmark = pytest.mark.slow

Bench = Callable[..., tuple[int, dict[str, Any], str]]
TIMES = {"median", "first_quartile", "third_quartile"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs and two outputs of different shapes, batch 1: what is bound in the wrong order differs."""
    g = Graph(3)
    x, y = g.input(1, 3, 9, 8), g.input(1, 5, 9, 8)
    both = g.node("Concat", x, y, axis=1)
    z = g.node("Relu", g.conv(both, 12, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.node("Flatten", g.node("GlobalAveragePool", z)), g.node("MaxPool", z, kernel_shape=[2, 2]))
    path = tmp_path_factory.mktemp("model") / "two@2.onnx"
    onnx.save(g.model(), path)
    return path


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Runs the tool in a moment: its exit status, what it found, and what it said."""
    monkeypatch.setattr(bench_peers, "BATCH_SECONDS", 1e-4)
    monkeypatch.setattr(bench_peers, "CopyBandwidth", lambda: CopyBandwidth(1 << 16))
    monkeypatch.delenv(bench_peers.ISA, raising=False)

    def run(*options: str) -> tuple[int, dict[str, Any], str]:
        words = ["bench_peers.py", "--rounds", "3", "--target", "x86-64-v3", "--json", "-", *options]
        monkeypatch.setattr(sys, "argv", words)
        status = bench_peers.main()
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else {}, err

    return run


def plant(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Peer], Peer]) -> None:
    """Let a peer be onnxruntime with something wrong."""
    load = PEERS["onnxruntime"].load
    planted = dataclasses.replace(PEERS[name], package="onnxruntime", load=lambda task: spoil(load(task)))
    monkeypatch.setitem(PEERS, name, planted)


# ---- what it reports ------------------------------------------------------------------------------------------------


def test_rows_are_well_formed(bench: Bench, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    options = ["--models", f"{model},{model}:2", "--peers", "onnxruntime", "--layers", "--markdown", str(table)]
    status, found, said = bench(*options)
    assert status == 0, said
    assert found["target"] == "x86-64-v3" and found["threads"] == 1 and found["cpu"] == machine.cpu_name()
    assert list(found["peers"]) == ["onnxruntime"]
    assert found["onednn_max_cpu_isa"] is None
    assert [row["batch"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert row["model"] == f"two@2:{row['batch']}"
        assert row["inputs"] == {"x0": [row["batch"], 3, 9, 8], "x1": [row["batch"], 5, 9, 8]}
        assert row["rounds"] == 3
        peer = row["peers"]["onnxruntime"]
        assert 0 < peer["difference"] < 1e-5 and not peer["reason"]
        for times in (row["ours"], peer["times"]):
            for call in ("plain", "bound"):
                assert set(times[call]) == TIMES
                assert 0 < times[call]["first_quartile"] <= times[call]["median"] <= times[call]["third_quartile"]
        for call in ("plain", "bound"):
            ratio = peer["times"][call]["median"] / row["ours"][call]["median"]
            assert row["ratios"][call] == {"ratio": pytest.approx(ratio), "better_peer": "onnxruntime"}
        macs = row["batch"] * 9 * 8 * 12 * 8 * 9
        assert row["gflops"] == pytest.approx(2 * macs / row["ours"]["bound"]["median"] / 1e3)
        assert row["peak_share"] == pytest.approx(row["gflops"] / row["peak"])
        assert row["copy_gbs"] > 0
        assert f"\n{row['model']} " in said
        assert f"\n| {row['model']} | " in table.read_text()
        assert f"\n## {row['model']}\n" in table.read_text()


def test_layers_stand_beside_the_roofline(bench: Bench, model: Path) -> None:
    _, found, said = bench("--models", str(model), "--peers", "onnxruntime", "--layers")
    (row,) = found["rows"]
    layers = row["layers"]
    assert len(layers) == row["kernels"] > 1
    assert sum(layer["share"] for layer in layers) == pytest.approx(1)
    for layer in layers:
        compute = layer["gflops"] * layer["microseconds"] / row["peak"]
        memory = layer["gbs"] * layer["microseconds"] / row["copy_gbs"]
        assert layer["bound_microseconds"] == pytest.approx(max(compute, memory))
        assert layer["bound_by"] == bench_peers.bound_by(compute, memory, layer["microseconds"])
        assert layer["peak_share"] == pytest.approx(layer["gflops"] / row["peak"])
        assert layer["rule"] and layer["tier"] and layer["algorithm"]
        assert f"\n{layer['kernel']} " in said
    assert any("Conv" in layer["nodes"] and layer["gflops"] > 0 for layer in layers)


def test_a_kernel_stands_beside_the_limits_of_its_threads() -> None:
    """With two threads, one that has one task is held against what one can do."""
    words = {"algorithm": "direct", "rule": "direct", "tier": "default"}
    kernels = [{"tasks": 1, **words}, {"tasks": 64, **words}]
    profiles = [KernelProfile(f"k{i}_conv", "Conv", "direct", 50.0, 4_000_000, 300_000) for i in (0, 1)]
    net: Any = SimpleNamespace(threads=2, manifest={"kernels": kernels}, profile=lambda *arrays, seconds: profiles)
    limits = bench_peers.limits_of(net, targets.resolve("x86-64-v3"), 190.0, 12.0)
    assert sorted(limits) == [1, 2]
    assert limits[2] == Limit(2, 190.0, 12.0), "those of the rounds"
    assert limits[1].threads == 1 and limits[1].gflops > 0 and limits[1].gigabytes > 0
    one, two = bench_peers.roofline(net, [], {1: Limit(1, 100.0, 10.0), 2: limits[2]})
    assert (one.threads, two.threads) == (1, 2)
    assert (one.peak_share, two.peak_share) == (pytest.approx(80 / 100), pytest.approx(80 / 190))
    assert (one.bound_microseconds, two.bound_microseconds) == (pytest.approx(40), pytest.approx(300 / 12))
    net.manifest["kernels"] = kernels[1:]
    assert bench_peers.limits_of(net, targets.resolve("x86-64-v3"), 190.0, 12.0) == {2: limits[2]}


def test_what_bounds_a_kernel() -> None:
    assert bench_peers.bound_by(3.0, 2.0, 4.0) == "compute"
    assert bench_peers.bound_by(3.0, 2.0, 1.0) == "compute"  # an algorithm that saves operations
    assert bench_peers.bound_by(1.0, 2.0, 4.0) == "memory"
    assert bench_peers.bound_by(0.0, 2.0, 1.0) == "cache"
    assert bench_peers.bound_by(0.0, 0.0, 1.0) == ""  # a view


def test_without_layers_there_are_none(bench: Bench, model: Path) -> None:
    _, found, _ = bench("--models", str(model), "--peers", "")
    assert found["rows"][0]["layers"] == []
    assert found["rows"][0]["ratios"]["plain"] == {"ratio": None, "better_peer": None}
    assert found["notes"] == ["There is no peer: outputs are not compared"]


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed: pip install 'tvmcnn[bench]'")
def test_openvino_runs_what_onnxruntime_runs(bench: Bench, model: Path) -> None:
    status, found, said = bench("--models", f"{model}:2,lenet5:3", "--peers", "openvino,onnxruntime")
    assert status == 0, said
    for row in found["rows"]:
        assert not row["peers"]["openvino"]["reason"]
        assert row["peers"]["openvino"]["difference"] < 1e-5
        assert set(row["ratios"]["bound"]) == {"ratio", "better_peer"}


def test_relax_runs_it_too(bench: Bench, model: Path) -> None:
    status, found, said = bench("--models", str(model), "--peers", "relax")
    assert status == 0, said
    assert not found["rows"][0]["peers"]["relax"]["reason"]
    assert found["rows"][0]["peers"]["relax"]["difference"] < 1e-5


def test_a_ratio_is_to_the_better_peer() -> None:
    def times(plain: float, bound: float) -> Times:
        return Times(*(Time(value, value - 1, value + 1) for value in (plain, bound)))

    peers = {
        "onnxruntime": PeerTimes(times(30, 8), 0.0),
        "openvino": PeerTimes(times(20, 12), 0.0),
        "relax": PeerTimes(reason="it cannot"),
    }
    row = Row("x:1", 1, {"x": (1, 3)}, 1, 3, times(10, 4), peers, 50.0, 100.0, 10.0)
    assert (row.better("plain"), row.ratio("plain")) == ("openvino", 2.0)
    assert (row.better("bound"), row.ratio("bound")) == ("onnxruntime", 2.0)
    header = {
        **{"tvmcnn": "0", "target": "t", "threads": 2, "cpu": "c", "cores": 4, "bound_call": "net.bind", "notes": []},
        "peers": dict.fromkeys(peers, "1"),
        "onednn_max_cpu_isa": "AVX2",
    }
    text = markdown(header, [row])
    assert (
        "| x:1 | 10.0 | 30.0 | 20.0 | failed | 2.00 | 4.0 | 8.0 | 12.0 | failed | 2.00 | 50.0 | 100.0 | 50% |" in text
    )
    assert "x:1: relax failed: it cannot" in text
    assert "2 threads of 4 cores" in text and "ONEDNN_MAX_CPU_ISA=AVX2" in text


def test_bind_is_used_where_there_is_one(bench: Bench, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def bind(self: Runner, *arrays: Any, out: Any) -> Callable[[], object]:
        def call() -> object:
            calls.append(out)
            return self(*arrays, out=out)

        return call

    monkeypatch.setattr(Runner, "bind", bind, raising=False)
    status, found, said = bench("--models", str(model), "--peers", "onnxruntime")
    assert status == 0, said
    assert found["bound_call"] == "net.bind"
    assert len(calls) >= 3


def test_exact_is_passed_on_if_it_is_known(bench: Bench, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_, seen = tvmcnn.compile, []

    def older(model: Any, target: str, output: Any, *, batch: int, verify: bool, progress: Any) -> object:
        return compile_(model, target, output, batch=batch, verify=verify, progress=progress)

    def newer(*args: Any, exact: bool = False, **options: Any) -> object:
        seen.append(exact)
        return compile_(*args, **options)

    monkeypatch.setattr(tvmcnn, "compile", older)
    status, found, said = bench("--models", str(model), "--peers", "onnxruntime", "--exact")
    assert status == 0, said
    assert any("--exact changes nothing" in note for note in found["notes"])
    monkeypatch.setattr(tvmcnn, "compile", newer)
    _, found, _ = bench("--models", str(model), "--peers", "onnxruntime", "--exact")
    assert not any("--exact" in note for note in found["notes"])
    bench("--models", str(model), "--peers", "onnxruntime")
    assert seen == [True, False]


def test_the_instructions_of_peers_are_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = frozenset(feature for target in targets.TARGETS.values() for feature in target.features)
    monkeypatch.setattr(kinds, "cpu_flags", lambda: flags)
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(PEERS, name, dataclasses.replace(PEERS[name], package="numpy"))
    monkeypatch.setattr(sys, "argv", ["bench_peers.py", "--target", "x86-64-v3"])
    options = bench_peers.arguments()
    openvino, onnxruntime = bench_peers.describe(options)["notes"]
    assert "set ONEDNN_MAX_CPU_ISA=AVX2 before the process starts" in openvino
    assert onnxruntime.startswith("onnxruntime is unrestricted")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    header = bench_peers.describe(options)
    assert header["notes"] == [onnxruntime]
    assert header["onednn_max_cpu_isa"] == "AVX2"
    options.target = "x86-64-v4"
    assert bench_peers.describe(options)["notes"] == []


# ---- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("lenet6", "there is no model 'lenet6'; allowed are lenet5, resnet18, "),
        ("lenet5,no/such.onnx:2", "there is no model 'no/such.onnx'; "),
        ("lenet5:x", "there is no model 'lenet5:x'; "),
        ("lenet5:0", "'lenet5:0': a batch is at least 1"),
        ("lenet5@64", "'lenet5@64': the shipped LeNet-5 takes 32 x 32 pixels only"),
        ("resnet18@192x", "there is no model 'resnet18@192x'; "),
        ("unet@48x40", "unet cannot be built for 48 x 40: four poolings need a multiple of 16"),
        ("", "there is no model ''; "),
    ],
)
def test_a_wrong_model_is_one_sentence(bench: Bench, models: str, sentence: str) -> None:
    status, found, said = bench("--models", models)
    assert status == 1
    assert found.get("rows", []) == []
    assert said.splitlines()[-1].startswith(f"bench_peers: {sentence}")
    assert said.count("bench_peers: ") == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--size", "224x"], "'224x' is no size; allowed are 224, or rows and columns: 192x256"),
        (["--peers", "onnx"], "there is no peer 'onnx'; allowed are onnxruntime, openvino, relax, torch"),
        (["--target", "z80"], "unknown target 'z80'; "),
        (["--markdown", "no/such/folder/table.md"], "cannot write no/such/folder/table.md: there is no such folder"),
    ],
)
def test_a_wrong_option_is_one_sentence(bench: Bench, options: list[str], sentence: str) -> None:
    status, found, said = bench(*options)
    assert (status, found) == (1, {})
    assert said.startswith(f"bench_peers: {sentence}") and said.count("\n") == 1


@pytest.mark.parametrize("call", ["plain", "read"])
def test_outputs_that_differ_are_refused(bench: Bench, model: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(peer: Peer) -> Peer:
        right = getattr(peer, call)
        return dataclasses.replace(peer, **{call: lambda: [*right()[:-1], right()[-1] * np.float32(1.001)]})

    plant(monkeypatch, "relax", spoil)
    status, found, said = bench("--models", f"{model},lenet5", "--peers", "onnxruntime,relax")
    assert (status, found["rows"]) == (1, [])
    complaints = [line for line in said.splitlines() if line.startswith("bench_peers: ")]
    assert len(complaints) == 2
    assert complaints[0].startswith(
        "bench_peers: two@2:1: outputs differ from those of relax by 1.0e-03 of the largest;"
    )
    assert complaints[1].startswith("bench_peers: lenet5:1: outputs differ from those of relax by ")


def test_a_model_that_fails_leaves_the_others_their_turn(bench: Bench, model: Path) -> None:
    status, found, said = bench("--models", f"unet@40,{model}", "--peers", "onnxruntime")
    assert (status, [row["model"] for row in found["rows"]]) == (1, ["two@2:1"])
    assert "bench_peers: unet cannot be built for 40 x 40" in said


def test_a_peer_that_fails_is_a_sentence_in_the_row(bench: Bench, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(peer: Peer) -> Peer:
        raise RuntimeError("no such\noperator")

    plant(monkeypatch, "openvino", spoil)
    status, found, said = bench("--models", str(model))
    assert status == 0
    (row,) = found["rows"]
    assert row["peers"]["openvino"] == {
        "times": None,
        "difference": None,
        "reason": "RuntimeError: no such operator",
    }
    assert row["ratios"]["plain"]["better_peer"] == "onnxruntime"
    assert "  openvino failed: RuntimeError: no such operator\n" in said


def test_a_peer_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(task: Task) -> Peer:
        raise AssertionError

    monkeypatch.setitem(PEERS, "openvino", Kind("no-such-package", "call", "infer", load))
    versions, missing = find(["onnxruntime", "openvino", "torch"])
    assert list(versions) == ["onnxruntime"]
    assert missing == [
        "openvino is left out: the package no-such-package is not installed",
        "torch is left out: it is not available for ONNX files",
    ]


def test_difference_sees_what_is_not_finite_and_other_shapes() -> None:
    x = np.array([1, -4], np.float32)
    assert difference([x], [x]) == 0
    assert difference([x + 1], [x]) == 0.25
    assert difference([x * np.float32("nan")], [x]) == np.inf
    assert difference([x], [x * np.float32("inf")]) == np.inf
    assert difference([x], [x[None]]) == np.inf


# ---- its parts ------------------------------------------------------------------------------------------------------


def test_entries() -> None:
    entries = parse("lenet5:256,resnet18@192x256:2,unet@96,vgg16", 224)
    assert entries == [
        Entry("lenet5", 256),
        Entry("resnet18", 2, (192, 256)),
        Entry("unet", 1, (96, 96)),
        Entry("vgg16", 1, (224, 224)),
    ]
    assert [str(entry) for entry in entries] == ["lenet5:256", "resnet18@192x256:2", "unet@96:1", "vgg16@224:1"]
    assert parse("unet", (32, 64)) == [Entry("unet", 1, (32, 64))]


@pytest.mark.parametrize("name", ["a.onnx", "a@7.onnx", "a:3", "resnet18@x.onnx"])
def test_a_path_may_have_any_sign(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.touch()
    assert parse(f"{path}", 224) == [Entry(str(path), 1)]
    assert parse(f"{path}:5", 224) == [Entry(str(path), 5)]


def test_sizes() -> None:
    assert bench_models.parse_size("224") == (224, 224)
    assert bench_models.parse_size("192x256") == (192, 256)
    for text in ("", "x", "12x", "1x2x3", "-4", "4.5"):
        with pytest.raises(InputError, match="is no size"):
            bench_models.parse_size(text)


def test_rounds_are_cut_short_by_seconds(bench: Bench, model: Path) -> None:
    _, found, _ = bench("--models", str(model), "--peers", "", "--rounds", "1000", "--seconds", "0")
    assert found["rows"][0]["rounds"] == bench_peers.FEWEST_ROUNDS


def test_limits_of_several_threads() -> None:
    assert CopyBandwidth(1 << 20).measure(threads=3) > 0
    assert FmaPeak(targets.TARGETS["x86-64-v3"]).measure(0.001, threads=2) > 0


def test_calls_of_several_threads_are_kept_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    monkeypatch.setattr(bench_peers, "at_rest", lambda call: seen.append("rest"))
    calls = {(name, "plain"): (lambda name=name: seen.append(name)) for name in ("", "openvino")}
    options = argparse.Namespace(threads=2, rounds=4, seconds=None)
    samples, peak, copied = bench_peers.measure(calls, targets.resolve("x86-64-v3"), options, lambda done: None)
    assert {key: len(times) for key, times in samples.items()} == dict.fromkeys(calls, 4)
    assert peak > 0 and copied > 0
    order = [name for name, before in zip(seen, [None, *seen], strict=False) if name != before]
    assert order[:4] == ["rest", "", "rest", "openvino"]


class Clock:
    """Time as a process sees it whose other threads spin until `end`."""

    def __init__(self, end: float) -> None:
        self.now, self.end = 0.0, end

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return min(self.now, self.end)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("end", "called"), [(0.2, 0.2), (1e6, bench_peers.LONGEST_WAIT)], ids=["rest", "never"])
def test_a_call_waits_for_threads_that_spin(end: float, called: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for ever."""
    clock, calls = Clock(end), list[float]()
    monkeypatch.setattr(bench_peers, "time", clock)

    def call() -> None:
        calls.append(clock.now)
        clock.now += bench_peers.BATCH_SECONDS / 3

    bench_peers.at_rest(call)
    assert called <= calls[0] <= called + 2 * bench_peers.LOOK
    assert len(calls) in (3, 4)
