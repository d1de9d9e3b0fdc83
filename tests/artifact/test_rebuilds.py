"""The same model, records and versions give the same bytes; a lockfile refuses others; a library says what it is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import Graph
from data import NVCC, ROOT
from tuning_runs import Enough, ops_with_a_final

import tvmcnn
from tvmcnn import platforms
from tvmcnn.artifact.lock import records_digest
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import GIVEN, NONE, OWN
from tvmcnn.cli import main
from tvmcnn.errors import LockError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.targets import TARGETS

pytestmark = pytest.mark.slow


def network(seed: int = 0) -> onnx.ModelProto:
    g = Graph(seed)
    x = g.node("MaxPool", g.conv(g.input(1, 5, 12, 9), 19, (3, 2)), kernel_shape=[2, 2], strides=[2, 2])
    g.output(g.node("Softmax", g.node("Gemm", g.node("Flatten", x), g.draw(380, 7), g.draw(7)), axis=1))
    return g.model()


@pytest.mark.parametrize("target", ["x86-64-v3,x86-64-v4", "cuda:sm_80"])
def test_the_same_bytes(target: str, tmp_path: Path) -> None:
    """Two processes, each with a folder, a user's name, a home and temporary files of its own."""
    libraries = []
    for name in ("one", "another"):
        folder = tmp_path / name / "deep" / ("er" * len(libraries))
        folder.mkdir(parents=True)
        onnx.save(network(), str(folder / f"{name}.onnx"))
        environment = {"HOME": str(tmp_path / name), "USER": name, "TMPDIR": str(folder), "NVCC": str(NVCC)}
        command = [sys.executable, "-m", "tvmcnn", "compile", f"{name}.onnx", "--target", target, "-o", "net.so"]
        subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True, capture_output=True)
        libraries.append((folder / "net.so").read_bytes())
    assert libraries[0] == libraries[1]
    assert str(tmp_path).encode() not in libraries[0]
    assert not re.search(rb"/tmp/|/home/|/root/", libraries[0])


def test_a_weight_changes_the_hashes(tmp_path: Path) -> None:
    model = network()
    first = tvmcnn.load(tvmcnn.compile(model, "x86-64-v3", tmp_path / "net.so").path).manifest
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight.flat[3] = np.nextafter(weight.flat[3], np.float32(9))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, model.graph.initializer[0].name))
    (tmp_path / "other").mkdir()
    second = tvmcnn.load(tvmcnn.compile(model, "x86-64-v3", tmp_path / "other" / "net.so").path).manifest
    changed = {key for key in first["made_of"] if first["made_of"][key] != second["made_of"][key]}
    assert changed == {"model", "weights"}
    assert first["sha256"] != second["sha256"]


@pytest.fixture
def locked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The lockfile of a library net.so in the folder."""
    onnx.save(network(), str(tmp_path / "net.onnx"))
    tvmcnn.compile(tmp_path / "net.onnx", "x86-64-v3", tmp_path / "net.so")
    assert main(["inspect", str(tmp_path / "net.so"), "--lock", str(tmp_path / "net.lock")]) == 0
    said = capsys.readouterr().out
    lock = json.loads((tmp_path / "net.lock").read_text())
    for digest in lock["sha256"].values():
        assert digest in said
    assert {*lock["sha256"]} == {"model", "records", "weights", "image"}
    assert {*lock["versions"]} == {"tvmcnn", "tvm", "tvm-ffi", "cc"}
    return tmp_path / "net.lock"


def test_locked(locked: Path) -> None:
    """What agrees is written; what does not leaves the file that is there, and says all that differs."""
    library, model = locked.with_suffix(".so"), locked.with_suffix(".onnx")
    before = library.read_bytes()
    tvmcnn.compile(model, "x86-64-v3", library, locked=locked)
    assert library.read_bytes() == before
    with pytest.raises(LockError, match=r"nothing is written.*: model is \w{12}…, locked is \w{12}…; weights is"):
        tvmcnn.compile(network(1), "x86-64-v3", library, locked=locked)
    with pytest.raises(LockError, match="name is other, locked is net; targets is x86-64-v4, locked is x86-64-v3"):
        tvmcnn.compile(model, "x86-64-v4", library.with_name("other.so"), locked=locked)
    assert library.read_bytes() == before
    assert not library.with_name("other.so").exists()


def test_locked_records(locked: Path, tmp_path: Path) -> None:
    """A record that a kernel takes is a difference; one that none takes is not."""
    library, model = locked.with_suffix(".so"), locked.with_suffix(".onnx")
    enough = Enough(lambda events: bool(ops_with_a_final(events)))
    tuned = tvmcnn.tune(model, "x86-64-v3", records=tmp_path / "my.jsonl", **enough.given)
    assert tuned.kernels
    with pytest.raises(LockError, match=r"records \(records that kernels took\) is"):
        tvmcnn.compile(model, "x86-64-v3", library, records=[tmp_path / "my.jsonl"], locked=locked)
    tvmcnn.compile(
        model,
        "x86-64-v3",
        library,
        records=[ROOT / "schedules/x86-64-v4.jsonl"],
        locked=locked,
    )


def test_the_hash_of_the_records_is_of_their_configs() -> None:
    """Two tunings that differ in one number are two; a config that was computed is in neither."""
    imported = simplified(import_model(network()))
    program = lay_out(imported, choose(imported, fuse(imported), TARGETS["x86-64-v3"], NONE), Weights())
    (step,) = [step for step in program.steps if step.choice.rule == "dense"]

    def digest(tier: str, **numbers: int) -> str:
        config = dataclasses.replace(step.choice.config, **numbers)
        taken = dataclasses.replace(step, choice=dataclasses.replace(step.choice, tier=tier, config=config))
        return records_digest([dataclasses.replace(program, steps=(taken,))])

    found = [digest(GIVEN, parts=2), digest(GIVEN, parts=4), digest(GIVEN, parts=2, unroll=4), digest("default")]
    assert len({*found}) == len(found)
    assert digest("default", parts=2) == digest("default", parts=4)
    assert digest(OWN, parts=2) == found[0], "the same config, whoever's record it is"


def test_locked_versions_and_code(locked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another C compiler is said before any work; code that differs all the same, before it is written."""
    library, model = locked.with_suffix(".so"), locked.with_suffix(".onnx")
    before = library.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(platforms, "compiler_version", lambda command: "gcc 99")
        with pytest.raises(LockError, match="cc is gcc 99, locked is "):
            tvmcnn.compile(model, "x86-64-v3", library, locked=locked)
    with pytest.raises(LockError, match=r"image \(code and weights together\) is"):
        tvmcnn.compile(model, "x86-64-v3", library, locked=locked, activations=False)
    assert library.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no lockfile: Expecting value"),
        ("[]", "is no lockfile: it has not all that `tvmcnn inspect --lock` writes"),
        ('{"lock": 1}', "is no lockfile: it has not all that `tvmcnn inspect --lock` writes"),
    ],
)
def test_lockfiles_that_are_none(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.lock").write_text(text)
    with pytest.raises(LockError, match=re.escape(words)):
        tvmcnn.compile(network(), "x86-64-v3", tmp_path / "net.so", locked=tmp_path / "net.lock")
    lock = {"lock": 2, "name": "", "targets": [], "precision": "", "versions": {}, "sha256": {}}
    (tmp_path / "net.lock").write_text(json.dumps(lock))
    with pytest.raises(LockError, match="has format 2; this tvmcnn reads 1"):
        tvmcnn.compile(network(), "x86-64-v3", tmp_path / "net.so", locked=tmp_path / "net.lock")
    with pytest.raises(LockError, match=r"is no lockfile: .*No such file"):
        tvmcnn.compile(network(), "x86-64-v3", tmp_path / "net.so", locked=tmp_path / "nowhere.lock")
    assert [path.name for path in tmp_path.iterdir()] == ["net.lock"]
