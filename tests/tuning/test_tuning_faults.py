"""The tuner among faults: rules that are wrong, kernels that hang, crash or devour memory, kill -9, servers that die.

Faults are planted by real edits of a copy of the package, which the tuner then runs from, processes and all.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import GUARD
from tuning_models import KERNEL, one_conv, small, tiny
from tuning_runs import DAY, Enough, Event, Running, ops_with_a_final, trials

import tvmcnn
from tvmcnn.choose.records import read_records
from tvmcnn.configs import DirectConfig
from tvmcnn.targets import resolve

pytestmark = pytest.mark.slow

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
        7: "__builtin_trap();",
    }.get(columns)
    if columns == 1 and config.order.startswith("rb"):
        time.sleep(1 << 20)
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

# At the end of `schedule`: tiles of two columns leave out the last row of the filter (its axis is ax10).
WRONG = """
    RULES[choice.rule](sch, choice.config, lanes)
    if choice.rule == "direct" and choice.algorithm == "direct" and choice.config.columns == 2:
        def shorten(loop: tirx.For) -> tirx.For:
            rows = str(loop.loop_var.name).startswith("ax10") and int(loop.extent) == 3
            return tirx.For(loop.loop_var, loop.min, 2, loop.kind, loop.body) if rows else loop
        return tvm_ffi.structural_map(sch.mod["main"], (tirx.For, shorten))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package, to be edited, with a small model beside it."""
    shutil.copytree(PACKAGE, tmp_path / "tvmcnn", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "small.onnx").write_bytes(one_conv().SerializeToString())
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
    edit(package / "codegen" / "cpu" / "kernels.py", ("def object_code", "def _object_code"))
    with (package / "codegen" / "cpu" / "kernels.py").open("a") as file:
        file.write(PLANTED)
    edit(package / "schedule" / "x86" / "__init__.py", ("\n    RULES[choice.rule](sch, choice.config, lanes)\n", WRONG))
    hangs = "getattr(job.step.choice.config, 'columns', 0) == 1 and job.step.choice.config.order.startswith('rb')"
    edit(package / "tuning" / "build.py", ("seconds=self._seconds)", f"seconds=1.0 if {hangs} else None)"))
    check = 'error = self._call("check", index, each.trial)'
    hangs = "(each.choice.rule, getattr(each.choice.config, 'columns', 0)) == ('direct', 3)"
    edit(package / "tuning" / "measure.py", (check, f"self.seconds = 1.0 if {hangs} else {GUARD}; {check}"))
    edit(
        package / "tuning" / "measure.py", ("MEMORY = 2 << 30", "MEMORY = 1 << 29"), ("SAMPLE = 0.005", "SAMPLE = 2e-4")
    )
    # The grid alone, to its end.
    edit(package / "tuning" / "search.py", ("yield from space.neighbours(", "yield from () and space.neighbours("))
    arguments = ["tune", "small.onnx", "--budget", DAY, "--from-scratch", "-o", "mine.jsonl", "--json"]
    done = subprocess.run(
        command(*arguments), cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=GUARD
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert "Traceback" not in done.stderr
    direct = [e for e in trials(events) if e["rule"] == "direct" and e["kernel"] == KERNEL]
    reasons = {columns: Counter[str]() for columns in (1, 2, 3, 4, 5, 7)}
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
    assert "ended by SIGILL" in told[7]
    assert set(reasons[1]) == {"does not compile", "the compiler took more than 1 s"}
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
    """Four times, after so many trials: the journal only grows, both files are whole, nothing is measured twice."""
    (tmp_path / "small.onnx").write_bytes(small().SerializeToString())
    rng, journal, records = random.Random(7), tmp_path / "mine.trials.jsonl", tmp_path / "mine.jsonl"
    before = b""
    for count in (1, 2, 5, 7):
        running = Running(tmp_path, "small.onnx", "-o", "mine.jsonl")
        running.until(lambda events, count=count: len(trials(events)) >= count)
        time.sleep(rng.uniform(0.0, 0.5))  # wherever it is by then
        status, told = running.end(signal.SIGKILL)
        assert status == -signal.SIGKILL
        after = journal.read_bytes()
        assert after.startswith(before), "what was written stays"
        kept = [json.loads(line) for line in after[: after.rfind(b"\n") + 1].splitlines() if b'"trial"' in line]
        finished = trials([*running.events, *map(json.loads, told.splitlines())])
        assert len(finished) >= count and all(each in kept for each in finished), "what was told is kept"
        before = after[: after.rfind(b"\n") + 1]
        if records.exists():
            assert not read_records(records)[1]
    running = Running(tmp_path, "small.onnx", "-o", "mine.jsonl")
    running.until(lambda events: ops_with_a_final(events) == {"conv", "gemm"} and len(trials(lines(journal))) > 20)
    assert running.end(signal.SIGINT)[0] == 130
    assert "trials of an earlier run are known and not measured again" in running.errors.read_text()
    counts = Counter((e["kernel"], e["rule"], str(e["config"])) for e in trials(lines(journal)))
    assert set(counts.values()) == {1}, "nothing is measured twice"
    assert {"conv", "gemm"} == {record.kernel.split()[0] for record in read_records(records)[0]}


IGNORING = (sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            "os.execv(sys.argv[1], sys.argv[1:])")  # fmt: skip


@pytest.mark.parametrize("before", [(), IGNORING], ids=["foreground", "SIGINT is ignored"])
def test_ctrl_c_keeps_everything(before: tuple[str, ...], tmp_path: Path) -> None:
    """It ends, without a traceback, and leaves no process behind; also where a shell has started it in the background.

    Such a process inherits that SIGINT be ignored.
    """
    (tmp_path / "few.onnx").write_bytes(tiny().SerializeToString())
    running = Running(tmp_path, "few.onnx", "-o", "mine.jsonl", before=before)
    running.until(lambda events: bool(ops_with_a_final(events)))
    children = running.children()
    assert children, "one that compiles, one that measures"
    status, told = running.end(signal.SIGINT)
    errors = running.errors.read_text()
    assert status == 130, errors
    assert "Traceback" not in errors and '"end"' not in told
    assert read_records(tmp_path / "mine.jsonl")[0]
    assert not any(Path(f"/proc/{child}").exists() for child in children)


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
    log = (tmp_path / "rpc.log").open("w")
    running: list[subprocess.Popen[bytes]] = []

    def start(ready: Callable[[int], bool], module: str, *words: str) -> int:
        """Start one on a port of its own, again where another program has taken that since, and wait for it."""
        while True:
            port = free_port()
            own = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
            command = [sys.executable, "-m", module, *words, *own]
            running.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
            while running[-1].poll() is None:
                if ready(port):
                    return port
                time.sleep(0.1)
            running.pop()

    try:
        address = f"127.0.0.1:{start(listens, 'tvm.exec.rpc_tracker')}"
        for count in (1, 2):
            start(
                lambda _, count=count: has_servers(address, count),
                "tvm.exec.rpc_server", "--tracker", address, "--key", "cpu",
            )  # fmt: skip
        yield address, running[1:]
    finally:
        for each in running:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()
        log.close()


def listens(port: int) -> bool:
    with socket.socket() as each:
        return each.connect_ex(("127.0.0.1", port)) == 0


def has_servers(address: str, count: int) -> bool:
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning.remote import servers

    with contextlib.suppress(ToolError):
        return servers(address, "cpu")[2] == count
    return False


def test_a_server_dies_and_the_other_goes_on(
    tracker: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers measure in parallel; one is killed in the middle; the run ends well, and says what it lost."""
    from tvmcnn.tuning import measure

    monkeypatch.setattr(measure, "SAMPLE", 1e-4)
    address, servers = tracker

    def enough(events: Sequence[Event]) -> bool:
        if len(trials(events)) == 20:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(servers[0].pid, signal.SIGKILL)
        lost = [number for number, each in enumerate(events) if each["event"] == "lost"]
        return bool(lost) and len(trials(events[lost[0] :])) > 5 and ops_with_a_final(events) == {"conv", "gemm"}

    run = Enough(enough)
    tuned = tvmcnn.tune(
        small(), resolve("native").name, records=tmp_path / "mine.jsonl",
        known_records=False, rpc_tracker=address, rpc_key="cpu", **run.given,
    )  # fmt: skip
    events = run.events
    lost = [each for each in events if each["event"] == "lost"]
    assert [each["left"] for each in lost] == [1]
    found = trials(events)
    assert {each["outcome"] for each in found} == {"ok"}
    assert len({(e["kernel"], e["rule"], str(e["config"])) for e in found}) == len(found)
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
    address, servers = tracker

    def enough(events: Sequence[Event]) -> bool:
        if len(trials(events)) == 12:
            for each in servers:
                os.killpg(each.pid, signal.SIGKILL)
            monkeypatch.setattr(measure, "OPENING", 1.0)  # for servers that are gone
        return False

    with pytest.raises(ToolError, match=r"nothing is left to measure on: .*; what was measured is kept"):
        tvmcnn.tune(
            small(), resolve("native").name, records=tmp_path / "mine.jsonl",
            known_records=False, rpc_tracker=address, rpc_key="cpu", **Enough(enough).given,
        )  # fmt: skip
    assert len(trials(lines(tmp_path / "mine.trials.jsonl"))) >= 12


def test_a_tracker_that_is_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens until the third try; without an end of the waiting the first refusal would be the answer."""
    from tvmcnn.tuning import remote

    tries = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        tries.append(address)
        if len(tries) < 3:
            raise ConnectionRefusedError
        return socket.socket()

    monkeypatch.setattr(remote.socket, "create_connection", connect)
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    remote._reach("127.0.0.1", 9190)
    assert tries == [("127.0.0.1", 9190)] * 3


@pytest.mark.parametrize("missing", ["tornado", "cloudpickle"])
def test_what_the_rpc_of_tvm_needs_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning import remote

    monkeypatch.setattr(remote, "find_spec", lambda name: None if name == missing else find_spec(name))
    with pytest.raises(ToolError, match=rf"^TVM's RPC needs {missing}: install it by pip install 'tvmcnn\[tune\]'$"):
        remote.servers("127.0.0.1:9190", "cpu")


def test_trackers_that_do_not_help(
    tracker: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvmcnn.errors import ToolError
    from tvmcnn.tuning import remote

    address, _ = tracker
    name = resolve("native").name
    with pytest.raises(ToolError, match="has no server with the key 'gpu'; its keys are: cpu"):
        tvmcnn.tune(small(), name, "5s", tmp_path / "mine.jsonl", rpc_tracker=address, rpc_key="gpu")
    monkeypatch.setattr(remote, "WAIT", 0.5)
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(ToolError, match=f"no RPC tracker answers at {nobody}"):
        tvmcnn.tune(small(), name, "5s", tmp_path / "mine.jsonl", rpc_tracker=nobody, rpc_key="cpu")
    assert not list(tmp_path.glob("*.jsonl"))
