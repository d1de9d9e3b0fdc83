"""The whole product on the shipped LeNet-5 in seconds: compiled once, then run where there is no TVM."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import draw, model_of, node
from data import LENET5, ROOT
from helpers import GUARD

import tvmcnn
from tvmcnn.codegen import signature
from tvmcnn.compiler import Compiled

Array = np.ndarray[Any, Any]
KERNELS = 5
MACS = 416_520  # by hand: 117,600 + 240,000 + 48,000 + 10,080 + 840
LIBRARY_LIMIT = 500_000  # bytes: 61,706 weights take 246,824 of them
TOLERANCE = 1e-5  # of the largest output

# What a user without the compiler has: tvm and onnx cannot be imported, by whatever way they are asked for.
WITHOUT_COMPILER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tvm", "onnx", "onnx_ir", "onnxscript"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Refuse())
import numpy as np
import tvmcnn
"""


def outliers(shape: tuple[int, ...], seed: int) -> Array:
    return draw(seed, *shape, outliers=0.05, times=10)


def fresh(script: str, *arguments: str | Path) -> str:
    """The output of a script in a new process without the compiler; its failure is the test's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT_COMPILER + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Compiled:
    return tvmcnn.compile(LENET5, output=folder / "lenet5.so")


@pytest.fixture(scope="module")
def runner(compiled: Compiled) -> tvmcnn.Runner:
    return tvmcnn.load(compiled.path)


@pytest.fixture(scope="module")
def x() -> Array:
    return outliers((1, 1, 32, 32), 5)


@pytest.fixture(scope="module")
def expected(x: Array) -> dict[str, Array]:
    return tvmcnn.reference(LENET5, x, every_tensor=True)


def test_runs_in_a_fresh_process_without_tvm_and_onnx(
    compiled: Compiled, folder: Path, x: Array, expected: dict[str, Array]
) -> None:
    np.savez(folder / "case.npz", x=x, scores=expected["scores"])
    printed = fresh(
        """
case = np.load(sys.argv[2])
net = tvmcnn.load(sys.argv[1])
error = np.abs(net(case["x"]) - case["scores"]).max() / np.abs(case["scores"]).max()
assert not {"tvm", "onnx"} & set(sys.modules)
print(error)
""",
        compiled.path,
        folder / "case.npz",
    )
    assert float(printed) <= TOLERANCE


def test_the_fresh_process_really_lacks_the_compiler(folder: Path) -> None:
    printed = fresh(
        """
for name in ("tvm", "onnx"):
    try:
        __import__(name)
        print(name, "is there")
    except ImportError:
        pass
try:
    tvmcnn.compile(sys.argv[1])
except ImportError as error:
    print(error)
""",
        LENET5,
    )
    assert "is there" not in printed
    assert "must not be needed" in printed


def test_compiler_that_is_not_installed_is_one_sentence() -> None:
    script = (
        "import sys; sys.modules['tvm'] = None\nimport tvmcnn\n"
        "try: tvmcnn.compile('model.onnx')\nexcept tvmcnn.ToolError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GUARD, env=environment)
    assert done.stdout.strip() == "tvmcnn.compile needs tvm: install it by pip install 'tvmcnn[compiler]'"


def test_no_kernel_falls_back(compiled: Compiled, runner: tvmcnn.Runner) -> None:
    assert runner.manifest["fallbacks"] == compiled.fallbacks == 0
    assert all(kernel["rule"] != "fallback" for kernel in runner.manifest["kernels"])


def test_five_kernels_and_the_pools_are_fused(runner: tvmcnn.Runner) -> None:
    # The bias is the Conv's own third input, so that it has no node of its own.
    assert [kernel["ops"] for kernel in runner.manifest["kernels"]] == [
        ["Conv", "Relu", "MaxPool"],
        ["Conv", "Relu", "MaxPool"],
        ["Conv", "Relu"],
        ["Gemm", "Relu"],
        ["Gemm"],
    ]
    assert len(runner.manifest["kernels"]) == KERNELS


def test_multiply_accumulates(runner: tvmcnn.Runner) -> None:
    assert [kernel["macs"] for kernel in runner.manifest["kernels"]] == [117_600, 240_000, 48_000, 10_080, 840]
    assert sum(kernel["macs"] for kernel in runner.manifest["kernels"]) == MACS


def test_library_is_small(compiled: Compiled) -> None:
    assert 61_706 * 4 < compiled.path.stat().st_size < LIBRARY_LIMIT


def test_compile_verifies_against_numpy(compiled: Compiled, runner: tvmcnn.Runner) -> None:
    assert compiled.verdict is not None
    assert compiled.verdict.passed
    assert len(compiled.verdict.tensors) == 12
    assert runner.manifest["verification"]["passed"] is True


@pytest.mark.parametrize("batch", [1, 3])
def test_graph_runner_is_bitwise_the_native_call(batch: int, runner: tvmcnn.Runner, folder: Path) -> None:
    net = runner
    if batch > 1:
        tvmcnn.compile(LENET5, output=folder / f"lenet5_{batch}.so", batch=batch, verify=False)
        net = tvmcnn.load(folder / f"lenet5_{batch}.so")
    x = outliers((batch, 1, 32, 32), 7)
    whole = net(x)
    assert whole.tobytes() == net.step_by_step(x).tobytes()
    wanted = tvmcnn.reference(LENET5, x)["scores"]
    assert np.abs(whole - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_activations_give_every_onnx_tensor(runner: tvmcnn.Runner, x: Array, expected: dict[str, Array]) -> None:
    shown = runner.activations(x)
    names = [name for node in onnx.load(LENET5).graph.node for name in node.output]
    assert list(shown) == names  # in the order that they are computed
    assert runner.folded == {}
    for name in names:
        assert shown[name].shape == expected[name].shape
        assert np.abs(shown[name] - expected[name]).max() <= TOLERANCE * np.abs(expected[name]).max(), name
    assert shown["scores"].tobytes() == runner(x).tobytes()


def test_profile_has_a_row_per_kernel(runner: tvmcnn.Runner) -> None:
    rows = runner.profile(seconds=0.05)
    assert [row.name for row in rows] == [kernel["name"] for kernel in runner.manifest["kernels"]]
    assert sum(row.flops for row in rows) == 2 * MACS
    assert all(row.microseconds > 0 and row.gflops > 0 and row.bytes > 0 for row in rows)
    assert rows[0].bytes >= 4 * (32 * 32 + 6 * 25 + 6 + 6 * 14 * 14)  # it cannot do with less than its arguments


C_PROGRAM = """#include <stdio.h>
#include "lenet5.h"
static float input[LENET5_INPUT_SIZE], scores[LENET5_SCORES_SIZE];
static _Alignas(64) char arena[LENET5_ARENA_BYTES];
int main(int count, char **words) {
  FILE *from = fopen(words[1], "rb"), *to = fopen(words[2], "wb");
  if (count != 3 || !from || !to || fread(input, sizeof input, 1, from) != 1) return 10;
  if (lenet5_check() || lenet5_run(input, scores, arena)) return 11;
  if (lenet5_run(input, scores, 0) != 1) return 12;
  return fwrite(scores, sizeof scores, 1, to) == 1 && !fclose(to) ? 0 : 13;
}
"""


def c_compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert found, "tvmcnn needs a C compiler, and so do its tests"
    return found


def test_a_c_program_links_it_without_tvm(compiled: Compiled, runner: tvmcnn.Runner, folder: Path, x: Array) -> None:
    (folder / "lenet5.h").write_text(compiled.header)
    (folder / "main.c").write_text(C_PROGRAM)
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    link = [c_compiler(), *strict, "main.c", "-o", "main", f"-L{folder}", "-l:lenet5.so", f"-Wl,-rpath,{folder}"]
    built = subprocess.run(link, cwd=folder, capture_output=True, text=True, timeout=GUARD)
    assert built.returncode == 0, built.stderr
    x.tofile(folder / "x.bin")
    done = subprocess.run([folder / "main", folder / "x.bin", folder / "y.bin"], timeout=GUARD)
    assert done.returncode == 0
    assert (folder / "y.bin").read_bytes() == runner(x).tobytes()
    for file in ("main", "lenet5.so"):
        needed = subprocess.run(["ldd", folder / file], capture_output=True, text=True, timeout=GUARD).stdout
        names = {line.split()[0].rsplit("/", 1)[-1].split(".")[0] for line in needed.splitlines()}
        assert names <= {"linux-vdso", "libc", "libm", "ld-linux-x86-64", "lenet5", "statically"}, needed


def test_header_is_c_plus_plus_too(compiled: Compiled, folder: Path) -> None:
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler (c++) on this machine")
    (folder / "lenet5.h").write_text(compiled.header)
    (folder / "main.cc").write_text(
        '#include "lenet5.h"\nint main() { float x[LENET5_INPUT_SIZE] = {1}, y[LENET5_SCORES_SIZE];\n'
        "  alignas(64) static char arena[LENET5_ARENA_BYTES]; return lenet5_run(x, y, arena); }\n"
    )
    library = [f"-L{folder}", "-l:lenet5.so", f"-Wl,-rpath,{folder}"]
    link = ["c++", "-Wall", "-Werror", "main.cc", "-o", "main_cc", *library]
    built = subprocess.run(link, cwd=folder, capture_output=True, text=True, timeout=GUARD)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([folder / "main_cc"], timeout=GUARD).returncode == 0


def symbols(library: Path, *flags: str) -> list[tuple[str, str]]:
    """(type, name without version) of the dynamic symbols."""
    words = ["nm", "-D", *flags, library]
    text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=GUARD).stdout
    return [(words[-2], words[-1].split("@")[0]) for line in text.splitlines() if len(words := line.split()) >= 2]


def test_no_undefined_strong_symbol_outside_libc_and_libm(compiled: Compiled) -> None:
    # Weak ones ("w") may stay unresolved: a plain C program never needs them.
    strong = [name for kind, name in symbols(compiled.path, "--undefined-only") if kind == "U"]
    maths = re.compile(r"(exp|log|pow|tanh|fmax|fmin|floor|ceil|round|sqrt)f?")
    libc = {
        "memcpy",
        "memset",
        "memmove",
        "malloc",
        "free",
        "__stack_chk_fail",
        "clock_gettime",
        "nanosleep",
        "syscall",
    }
    libc |= {"sched_yield", "sched_getcpu", "sched_getaffinity", "__sched_cpucount", "sigfillset", "__register_atfork"}
    threads = re.compile(r"pthread_\w+")
    known = [name for name in strong if name in libc or maths.fullmatch(name) or threads.fullmatch(name)]
    assert strong == known
    weak = [name for kind, name in symbols(compiled.path, "--undefined-only") if kind != "U"]
    assert any("TVMFFI" in name for name in weak)  # else this test reads the wrong table


def test_inputs_may_be_named_as_anything_in_the_c_code(tmp_path: Path) -> None:
    """Every word that the generated C, or C itself, has a meaning for."""
    words = sorted(signature._TAKEN)
    model = model_of([node("Sum", words, "y")], dict.fromkeys(words, (2, 3)), {"y": (2, 3)})
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "x.so", verify=False, activations=False).path)
    ones = [np.full((2, 3), 1 + i, np.float32) for i in range(len(words))]
    np.testing.assert_allclose(net(*ones), np.sum(ones, axis=0))


def test_exports_only_what_carries_the_models_name(compiled: Compiled) -> None:
    exported = {name for _, name in symbols(compiled.path, "--defined-only")}
    calls = {f"lenet5_{word}" for word in ("missing", "check", "run", "run_threads", "step", "open", "trace")}
    facts = {"lenet5_version", "lenet5_message"}
    assert exported == {*calls, *facts, "__tvm_ffi_lenet5_run", "__tvm_ffi_lenet5_bind", "tvmcnn_pool_3"}


def other_model() -> onnx.ModelProto:
    """A network of other shapes: 2x3x9x11 --> 2x5x7x10, with the input and output names of LeNet-5."""
    nodes = [node("Conv", "input w", "c"), node("Relu", "c", "scores")]
    weights = {"w": draw(11, 5, 3, 3, 2)}
    return model_of(nodes, {"input": (2, 3, 9, 11)}, {"scores": (2, 5, 7, 10)}, weights, name="other")


def test_two_models_in_one_process(compiled: Compiled, runner: tvmcnn.Runner, folder: Path, x: Array) -> None:
    before = runner(x).tobytes()
    model = other_model()
    tvmcnn.compile(model, output=folder / "other.so", verify=False)
    other = tvmcnn.load(folder / "other.so")
    z = outliers((2, 3, 9, 11), 13)
    wanted = tvmcnn.reference(model, z)["scores"]
    assert np.abs(other(z) - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    assert runner(x).tobytes() == before
    printed = fresh(
        """
first, second = tvmcnn.load(sys.argv[1]), tvmcnn.load(sys.argv[2])
for net in (second, first, second):
    print(net(np.ones(net.inputs[0].shape, np.float32)).shape)
""",
        compiled.path,
        folder / "other.so",
    )
    assert printed.split("\n")[:3] == ["(2, 5, 7, 10)", "(1, 10)", "(2, 5, 7, 10)"]


def test_one_c_program_links_two_models(compiled: Compiled, folder: Path) -> None:
    other = tvmcnn.compile(other_model(), output=folder / "second.so", verify=False, activations=False)
    (folder / "lenet5.h").write_text(compiled.header)
    (folder / "second.h").write_text(other.header)
    (folder / "both.c").write_text(
        '#include "lenet5.h"\n#include "second.h"\nint main(void) { return lenet5_check() + second_check(); }\n'
    )
    link = [c_compiler(), "both.c", "-o", "both", f"-L{folder}", "-l:lenet5.so", "-l:second.so", f"-Wl,-rpath,{folder}"]
    built = subprocess.run(link, cwd=folder, capture_output=True, text=True, timeout=GUARD)
    assert built.returncode == 0, built.stderr
    assert subprocess.run([folder / "both"], timeout=GUARD).returncode == 0
