"""Threads: the same bits at every count, one pool for all libraries, and nothing left behind when nobody calls."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, wide
from data import ROOT
from helpers import GUARD, feeds

import tvmcnn
from tvmcnn import machine, targets
from tvmcnn.compiler import Compiled
from tvmcnn.errors import InputError

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
NATIVE = ROOT / "tvmcnn" / "codegen" / "native"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("threads")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Compiled:
    return tvmcnn.compile(wide(), output=folder / "wide.so")


@pytest.fixture(scope="module")
def x() -> Array:
    return next(iter(feeds(wide()).values()))


def run_python(program: str, *arguments: Any, prefix: tuple[str, ...] = ()) -> None:
    """Run a program in a process of its own, which has no other threads."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*prefix, sys.executable, "-c", UNTIL + program, *map(str, arguments)]
    done = subprocess.run(command, timeout=GUARD, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_kernel_is_shared(compiled: Compiled) -> None:
    """The control of the tests below: what they run has tasks to share, by every rule."""
    tasks = {step.choice.algorithm: step.choice.tasks for step in compiled.program.steps}
    expected = {"direct", "winograd", "depthwise", "pool", "elementwise", "pixels", "dense"}
    assert {name for name, count in tasks.items() if count > 1} >= expected, tasks
    assert compiled.program.thread_bytes > 0  # of Winograd's scratch


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_same_bits(threads: int, compiled: Compiled, x: Array) -> None:
    one, several = tvmcnn.load(compiled.path, threads=1), tvmcnn.load(compiled.path, threads=threads)
    assert (one.threads, several.threads) == (1, threads)
    wanted = [output.tobytes() for output in one(x)]
    for _ in range(20):
        assert [output.tobytes() for output in several(x)] == wanted
    assert [output.tobytes() for output in several.step_by_step(x)] == wanted
    shown = one.activations(x)
    for name, found in several.activations(x).items():
        assert found.tobytes() == shown[name].tobytes(), name


def test_default_is_what_the_process_may_use(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tvmcnn.load(compiled.path).threads == machine.usable_cpus() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr("tvmcnn.run.usable_cpus", lambda: 7)
    assert tvmcnn.load(compiled.path).threads == 7


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/pod/box\n", "sys/fs/cgroup/pod/cpu.max": "500000 100000\n"}, 5),
        (
            {
                "proc/self/cgroup": "0::/pod/box\n",
                "sys/fs/cgroup/pod/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/pod/box/cpu.max": "600000 100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/other\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_quota_of_a_container(
    files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.usable_cpus(tmp_path) == wanted


QUOTA = """
import os, sys
import numpy as np
import tvmcnn
if len(os.sched_getaffinity(0)) > 1:
    assert tvmcnn.load(sys.argv[1]).threads > 1
with open(sys.argv[2] + "/cgroup.procs", "w") as file:
    file.write("0")
net = tvmcnn.load(sys.argv[1])
assert net.threads == 1, f"{net.threads} threads"
one, two = net(x := np.ones(net.inputs[0].shape, np.float32)), tvmcnn.load(sys.argv[1], threads=2)(x)
assert one[0].tobytes() == two[0].tobytes(), "more threads than the quota are slow, not wrong"
"""


def test_quota_of_a_real_group(compiled: Compiled) -> None:
    """1.5 CPUs are one thread, where this machine lets us make a cgroup."""
    for parent, settings in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"}),
        ("/sys/fs/cgroup", {"cpu.max": "150000 100000"}),
    ):
        group = Path(parent) / f"tvmcnn-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if not (group / next(iter(settings))).exists():
                continue
            for name, text in settings.items():
                (group / name).write_text(text)
            run_python(QUOTA, compiled.path, group)
            return
        finally:
            group.rmdir()
    pytest.skip("no cgroup can be made here")


def test_callers_at_once(compiled: Compiled, x: Array) -> None:
    """One of them has the workers, the others do their work alone."""
    net = tvmcnn.load(compiled.path, threads=2)
    inputs = [x + np.float32(seed) for seed in range(4)]
    wanted = [net(each)[0].tobytes() for each in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        wrong.extend(index for _ in range(30) if net(inputs[index])[0].tobytes() != wanted[index])

    callers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(GUARD)
    assert not any(caller.is_alive() for caller in callers) and not wrong


UNTIL = """
import time
def until(condition, what):  # a worker that waits for a CPU of a busy machine comes to it, too
    end = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)
"""

POOL = """
import os, sys, time
import numpy as np
import tvmcnn
count = lambda: len(os.listdir("/proc/self/task"))
nets = [tvmcnn.load(path, threads=3) for path in sys.argv[1:3]]
inputs = [np.ones(net.inputs[0].shape, np.float32) for net in nets]
small = tvmcnn.load(sys.argv[3], threads=3)
before, affinity, tasks = count(), os.sched_getaffinity(0), set(os.listdir("/proc/self/task"))
small(np.ones(small.inputs[0].shape, np.float32))
assert count() == before, "a network of small kernels starts no thread"
for _ in range(3):
    for net, x in zip(nets, inputs):
        net(x)
assert count() == before + 2, f"{count() - before} threads for two libraries of three"
assert os.sched_getaffinity(0) == affinity
def workers_keep_off():
    for task in set(os.listdir("/proc/self/task")) - tasks:
        cpus = os.sched_getaffinity(int(task))
        if not (cpus <= affinity and len(cpus) == max(1, len(affinity) - 1)):
            return False
    return True
assert workers_keep_off(), "from the caller's CPU"
def asleep():
    spent = time.process_time()
    time.sleep(0.3)
    return time.process_time() - spent < 0.03
until(asleep, "CPU time while nobody calls")
wanted = nets[0](inputs[0])[0].tobytes()
assert nets[0](inputs[0])[0].tobytes() == wanted
if len(affinity) > 1:
    os.sched_setaffinity(0, {max(affinity)})  # the workers follow when they are woken
    affinity = os.sched_getaffinity(0)
    def followed():
        time.sleep(0.02)
        assert nets[0](inputs[0])[0].tobytes() == wanted
        return workers_keep_off()
    until(followed, "the workers follow")
"""


def test_one_pool_that_sleeps(compiled: Compiled, folder: Path) -> None:
    """Two libraries, loaded apart, share their workers; LeNet-5 starts none; idle workers cost no CPU time."""
    other = tvmcnn.compile(wide(), output=folder / "other.so", verify=False)
    lenet = tvmcnn.compile(ROOT / "tvmcnn" / "data" / "lenet5.onnx", output=folder / "lenet.so", verify=False)
    paths = (compiled.path, other.path, lenet.path)
    run_python(POOL, *paths)
    run_python(POOL, *paths, prefix=("taskset", "-c", str(min(os.sched_getaffinity(0)))))


FORK = """
import os, signal, sys, threading
import numpy as np
import tvmcnn
net = tvmcnn.load(sys.argv[1], threads=2)
x = np.random.default_rng(1).standard_normal(net.inputs[0].shape, np.float32)
wanted = net(x)[0].tobytes()

def child():
    signal.alarm(900)  # one that hangs is killed, and that is no exit status of 0
    for _ in range(3):
        if net(x)[0].tobytes() != wanted:
            os._exit(3)
    return len(os.listdir("/proc/self/task"))

def fork(depth):
    pid = os.fork()
    if not pid:
        if child() != 2:
            os._exit(4)  # the child has workers of its own
        os._exit(fork(depth - 1) if depth else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert fork(2) == 0
assert net(x)[0].tobytes() == wanted
stop = threading.Event()
def call():
    while not stop.is_set():
        net(x)
busy = threading.Thread(target=call)
busy.start()
assert [fork(0) for _ in range(10)] == [0] * 10, "while another thread has the pool"
stop.set()
busy.join()
assert net(x)[0].tobytes() == wanted
"""


def test_fork(compiled: Compiled) -> None:
    run_python(FORK, compiled.path)


UNLOAD = """
import os, sys, time
import numpy as np
import tvmcnn
count = lambda: len(os.listdir("/proc/self/task"))
mapped = lambda: [any(path in line for line in open("/proc/self/maps")) for path in sys.argv[1:3]]
first = tvmcnn.load(sys.argv[1])  # it has the memory of the pool
x = np.ones((2, 3, 61, 90), np.float32)
alone, affinity = count(), os.sched_getaffinity(0)
for sleep in (0, 0.01, 0.0011):  # workers that spin, and that sleep
    net = tvmcnn.load(sys.argv[2], threads=4)
    wanted = net(x)[0].tobytes()
    bound = net.bind(x)
    assert (count(), mapped()) == (alone + 3, [True, True])
    time.sleep(sleep)
    del net
    assert (bound()[0].tobytes(), count(), mapped()) == (wanted, alone + 3, [True, True]), "a bound call holds it"
    del bound
    assert mapped() == [True, False], "its code is gone"
    until(lambda: count() == alone, "its threads are gone")  # the kernel lists one that was joined a moment longer
    assert os.sched_getaffinity(0) == affinity
net = tvmcnn.load(sys.argv[2], threads=3)
net(x)
pid = os.fork()
if not pid:
    os._exit(3 if net(x)[0].tobytes() != wanted else 4 if count() != 3 else 0)  # it has workers of its own
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "fork knows the library that came again"
"""


SWAP = """
import sys, threading, time
import numpy as np
import tvmcnn
first = tvmcnn.load(sys.argv[1])
x = np.ones((2, 3, 61, 90), np.float32)
net = tvmcnn.load(sys.argv[2], threads=2)  # its code is the workers'
wanted = net(x)[0].tobytes()
other = tvmcnn.load(sys.argv[3], threads=2)
stop, wrong = threading.Event(), []
def call():
    while not stop.is_set():
        wrong.extend([1] * (other(x)[0].tobytes() != wanted))
busy = threading.Thread(target=call)
busy.start()
for _ in range(20):
    del net
    time.sleep(0.005)
    net = tvmcnn.load(sys.argv[2], threads=2)
    net(x)
stop.set()
busy.join(900)
assert not busy.is_alive() and not wrong
"""


def test_unloaded_while_another_library_has_the_pool(compiled: Compiled, folder: Path) -> None:
    """The pool is never free for long: whoever unloads still gets it, and no worker is left in code that is gone."""
    lenet = tvmcnn.compile(ROOT / "tvmcnn" / "data" / "lenet5.onnx", output=folder / "tiny.so", verify=False)
    copy = folder / "copy.so"
    copy.write_bytes(compiled.path.read_bytes())
    run_python(SWAP, lenet.path, compiled.path, copy)


def test_unloaded_with_its_threads(compiled: Compiled, folder: Path) -> None:
    """With the last runner and the last bound call; the pool goes on with the next library."""
    lenet = tvmcnn.compile(ROOT / "tvmcnn" / "data" / "lenet5.onnx", output=folder / "small.so", verify=False)
    run_python(UNLOAD, lenet.path, compiled.path)


STRESS = r"""
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include "pool.h"

typedef void launch(tvmcnn_kernel, const void *, int32_t, int32_t, char *, int64_t);
static launch *launches[2];
typedef struct { _Atomic int done[4096]; } job;

static void count(const void *frame, char *scratch, int32_t begin, int32_t end) {
  job *j = (job *)frame;
  for (int32_t i = begin; i < end; ++i) { ++*(volatile int *)scratch; atomic_fetch_add(&j->done[i], 1); }
}

static void *caller(void *seed) {
  unsigned state = (unsigned)(long)seed;
  job *j = calloc(1, sizeof *j);
  char *scratch = calloc(64, 64);
  for (int round = 0; round < ROUNDS; ++round) {
    int tasks = 1 + rand_r(&state) % (round % 50 ? 40 : 4096), threads = 1 + rand_r(&state) % 6;
    launches[rand_r(&state) % 2](count, j, tasks, threads, scratch, 64);
    for (int i = 0; i < tasks; ++i)
      if (atomic_exchange(&j->done[i], 0) != 1) { fprintf(stderr, "task %d of %d\n", i, tasks); exit(1); }
  }
  free(j);
  free(scratch);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  for (int i = 0; i < 2; ++i) launches[i] = (launch *)dlsym(dlopen(argv[1 + i], RTLD_NOW | RTLD_LOCAL), "launch");
  pthread_t threads[3];
  for (long i = 0; i < 3; ++i) pthread_create(&threads[i], NULL, caller, (void *)(i + 1));
  for (int i = 0; i < 3; ++i) pthread_join(threads[i], NULL);
  return 0;
}
"""


SANITIZERS = {"": 20000, "thread": 1500, "address,undefined": 5000}  # rounds of three callers each


@pytest.mark.parametrize("sanitizer", SANITIZERS, ids=lambda name: name or "plain")
def test_every_task_runs_once(sanitizer: str, tmp_path: Path) -> None:
    """Three callers, two libraries with the pool, launches of 1 to 4096 tasks on 1 to 6 threads.

    With -fsanitize=thread, too: that the workers never see a job half written, or run one that is over.
    """
    (tmp_path / "stress.c").write_text(STRESS)
    launch = '#include "pool.c"\nvoid launch(tvmcnn_kernel k, const void *f, int32_t n, int32_t t, char *s, int64_t b)'
    (tmp_path / "launch.c").write_text(launch + " { tvmcnn_parallel(k, f, n, t, s, b); }\n")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-pthread", f"-DROUNDS={SANITIZERS[sanitizer]}"]
    flags += [f"-DTVMCNN_PAUSE={targets.TARGETS['x86-64-v3'].pause}"]
    if sanitizer:
        flags += ["-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
        probe = ["cc", *flags, "-x", "c", "-", "-o", str(tmp_path / "probe")]
        if subprocess.run(probe, input=b"int main(void) { return 0; }", capture_output=True).returncode:
            pytest.skip(f"the C compiler has no -fsanitize={sanitizer}")
    for name in ("one.so", "two.so"):
        command = ["cc", "-shared", "-fPIC", *flags, "-o", name, "launch.c", str(NATIVE / "pool.s")]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=GUARD)
    subprocess.run(["cc", *flags, "-o", "stress", "stress.c", "-ldl"], cwd=tmp_path, check=True, timeout=GUARD)
    done = subprocess.run(
        ["./stress", "./one.so", "./two.so"], cwd=tmp_path, timeout=GUARD, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


CALLS = """
import gc, re, sys
import numpy as np
import tvmcnn
resident = lambda: int(re.search(r"RssAnon:\\s*(\\d+)", open("/proc/self/status").read())[1])
net = tvmcnn.load(sys.argv[1])
x = np.ones(net.inputs[0].shape, np.float32)
call = net.bind(x)

def work(calls, binds):
    for _ in range(calls):
        call()
    for _ in range(binds):
        net(x)
        net.bind(x)()
    for _ in range(binds // 100):
        tvmcnn.load(sys.argv[1])(x)
    gc.collect()
    return resident()

before = work(1000, 1000)
after = work(200_000, 5_000)
assert after - before < 128, f"{after - before} KB more after 200,000 calls"
"""


def test_many_calls_leak_nothing(folder: Path) -> None:
    lenet = tvmcnn.compile(ROOT / "tvmcnn" / "data" / "lenet5.onnx", output=folder / "calls.so", verify=False)
    run_python(CALLS, lenet.path)


def test_arenas_of_a_crowd_are_freed(compiled: Compiled, x: Array) -> None:
    """A dozen callers at once need a dozen arenas; as many as twice the CPUs are kept for the next."""
    net = tvmcnn.load(compiled.path, threads=1)
    made, barrier = net._new_arena, threading.Barrier(12)

    def new_arena() -> tuple[int, Array]:
        barrier.wait(GUARD)
        return made()

    net._new_arena = new_arena
    callers = [threading.Thread(target=net, args=(x,)) for _ in range(12)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(GUARD)
    assert len(net._arenas) == min(12, 2 * machine.usable_cpus())


# ---- bound calls ----------------------------------------------------------------------------------------------------


def test_bound_call_sees_its_arrays(compiled: Compiled, x: Array) -> None:
    """What the inputs hold by then, into the outputs given; the arrays live as long as the function."""
    net = tvmcnn.load(compiled.path, threads=2)
    given, outputs = x.copy(), tuple(np.empty(info.shape, np.float32) for info in net.outputs)
    call = net.bind(given, out=outputs)
    assert call() is outputs
    assert [y.tobytes() for y in outputs] == [y.tobytes() for y in net(x)]
    given[:] = 2 * x
    assert [y.tobytes() for y in call()] == [y.tobytes() for y in net(2 * x)]
    alone = net.bind(x.copy())
    gc.collect()
    junk = [np.full_like(x, np.nan) for _ in range(8)]
    assert [y.tobytes() for y in alone()] == [y.tobytes() for y in net(x)]
    assert len(junk) == 8


def test_bound_call_refuses(compiled: Compiled, x: Array) -> None:
    net = tvmcnn.load(compiled.path)
    with pytest.raises(InputError, match="0 inputs given"):
        net.bind()
    with pytest.raises(InputError, match="is not C-contiguous and aligned: a call could not see it change"):
        net.bind(np.asfortranarray(x))
    with pytest.raises(InputError, match="native float32"):
        net.bind(x.astype(np.float64))
    with pytest.raises(InputError, match="compiled for"):
        net.bind(x[:1])
    with pytest.raises(InputError, match="1 arrays in out="):
        net.bind(x, out=np.empty(3, np.float32))
    outputs = tuple(np.empty(info.shape, np.float32) for info in net.outputs)
    outputs[1].flags.writeable = False
    with pytest.raises(InputError, match="writeable"):
        net.bind(x, out=outputs)


def test_bound_call_of_any_batch(folder: Path) -> None:
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 3, 7, 9), 5, (3, 2))))
    model = g.model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    compiled = tvmcnn.compile(model, output=folder / "batches.so", batch=[1, 4], verify=False)
    net = tvmcnn.load(compiled.path)
    for batch in (1, 4, 6):
        x = np.random.default_rng(batch).standard_normal((batch, 3, 7, 9), np.float32)
        assert net.bind(x)().tobytes() == net(x).tobytes()


def test_idle_worker_wakes_again(compiled: Compiled, x: Array) -> None:
    """After it slept: a launch is not missed."""
    net = tvmcnn.load(compiled.path, threads=2)
    wanted = net(x)[0].tobytes()
    for pause in (0.0005, 0.001, 0.002, 0.01) * 3:
        time.sleep(pause)
        assert net(x)[0].tobytes() == wanted
