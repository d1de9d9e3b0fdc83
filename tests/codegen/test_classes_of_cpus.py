"""One library for several classes of CPUs: each verified, the best taken, none run where the CPU is no such."""

from __future__ import annotations

import ctypes
import multiprocessing
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from builders import Graph, lenet
from data import LENET5
from helpers import feeds

import tvmcnn
from tvmcnn import targets
from tvmcnn.compiler import Compiled
from tvmcnn.errors import ArtifactError, TargetError

pytestmark = pytest.mark.slow

V3, V4 = "x86-64-v3", "x86-64-v4"
EMULATOR = shutil.which("qemu-x86_64")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """LeNet-5 for two classes and two batch sizes."""
    return tvmcnn.compile(LENET5, f"{V3},{V4}", tmp_path_factory.mktemp("classes") / "both.so", batch=[1, 3])


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 1, 32, 32), dtype=np.float32)


def pretend(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """The CPU has what a class needs and no more."""
    monkeypatch.setattr("tvmcnn.run.cpu_flags", lambda: frozenset(targets.TARGETS[target].features))


def test_each_is_as_alone(both: Compiled, tmp_path: Path) -> None:
    """Bit for bit what a library for that class alone computes; as many verdicts as this CPU runs programs."""
    runnable = [target for target in (V4, V3) if not targets.TARGETS[target].missing()]
    assert len(both.verdicts) == 2 * len(runnable)
    assert [each.name for each in both.targets] == [V4, V3]
    for target in runnable:
        alone = tvmcnn.load(tvmcnn.compile(LENET5, target, tmp_path / f"{target}.so", batch=[1, 3]).path)
        one = tvmcnn.load(both.path, target=target)
        assert (one.target, one.name) == (target, "both")
        for count in (1, 3, 4):
            np.testing.assert_array_equal(one(images(count)), alone(images(count)))


def test_the_best_is_taken(both: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    if not targets.TARGETS[V4].missing():
        assert tvmcnn.load(both.path).target == V4
    pretend(monkeypatch, V3)
    assert tvmcnn.load(both.path).target == V3
    monkeypatch.setattr("tvmcnn.run.cpu_flags", lambda: frozenset({"avx", "fma"}))
    with pytest.raises(ArtifactError, match=r"made for x86-64-v3; this CPU \(.*\) lacks avx2, bmi1, bmi2, f16c, abm"):
        tvmcnn.load(both.path)
    with pytest.raises(ArtifactError, match="made for x86-64-v4, x86-64-v3; it has no code for cuda:sm_90"):
        tvmcnn.load(both.path, target="cuda:sm_90")


def test_the_cpu_itself_is_asked(both: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever /proc/cpuinfo says: under an emulator it is the host's."""
    denied = {V4: ["avx512f"], V3: []}
    monkeypatch.setattr("tvmcnn.run._denied", lambda path, manifest: denied[manifest["target"]["name"]])
    pretend(monkeypatch, V4)
    assert tvmcnn.load(both.path).target == V3
    denied[V3] = ["avx2"]
    with pytest.raises(ArtifactError, match="lacks avx2"):
        tvmcnn.load(both.path)


def test_c_entries_choose(both: Compiled) -> None:
    """The CPU that runs the entries decides; one arena is large enough for each class."""
    library = ctypes.CDLL(str(both.path))
    for name, count in (("both", 1), ("both_b3", 3)):
        size = int(re.search(rf"#define {name.upper()}_ARENA_BYTES (\d+)", both.header).group(1))  # type: ignore[union-attr]
        x, y = images(count), np.empty((count, 10), np.float32)
        arena = np.zeros(size + 64, np.uint8)
        address = arena.ctypes.data + -arena.ctypes.data % 64
        assert library[f"{name}_check"]() == 0
        pointers = [ctypes.c_void_p(p) for p in (x.ctypes.data, y.ctypes.data, address)]
        assert library[f"{name}_run"](*pointers) == 0
        np.testing.assert_array_equal(y, tvmcnn.load(both.path)(x))
        assert library[f"{name}_run_threads"](*pointers[:2], None, 2) == 1


def test_c_callers_arena_is_enough(tmp_path: Path) -> None:
    """An arena of exactly the size that the header promises, for every class and thread, has nothing around it written.

    Winograd needs scratch, in one class more than in the other.
    """
    g = Graph()
    x = g.node("Relu", g.conv(g.input(1, 16, 9, 14), 32, (3, 3), pads=[1, 1, 1, 1]))
    g.output(g.node("Flatten", g.node("GlobalMaxPool", x)))
    model = g.model()
    compiled = tvmcnn.compile(model, f"{V3},{V4}", tmp_path / "w.so", verify=False)
    arena, thread = (int(re.search(rf"W_{word}_BYTES (\d+)", compiled.header)[1]) for word in ("ARENA", "THREAD"))  # type: ignore[index]
    needs = [(program.arena_bytes, program.thread_bytes) for program in compiled.programs]
    assert all(min(each) > 0 for each in needs) and len({*needs}) == 2
    assert arena >= max(map(sum, needs)) and thread == max(each for _, each in needs)
    library, (image,) = ctypes.CDLL(str(compiled.path)), feeds(model).values()
    for target in (V3, V4):
        if targets.TARGETS[target].missing():
            continue
        wanted = tvmcnn.load(compiled.path, target=target)(image)
        run = library[f"w_{target.removeprefix('x86-64-')}_run_threads"]
        for threads in (1, 3):
            size = arena + (threads - 1) * thread
            memory = np.full(3 * size + 64, 0xA5, np.uint8)
            first = size - (memory.ctypes.data + size) % 64 + 64
            y = np.empty_like(wanted)
            pointers = (image.ctypes.data, y.ctypes.data, memory.ctypes.data + first)
            assert run(*map(ctypes.c_void_p, pointers), threads) == 0
            np.testing.assert_array_equal(y, wanted)
            assert np.all(memory[:first] == 0xA5) and np.all(memory[first + size :] == 0xA5), (target, threads)


@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed: apt install qemu-user")
@pytest.mark.parametrize(
    ("cpu", "wanted"), [("Haswell", "x86-64-v3 "), ("Nehalem", "lacks avx, avx2, bmi1, bmi2, f16c, fma, abm")]
)
def test_older_cpus(cpu: str, wanted: str, both: Compiled) -> None:
    """Emulated ones: AVX2 without AVX-512 runs it, SSE alone hears what it lacks; no instruction is illegal."""
    code = f"""
import numpy as np, tvmcnn
try:
    net = tvmcnn.load({str(both.path)!r}, threads=1)
    print(net.target, float(net(np.ones((1, 1, 32, 32), np.float32))[0, 8]))
except tvmcnn.ArtifactError as error:
    print(error)
"""
    done = subprocess.run([str(EMULATOR), "-cpu", cpu, sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert wanted in done.stdout
    if cpu == "Haswell":
        ones = tvmcnn.load(both.path, target=V3)(np.ones((1, 1, 32, 32), np.float32))
        assert abs(float(done.stdout.split()[1]) - float(ones[0, 8])) < 1e-6


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("x86-64-v3,native", "'native' cannot be one of several; those that can are x86-64-v3, x86-64-v3-vnni"),
        ("x86-64-v4,cuda:sm_80", "'cuda:sm_80' cannot be one of several"),
        ("x86-64-v3,x86-64-v3", "names x86-64-v3 twice"),
        ("x86-64-v3,", "'' cannot be one of several"),
    ],
)
def test_lists_that_are_none(target: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=re.escape(words)):
        tvmcnn.compile(lenet(1), target, tmp_path / "net.so")


# ---- other processes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, [1, 3]])
def test_a_runner_pickles(batch: int | list[int], tmp_path: Path) -> None:
    """A runner pickles by path and hash: a spawned process computes the same, and refuses a file that was replaced."""
    path = tvmcnn.compile(LENET5, V3, tmp_path / "net.so", batch=batch).path
    net = tvmcnn.load(path, threads=1)
    data, x = pickle.dumps(net), images(1)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert (again.threads, again.target) == (1, V3)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for y in pool.map(net, [x] * 5):
            np.testing.assert_array_equal(y, net(x))
    tvmcnn.compile(LENET5, V3, path, batch=batch, activations=False)
    code = f"import pickle; pickle.loads({data!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.search(r"is another library than the one that was pickled: its hash is \w{12}…, not \w{12}…", done.stderr)
