"""Memory between guards, and what becomes of a kernel that strays."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph

import tvmcnn
from tvmcnn.check import observe
from tvmcnn.check.guards import PAGE, PATTERN, Guarded, Watch
from tvmcnn.codegen.cpu import chain
from tvmcnn.errors import VerifyError
from tvmcnn.worker_process import Isolated, LostError

pytestmark = pytest.mark.slow

SIZE = 3 * PAGE // 2 + 12


def touch(offset: int, write: bool) -> bool:
    """Read or write one byte at `offset` from the beginning of a guarded block; whether it is still whole."""
    block = Guarded((SIZE,), "uint8")
    around = np.lib.stride_tricks.as_strided(block.array, (1 << 20,), (1,)) if offset >= 0 else None
    if around is None:
        import ctypes

        byte = ctypes.c_uint8.from_address(block.array.ctypes.data + offset)
        byte.value = 7 if write else byte.value
    elif write:
        around[offset] = 7
    else:
        int(around[offset])
    return block.whole


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("offset", [SIZE, SIZE + PAGE - 1, -2 * PAGE + SIZE % PAGE])
def test_past_the_guards_a_process_dies(offset: int, write: bool) -> None:
    with closing(Isolated(quiet=True)) as process, pytest.raises(LostError, match="SIGSEGV"):
        process.call("test_guards:touch", offset, write)


def test_below_the_beginning_the_pattern_tells() -> None:
    assert touch(0, True)
    assert touch(-1, False)
    assert not touch(-1, True)


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "float32"])
def test_a_block_is_an_array(dtype: str) -> None:
    given = np.arange(3 * 5 * 7).reshape(3, 5, 7).astype(dtype)
    block = Guarded.holding(given)
    np.testing.assert_array_equal(block.array, given)
    assert block.array.flags.c_contiguous
    assert block.whole
    assert (Guarded((5,), "uint8").array == PATTERN).all()
    assert Guarded((0, 3), dtype).array.shape == (0, 3)


def test_what_else_changes_is_told() -> None:
    arena = np.zeros(100, np.uint8)
    watch = Watch(arena)
    arena[10:20] = 1
    assert watch.strays([(10, 20)]) is None
    arena[15] = 2
    assert watch.strays([(10, 15), (16, 20)]) == (15, 15)
    arena[5:7] = arena[30] = 3
    assert watch.strays([(6, 7)]) == (5, 30)


# ---- libraries that stray -------------------------------------------------------------------------------------------


def small() -> Any:
    g = Graph(3)
    x = g.conv(g.input(1, 16, 7, 9), 33, (3, 3), pads=[1, 1, 1, 1])
    g.output(g.conv(g.node("Relu", x), 16, (1, 1)), g.node("Sigmoid", x))
    return g.model()


def planted(monkeypatch: pytest.MonkeyPatch, statement: str) -> None:
    """Let the second kernel of the network do one thing more."""
    real = chain.call

    def call(step: Any) -> str:
        return f"{statement} {real(step)}" if step.choice.name.startswith("k1_") else real(step)

    monkeypatch.setattr(chain, "call", call)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("__builtin_trap();", "in kernel k1_.*SIGILL"),
        ("*(volatile char *)8 = 0;", "in kernel k1_.*SIGSEGV: it reads or writes outside of its memory"),
    ],
)
def test_a_kernel_that_crashes_is_named(
    statement: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(monkeypatch, statement)
    with pytest.raises(VerifyError, match=told):
        tvmcnn.compile(small(), output=tmp_path / "small.so")
    assert not [*tmp_path.iterdir()]


def test_a_kernel_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "SECONDS", 4.0)  # of a process that would wait for ever
    planted(monkeypatch, 'for (;;) __asm__ volatile("");')
    with pytest.raises(VerifyError, match=r"in kernel k1_.*took more than"):
        tvmcnn.compile(small(), output=tmp_path / "small.so")


def test_a_kernel_that_writes_another_tensor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says where a kernel's output is: with a place that is not its own every byte of it strays."""
    real: Callable[..., Any] = observe._written
    compiled = tvmcnn.compile(small(), output=tmp_path / "small.so")
    runner = tvmcnn.load(compiled.path)
    x = np.zeros((1, 16, 7, 9), np.float32)
    observed = observe.observed(str(compiled.path), runner.target, 1, runner.symbol, [x], str(_trail(tmp_path)))
    assert {*observed.tensors} >= {info.name for info in runner.outputs}
    monkeypatch.setattr(observe, "_written", lambda *given: [(a + 64, b) for a, b in real(*given)])
    with pytest.raises(VerifyError, match=r"kernel k\d_\w+ writes bytes \d+ to \d+ of the arena"):
        observe.observed(str(compiled.path), runner.target, 1, runner.symbol, [x], str(_trail(tmp_path)))


def _trail(folder: Path) -> Path:
    path = folder / "trail"
    path.write_bytes(b"")
    return path


def test_a_library_is_seen_from_another_process(tmp_path: Path) -> None:
    """One process serves all verifications of a thread; none of their libraries is mapped here."""
    pids = set()
    for name in ("small", "again"):
        compiled = tvmcnn.compile(small(), output=tmp_path / f"{name}.so")
        process = observe._worker()._process
        assert process is not None
        assert process.poll() is None
        pids.add(process.pid)
    assert len(pids) == 1
    maps = Path("/proc/self/maps").read_text()
    assert compiled.path.name not in maps


def test_an_older_library_has_no_frames_around_its_volumes(tmp_path: Path) -> None:
    """Its manifest does not say how many, and may be checked all the same."""
    g = Graph()
    g.output(g.conv(g.node("Relu", g.conv(g.input(1, 3, 5, 7), 18, (1, 1))), 20, (2, 3)))
    net = tvmcnn.load(tvmcnn.compile(g.model(), output=tmp_path / "net.so", verify=False).path)
    kernels = [kernel for kernel in net.manifest["kernels"] if kernel["output"]["space"] == "arena"]
    found = [[*observe._written(net, kernel)] for kernel in kernels]
    for kernel in kernels:
        del kernel["output"]["ends"]
    assert kernels and [[*observe._written(net, kernel)] for kernel in kernels] == found
