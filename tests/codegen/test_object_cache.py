"""The cache of compiled kernels and verdicts: what hits, what misses, what is compiled once, and that nothing of it
shows in the library.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import Graph
from data import ROOT

import tvmcnn
from tvmcnn import cache as caches
from tvmcnn.cache import Cache
from tvmcnn.check import new_library, verify
from tvmcnn.choose import cuda as gpu
from tvmcnn.choose.cpu import choose
from tvmcnn.choose.records import NONE
from tvmcnn.codegen import jobs, workers
from tvmcnn.codegen.cpu.generate import Functions
from tvmcnn.errors import ToolError
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.layout import Weights, lay_out
from tvmcnn.network import Program
from tvmcnn.targets import TARGETS

pytestmark = pytest.mark.slow

V3 = TARGETS["x86-64-v3"]


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """An empty cache of the test's own, in use."""
    monkeypatch.setenv("TVMCNN_CACHE", str(tmp_path / "cache"))
    return Cache.default()


def blocks(count: int, maps: int = 16) -> Graph:
    """So many equal residual blocks."""
    g = Graph()
    x = g.conv(g.input(1, 3, 5, 7), maps, (1, 1))
    for _ in range(count):
        x = g.node("Relu", g.node("Add", g.conv(x, maps, (3, 3), pads=[1, 1, 1, 1]), x))
    g.output(g.node("AveragePool", x, kernel_shape=[2, 3], pads=[1, 0, 0, 1]))
    return g


def program(model: Any) -> Program:
    network = simplified(import_model(model, name="net"))
    return lay_out(network, choose(network, fuse(network), V3, NONE), Weights())


def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The symbols that are compiled from now on, by this process."""
    from tvmcnn.codegen.cpu import kernels

    seen: list[str] = []
    real = kernels.object_code

    def counting(job: jobs.Job) -> bytes:
        seen.append(job.symbol)
        return real(job)

    monkeypatch.setattr(kernels, "object_code", counting)
    return seen


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_where_a_part_ends_counts() -> None:
    parts = (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"], [b"ab", "\0c"])
    assert len({caches.digest_of(each) for each in parts}) == len(parts)
    assert caches.digest_of(["ä"]) == caches.digest_of(["ä".encode()])


def test_equal_kernels_are_one_function() -> None:
    made = program(blocks(4).model())
    functions = Functions.of([made], V3, activations=True)
    (symbols,) = functions.symbols
    blocks_ = [symbol for name, symbol in symbols.kernels.items() if name.endswith("_conv")][1:]
    assert len(blocks_) == 4
    assert len(set(blocks_)) == 1
    assert len({*symbols.opened.values()}) == 1
    assert len(functions.jobs) == len({*symbols.kernels.values(), *symbols.opened.values()})


def keys(model: Any) -> list[str]:
    return [job.key for job in Functions.of([program(model)], V3, activations=True).jobs.values()]


def test_names_do_not_count() -> None:
    model = blocks(1).model()
    before = keys(model)
    for node in model.graph.node:
        node.name = f"other.{node.name}"
        node.input[:] = [f"{name}'" for name in node.input]
        node.output[:] = [f"{name}'" for name in node.output]
    for named in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        named.name += "'"
    assert keys(model) == before


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g.input(1, 3, 6, 7),  # a shape
        lambda g: g.input(1, 4, 5, 7),
    ],
)
def test_shapes_count(edit: Callable[[Graph], str]) -> None:
    g, other = Graph(), Graph()
    g.output(g.conv(g.input(1, 3, 5, 7), 16, (3, 2)))
    other.output(other.conv(edit(other), 16, (3, 2)))
    assert keys(g.model()) != keys(other.model())


def test_everything_that_decides_the_code_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph()
    g.output(g.node("LeakyRelu", g.conv(g.input(1, 3, 5, 7), 16, (3, 2)), alpha=0.25))
    (step,) = [step for step in program(g.model()).steps if step.choice.kernel.anchor.op == "Conv"]
    plain = jobs.without_names(step)
    choice, kernel = plain.choice, plain.choice.kernel
    conv, relu = kernel.nodes

    def with_nodes(*nodes: Any) -> Any:
        return dataclasses.replace(
            plain, choice=dataclasses.replace(choice, kernel=dataclasses.replace(kernel, nodes=nodes))
        )

    variants = [
        plain,
        with_nodes(conv, dataclasses.replace(relu, attributes={"alpha": 0.5})),
        with_nodes(conv, dataclasses.replace(relu, op="Relu", attributes={})),
        with_nodes(dataclasses.replace(conv, attributes={**conv.attributes, "pads": (1, 0, 0, 0)}), relu),
        dataclasses.replace(
            plain, choice=dataclasses.replace(choice, config=dataclasses.replace(choice.config, unroll=7))
        ),
        dataclasses.replace(plain, choice=dataclasses.replace(choice, rule="fallback")),
        dataclasses.replace(
            plain, packed={n: dataclasses.replace(t, dtype="float64") for n, t in plain.packed.items()}
        ),
    ]
    found = [jobs.Job(variant, False, V3).key for variant in variants]
    found += [jobs.Job(plain, True, V3).key, jobs.Job(plain, False, TARGETS["x86-64-v4"]).key]
    monkeypatch.setattr(jobs, "_tools", lambda sources: "another release")
    found.append(jobs.Job(plain, False, V3).key)
    assert len(set(found)) == len(found)


PACKAGE = Path(tvmcnn.__file__).parent
# What they decide is itself in the key.
KNOWN = {*(PACKAGE / "targets").glob("*.py"), *(PACKAGE / name for name in ("cache.py", "codegen/jobs.py"))}


def decisive(make: Callable[[], object]) -> set[str]:
    """Our files whose code runs in `make`, and those that they import, for constants: but the KNOWN."""
    found: set[str] = set()

    def note(frame: types.FrameType, event: str, argument: object) -> None:
        found.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        make()
    finally:
        sys.setprofile(None)
    ran = {Path(name) for name in found if Path(name).is_relative_to(PACKAGE)} - KNOWN
    modules = {name for file in ran for name in IMPORTED.findall(file.read_text())}
    files = {PACKAGE.joinpath(*name.split(".")) for name in modules}
    imported = {each / "__init__.py" if each.is_dir() else each.with_suffix(".py") for each in files}
    return {str(file.relative_to(PACKAGE)) for file in (ran | imported) - KNOWN}


IMPORTED = re.compile(r"^ *from tvmcnn\.([\w.]+) import ", re.MULTILINE)


@pytest.mark.parametrize("where", ["CPU", "GPU"])
def test_an_edit_of_any_source_counts(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever had a hand in the code of a kernel, or in its CUDA C++: then it has another key, and another name."""
    from tvmcnn.codegen.cpu import kernels
    from tvmcnn.codegen.cuda import kernel as cuda

    model = blocks(1).model()
    network = simplified(import_model(model, name="net"))
    choices = gpu.choose(network, fuse(network)) if where == "GPU" else choose(network, fuse(network), V3, NONE)
    steps = [jobs.without_names(step) for step in lay_out(network, choices, Weights()).steps]

    def make() -> None:
        for step in steps:
            if where == "GPU":
                cuda.device_code(step, "kernel")
            else:
                kernels.object_code(jobs.Job(step, bool(step.choice.kernel.hidden), V3))

    files = decisive(make)
    assert {"network.py", "ops/conv.py" if where == "CPU" else "ops/cuda/gemm.py", "schedule/steps.py"} <= files
    shutil.copytree(PACKAGE, tmp_path / "tvmcnn", ignore=lambda folder, names: [n for n in names if n == "schedules"])
    monkeypatch.setattr(caches, "__file__", str(tmp_path / "tvmcnn" / "cache.py"))

    def key() -> str:
        jobs._tools.cache_clear()
        caches.sources_digest.cache_clear()
        return jobs.gpu_key(steps[0]) if where == "GPU" else jobs.Job(steps[0], False, V3).key

    try:
        before = key()
        for name in files:
            file = tmp_path / "tvmcnn" / name
            text = file.read_text()
            file.write_text(f"{text}# edited")
            assert key() != before, name
            file.write_text(text)
        assert key() == before
    finally:
        jobs._tools.cache_clear()


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_the_second_compile_compiles_nothing(kept: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = blocks(2).model(), tmp_path / "net.so"
    seen, lines = compiled(monkeypatch), list[str]()
    tvmcnn.compile(model, output=path)
    first, count = path.read_bytes(), len(seen)
    assert count == len(set(seen)) > 0
    monkeypatch.setattr(new_library, "verify_library", pytest.fail)
    tvmcnn.compile(model, output=path, report=lines.append)
    assert len(seen) == count
    assert path.read_bytes() == first
    assert lines[-1].startswith("verified against NumPy: ")
    assert lines[-1].endswith(", when the same library was compiled before")


def test_another_model_of_the_same_kernels_is_verified(
    kept: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights are another image; the verdict is not theirs."""
    seen, judged = compiled(monkeypatch), list[Path]()
    real = verify.verify_library
    monkeypatch.setattr(
        new_library, "verify_library", lambda *given, **named: judged.append(given[0]) or real(*given, **named)
    )
    for seed in (0, 1):
        g = Graph(seed)
        g.output(g.conv(g.input(1, 3, 5, 7), 16, (3, 2)))
        tvmcnn.compile(g.model(), output=tmp_path / f"net{seed}.so")
    assert len(seen) == len(set(seen))
    assert len(judged) == 2


def test_a_damaged_entry_is_none(kept: Cache, tmp_path: Path) -> None:
    model, path = blocks(1).model(), tmp_path / "net.so"
    tvmcnn.compile(model, output=path)
    first = path.read_bytes()
    for _, _, entry in kept.entries():
        data = bytearray(entry.read_bytes())
        data[len(data) // 2] ^= 1
        entry.write_bytes(bytes(data))
    tvmcnn.compile(model, output=path)
    assert path.read_bytes() == first
    for _, _, entry in kept.entries():
        entry.write_bytes(b"")
    tvmcnn.compile(model, output=path)
    assert path.read_bytes() == first


def test_bytes_do_not_depend_on_cache_or_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    g = blocks(1)
    for maps in (17, 18, 19, 33):  # enough different kernels for workers
        g.output(g.node("Relu", g.conv(g.nodes[0].output[0], maps, (2, 3))), g.conv(g.nodes[0].output[0], maps, (1, 2)))
    model, found = g.model(), []
    for folder, processes in (("off", 1), ("cold", 2), ("cold", 1), ("off", 2)):
        monkeypatch.setenv("TVMCNN_CACHE", "off" if folder == "off" else str(tmp_path / folder))
        path = tmp_path / "net.so"
        tvmcnn.compile(model, output=path, jobs=processes, verify=False)
        found.append(path.read_bytes())
    assert found.count(found[0]) == len(found)


def test_two_processes_at_once(kept: Cache, tmp_path: Path) -> None:
    program_ = "import sys, tvmcnn; tvmcnn.compile(*sys.argv[1:2], output=sys.argv[2], verify=False)"
    model = tmp_path / "net.onnx"
    model.write_bytes(blocks(2).model().SerializeToString())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    started = [
        subprocess.Popen([sys.executable, "-c", program_, str(model), str(folder / "net.so")], env=environment)
        for folder in folders
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    first, second = ((folder / "net.so").read_bytes() for folder in folders)
    assert first == second


def test_the_oldest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    names = [caches.digest_of([str(n)]) for n in range(4)]
    for age, key in enumerate(names):
        cache.put(key, bytes(1000))
        os.utime(cache._path(tmp_path, key), (age, age))
    assert cache.get(names[0]) == bytes(1000)  # used now
    cache.prune(2 * 1032)
    assert [cache.get(key) is not None for key in names] == [True, False, False, True]
    assert cache.clear() == 2
    assert not cache.entries()


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TVMCNN_CACHE", str(tmp_path / "file" / "cache"))
    g, lines = Graph(), list[str]()
    g.output(g.node("Relu", g.input(2, 3)))
    assert tvmcnn.compile(g.model(), output=tmp_path / "net.so", report=lines.append).path.exists()
    said = [line for line in lines if line.startswith("nothing of this compile is kept")]
    assert said == [f"nothing of this compile is kept for the next: {tmp_path / 'file'}: File exists"]


def test_a_folder_that_others_may_fill_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Object code from such a folder would run as the user."""
    cache = Cache(tmp_path / "new" / "cache")
    old = os.umask(0)
    try:
        assert cache.obstacle() == ""
    finally:
        os.umask(old)
    assert cache.folder is not None and cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o755)
    assert cache.obstacle() == "", "others may read it, and look into it"
    cache.folder.chmod(0o770)
    assert "may be written by others" in cache.obstacle()
    cache.folder.chmod(0o700)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    assert "belongs to another user" in cache.obstacle()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """TVMCNN_CACHE may name a folder that holds more than the cache, such as a home with a folder db."""
    theirs = [tmp_path / "db" / "data", tmp_path / "ab" / ("f" * 61), tmp_path / "go" / ("0" * 62)]
    for path in theirs:
        path.parent.mkdir()
        path.write_bytes(bytes(100))
    cache = Cache(tmp_path)
    cache.put("ab" * 32, bytes(100))
    left, young = (tmp_path / "ab" / f"{caches.NEW}{name}" for name in ("left", "young"))
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert cache.clear() == 1
    assert all(path.exists() for path in (*theirs, young))
    assert not left.exists()


def test_a_folder_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be marked as used or dropped is no failure. By monkeypatch, because root may write everywhere."""

    def denied(*given: Any, **named: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    cache = Cache(tmp_path)
    cache.put("ab" * 32, b"code")
    for place in ("os.utime", "pathlib.Path.unlink"):
        monkeypatch.setattr(place, denied)
    assert cache.get("ab" * 32) == b"code"
    assert cache.clear() == 0


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TVMCNN_CACHE", "off")
    assert Cache.default().folder is None
    monkeypatch.delenv("TVMCNN_CACHE")
    assert Cache.default().folder == tmp_path / "tvmcnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert Cache.default().folder == Path.home() / ".cache" / "tvmcnn"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as for a container's user without a name
    assert Cache.default().folder is None


# ---- workers --------------------------------------------------------------------------------------------------------


def many(count: int = workers.ALONE) -> dict[str, jobs.Job]:
    """Jobs of so many different kernels."""
    g = Graph()
    x = g.input(1, 3, 5)
    for n in range(count):
        g.output(g.node("LeakyRelu", x, alpha=0.1 + n))
    return dict(Functions.of([program(g.model())], V3, activations=False).jobs)


def test_a_job_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    todo = many()
    bad = next(iter(todo))
    choice = dataclasses.replace(todo[bad].step.choice, rule="no such rule")
    todo[bad] = dataclasses.replace(todo[bad], step=dataclasses.replace(todo[bad].step, choice=choice))
    for processes in (1, 2):
        with pytest.raises(workers.JobError) as caught:
            workers.build(todo, processes, lambda symbol, data: None)
        assert caught.value.symbol == bad
        assert isinstance(caught.value.__cause__, KeyError)
        assert "no such rule" in str(caught.value.__cause__)


def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Lets workers run another function than the one that compiles."""
    (tmp_path / "planted.py").write_text(f"import os\n\ndef object_code(job):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(workers, "OBJECT_CODE", "planted:object_code")


def test_what_a_worker_prints_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM may write to file descriptor 1, past Python."""
    edited(tmp_path, monkeypatch, "return os.write(1, b'LLVM says') and print('TVM too') or job.symbol.encode()")
    found: dict[str, bytes] = {}
    workers.build(todo := many(), 2, found.__setitem__)
    assert found == {symbol: symbol.encode() for symbol in todo}


def test_a_worker_that_dies_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(tmp_path, monkeypatch, "os.abort()")
    with pytest.raises(ToolError, match="a compiler process ended by SIGABRT at tvmcnn_leakyrelu"):
        workers.build(many(), 2, lambda symbol, data: None)


def test_progress_is_told(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    g = Graph()
    g.output(g.conv(g.input(1, 3, 5, 7), 16, (3, 2)))
    tvmcnn.compile(g.model(), output=tmp_path / "net.so", progress=lambda *given: seen.append(given))
    kernels = [(done, total) for doing, done, total in seen if doing == "compiling kernels"]
    assert kernels == [(done, kernels[0][1]) for done in range(kernels[0][1] + 1)]
    assert seen[-1] == ("verifying against NumPy", 1, 1)


def test_names_in_the_key_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: with names, no two kernels are equal."""
    monkeypatch.setattr(jobs, "without_names", lambda step: step)
    with pytest.raises(AssertionError):
        test_equal_kernels_are_one_function()
