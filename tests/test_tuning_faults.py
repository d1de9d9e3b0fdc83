"""The tuner among faults: rules that are wrong, kernels that hang, crash or devour memory, kill -9, servers that die.

Faults are planted by real edits of a copy of the package, which the tuner then runs from, processes and all.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tuning_models import KERNEL, small

import tvmcnn
from tvmcnn.configs import DirectConfig
from tvmcnn.records import read_records
from tvmcnn.targets import resolve

PACKAGE = Path(tvmcnn.__file__).parent

# In the place of `object_code`: what a direct convolution does by the number of columns in its tile.
PLANTED = """

def _real(job: Job) -> bytes:
    return _object_code(job)


def object_code(job: Job) -> bytes:
    import subprocess
    import time

    config = job.step.choice.config
    columns = getattr(config, "columns", 0) if job.step.choice.rule == "direct" else 0
    body = {
        3: "for (;;) __asm__ volatile (\\"\\");",
        4: "*(volatile int*)8 = 1;",
        5: "for (;;) { volatile char* p = malloc(1 << 26); for (long i = 0; i < 1 << 26; i += 4096) p[i] = 1; }",
        6: "__builtin_trap();",
    }.get(columns)
    if columns == 14:
        time.sleep(3600)
    if columns == 1:
        raise ValueError("planted: it does not compile")
    if body is None:
        return _object_code(job)
    source = f"#include <stdlib.h>\\nint {job.symbol}(void) {{ {body} return 0; }}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["cc", "-x", "c", "-O1", "-fPIC", "-c", "-o", f"{folder}/k.o", "-"]
        subprocess.run(command, input=source.encode(), check=True)
        return Path(f"{folder}/k.o").read_bytes()
"""

# At the end of `schedule`: tiles of two columns leave out the last row of the filter (its axis is ax8).
WRONG = """
    RULES[choice.rule](sch, choice.config, lanes)
    if choice.rule == "direct" and choice.algorithm == "direct" and choice.config.columns == 2:
        def shorten(loop: tirx.For) -> tirx.For:
            rows = str(loop.loop_var.name).startswith("ax8") and int(loop.extent) == 3
            return tirx.For(loop.loop_var, loop.min, 2, loop.kind, loop.body) if rows else loop
        return tvm_ffi.structural_map(sch.mod["main"], (tirx.For, shorten))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be edited, with a small model beside it."""
    shutil.copytree(PACKAGE, tmp_path / "tvmcnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "small.onnx").write_bytes(small().SerializeToString())
    return tmp_path


def edit(path: Path, *changes: tuple[str, str]) -> None:
    text = path.read_text()
    for old, new in changes:
        assert old in text, f"{path.name} has no {old!r} any more"
        text = text.replace(old, new)
    path.write_text(text)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "tvmcnn", *map(str, arguments)]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder)}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- planted --------------------------------------------------------------------------------------------------------


def test_planted_faults_cost_their_candidates_and_nothing_else(copy: Path) -> None:
    """A wrong rule, an endless loop, a crash, an illegal instruction, memory without end, a compiler that hangs."""
    package = copy / "tvmcnn"
    edit(package / "codegen" / "kernels.py", ("def object_code", "def _object_code"))
    with (package / "codegen" / "kernels.py").open("a") as file:
        file.write(PLANTED)
    edit(package / "schedule" / "__init__.py", ("\n    RULES[choice.rule](sch, choice.config, lanes)\n", WRONG))
    edit(package / "tuning" / "build.py", ("SECONDS = 30.0", "SECONDS = 4.0"))
    edit(package / "tuning" / "measure.py", ("SECONDS = 10.0", "SECONDS = 1.0"), ("SAMPLE = 0.005", "SAMPLE = 0.0002"))
    edit(package / "tuning" / "measure.py", ("MEMORY = 2 << 30", "MEMORY = 1 << 29"))
    arguments = ["tune", "small.onnx", "--budget", "100s", "--from-scratch", "-o", "mine.jsonl", "--json"]
    done = subprocess.run(
        command(*arguments), cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "Traceback" not in done.stderr
    direct = [e for e in events if e["event"] == "trial" and e["rule"] == "direct" and e["kernel"] == KERNEL]
    reasons = {columns: Counter[str]() for columns in (1, 2, 3, 4, 5, 6, 14)}
    for each in direct:
        columns = each["config"]["columns"]
        if columns in reasons:
            assert each["outcome"] == ("wrong" if columns == 2 else "failed"), each
            reasons[columns][each["reason"].split(":")[0].split(",")[0]] += 1
        else:
            assert each["outcome"] == "ok", each
    told = {columns: "; ".join(found) for columns, found in reasons.items()}
    assert "off by" in told[2]
    assert "took more than 1 s" in told[3]
    assert "ended by SIGSEGV" in told[4]
    assert "ended by SIGSEGV" in told[5], "malloc gave no more"
    assert "ended by SIGILL" in told[6]
    assert "does not compile" in told[1]
    assert told[14] == "the compiler took more than 4 s"
    # It ends well: a record for every rule, none of them planted, and a network that agrees with NumPy.
    found, skipped = read_records(copy / "mine.jsonl")
    ours = {record.rule: record.config for record in found if record.kernel == KERNEL}
    assert set(ours) == {"direct", "winograd", "streamed"} and not skipped
    assert isinstance(ours["direct"], DirectConfig) and ours["direct"].columns not in reasons
    assert events[-1]["event"] == "end" and events[-1]["latency"]["after"] > 0
    compiled = tvmcnn.compile(copy / "small.onnx", output=copy / "small.so", records=[copy / "mine.jsonl"])
    assert compiled.verdict is not None and compiled.verdict.passed


# ---- kill -9 --------------------------------------------------------------------------------------------------------


def test_kill_loses_no_measurement(tmp_path: Path) -> None:
    """Four times at random moments: the journal only grows, both files are whole, nothing is measured twice."""
    (tmp_path / "small.onnx").write_bytes(small().SerializeToString())
    rng, journal, records = random.Random(7), tmp_path / "mine.trials.jsonl", tmp_path / "mine.jsonl"
    arguments = command("tune", "small.onnx", "--budget", "60s", "--from-scratch", "-o", "mine.jsonl", "--json")
    before = b""
    for _ in range(4):
        running = subprocess.Popen(
            arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ}
        )
        assert running.stdout is not None
        first = running.stdout.readline()  # it measures now
        time.sleep(rng.uniform(0.0, 1.5))
        running.kill()
        told = first + running.stdout.read()
        running.wait()
        running.stdout.close()
        after = journal.read_bytes()
        assert after.startswith(before), "what was written stays"
        kept = {line for line in after.splitlines() if b'"trial"' in line}
        finished = [line for line in told.splitlines() if line.startswith(b'{"event": "trial"') and line.endswith(b"}")]
        assert all(line in kept for line in finished), "what was told is kept"
        before = after[: after.rfind(b"\n") + 1]
        if records.exists():
            assert not read_records(records)[1]
    done = subprocess.run(
        command("tune", "small.onnx", "--budget", "10s", "--from-scratch", "-o", "mine.jsonl", "--json"),
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "trials of an earlier run are known and not measured again" in done.stderr
    trials = Counter((e["kernel"], e["rule"], str(e["config"])) for e in lines(journal) if e["event"] == "trial")
    assert len(trials) > 20
    assert set(trials.values()) == {1}, "nothing is measured twice"
    assert {"conv", "gemm"} == {record.kernel.split()[0] for record in read_records(records)[0]}


def test_ctrl_c_keeps_everything(tmp_path: Path) -> None:
    """It ends at once, without a traceback, and leaves no process behind."""
    (tmp_path / "small.onnx").write_bytes(small().SerializeToString())
    arguments = command("tune", "small.onnx", "--budget", "60s", "--from-scratch", "-o", "mine.jsonl", "--json")
    running = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    while '"final"' not in (line := running.stdout.readline()):
        assert line, "it ended too early"
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "Traceback" not in errors
    assert read_records(tmp_path / "mine.jsonl")[0]


# ---- many machines --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A tracker and two servers on loopback: its address, and the servers."""
    if find_spec("tornado") is None:
        pytest.skip("TVM's RPC tracker needs tornado: pip install 'tvmcnn[tune]'")
    port = free_port()
    log = (tmp_path / "rpc.log").open("w")
    options: dict[str, Any] = {"stdout": log, "stderr": log, "start_new_session": True}
    head = [sys.executable, "-m"]
    address = f"127.0.0.1:{port}"
    ports = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    running = [subprocess.Popen([*head, "tvm.exec.rpc_tracker", *ports], **options)]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as each:
            if each.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    for _ in range(2):
        # Of two servers that look for a port at once both may find the same, and one then ends.
        own = ["--port", str(port := free_port()), "--port-end", str(port + 1)]
        server = [*head, "tvm.exec.rpc_server", "--tracker", address, "--key", "cpu", "--host", "127.0.0.1", *own]
        running.append(subprocess.Popen(server, **options))
    try:
        _wait_for_servers(address, 2)
        yield address, running[1:]
    finally:
        for each in running:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
        log.close()


def _wait_for_servers(address: str, count: int) -> None:
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning.remote import servers

    for _ in range(100):
        try:
            if servers(address, "cpu")[2] == count:
                return
        except ToolError:
            pass
        time.sleep(0.2)
    pytest.fail("the servers do not come")


def test_a_server_dies_and_the_other_goes_on(
    tracker: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers measure in parallel; one is killed in the middle; the run ends well, and says what it lost."""
    from tvmcnn.tuning import measure

    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    address, servers = tracker
    events = list[dict[str, Any]]()

    def event(entry: Any) -> None:
        events.append(entry)
        if sum(each["event"] == "trial" for each in events) == 30:
            os.killpg(servers[0].pid, signal.SIGKILL)

    tuned = tvmcnn.tune(
        small(), resolve("native").name, "15s", tmp_path / "mine.jsonl",
        known_records=False, rpc_tracker=address, rpc_key="cpu", event=event,
    )  # fmt: skip
    lost = [each for each in events if each["event"] == "lost"]
    assert [each["left"] for each in lost] == [1]
    trials = [each for each in events if each["event"] == "trial"]
    assert len(trials) > 35, "it went on"
    assert {each["outcome"] for each in trials} == {"ok"}
    assert len({(e["kernel"], e["rule"], str(e["config"])) for e in trials}) == len(trials)
    assert {kernel.kernel.split()[0] for kernel in tuned.kernels} == {"conv", "gemm"}
    assert tuned.latency is None
    assert not read_records(tmp_path / "mine.jsonl")[1]


def test_no_server_is_left(
    tracker: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error, and what was measured is kept."""
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning import measure, search

    monkeypatch.setattr(search, "PAUSE", 0.1)
    monkeypatch.setattr(measure, "OPENING", 6.0)
    address, servers = tracker
    seen = list[Any]()

    def event(entry: Any) -> None:
        seen.append(entry)
        if len(seen) == 12:
            for each in servers:
                os.killpg(each.pid, signal.SIGKILL)

    with pytest.raises(ToolError, match=r"nothing is left to measure on: .*; what was measured is kept"):
        tvmcnn.tune(
            small(), resolve("native").name, "60s", tmp_path / "mine.jsonl",
            known_records=False, rpc_tracker=address, rpc_key="cpu", event=event,
        )  # fmt: skip
    assert sum(each["event"] == "trial" for each in lines(tmp_path / "mine.trials.jsonl")) >= 11


def test_trackers_that_do_not_help(
    tracker: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning import remote

    monkeypatch.setattr(remote, "WAIT", 0.5)

    address, _ = tracker
    name = resolve("native").name
    with pytest.raises(ToolError, match="has no server with the key 'gpu'; its keys are: cpu"):
        tvmcnn.tune(small(), name, "5s", tmp_path / "mine.jsonl", rpc_tracker=address, rpc_key="gpu")
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(ToolError, match=f"no RPC tracker answers at {nobody}"):
        tvmcnn.tune(small(), name, "5s", tmp_path / "mine.jsonl", rpc_tracker=nobody, rpc_key="cpu")
    assert not list(tmp_path.glob("*.jsonl"))
