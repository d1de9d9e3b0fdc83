"""The command line: what each command prints, writes and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from builders import Graph
from data import DOCS, LENET5, ROOT, SHIPPED
from helpers import GUARD
from onnx import numpy_helper
from PIL import Image
from tuning_models import tiny

import tvmcnn
from tvmcnn import machine, targets
from tvmcnn.artifact.container import read_manifest
from tvmcnn.choose import records
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.cli import main
from tvmcnn.fuse import fuse
from tvmcnn.importer import import_model
from tvmcnn.targets import kinds

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
MEAN, STD = (
    float({entry.key: entry.value for entry in onnx.load(LENET5).metadata_props}[key]) for key in ("mean", "std")
)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status and its two streams."""

    status: int
    out: str
    err: str


class Shell:
    """Runs commands in an empty folder; `{s}` in a command is the folder of prepared files, `{m}` LeNet-5."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path, shelf: Path) -> None:
        self.capsys, self.folder, self.shelf = capsys, folder, shelf

    def __call__(self, command: str) -> Done:
        self.capsys.readouterr()
        words = [word.format(s=self.shelf, m=LENET5) for word in command.split()]
        try:
            status = main(words)
        except SystemExit as end:  # argparse ends so for wrong usage
            status = int(end.code or 0)
        return Done(status, *self.capsys.readouterr())

    def succeeds(self, command: str) -> Done:
        done = self(command)
        assert done.status == 0, f"{command}: {done.err}"
        return done

    def refuses(self, command: str) -> str:
        """The one sentence of a command that must fail and leave nothing behind."""
        before = files(self.folder, self.shelf)
        done = self(command)
        assert done.status == 1, f"{command} ended with {done.status}: {done.out}{done.err}"
        assert done.err.startswith("tvmcnn: ")
        assert done.err.endswith("\n")
        assert done.err.count("\n") == 1, "one line"
        assert "Traceback" not in done.err + done.out
        assert files(self.folder, self.shelf) == before
        return done.err

    def misused(self, command: str) -> str:
        """The usage text of a command that argparse must refuse."""
        before = files(self.folder, self.shelf)
        done = self(command)
        assert done.status == 2, f"{command} ended with {done.status}: {done.out}{done.err}"
        assert done.out == ""
        assert done.err.startswith("usage: ")
        assert files(self.folder, self.shelf) == before
        return done.err


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    """The 40 printed digits: grey levels (40, 32, 32) and labels."""
    with np.load(SHIPPED / "digits.npz") as sheet:
        return sheet["images"], sheet["labels"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, digits: tuple[Array, Array]) -> Path:
    """Libraries, models, arrays and images that the commands read; no test writes here."""
    folder = tmp_path_factory.mktemp("shelf")

    def library(name: str, model: onnx.ModelProto | Path, batch: int | None = None) -> None:
        if isinstance(model, onnx.ModelProto):
            onnx.save(model, folder / f"{name}.onnx")
        tvmcnn.compile(model, output=folder / f"{name}.so", batch=batch, verify=False)

    library("lenet5", LENET5)
    library("three", LENET5, batch=3)
    rgb = Graph()  # its output is the mean of each channel: channels in the wrong order show
    rgb.output(rgb.node("Flatten", rgb.node("GlobalAveragePool", rgb.input(1, 3, 4, 5))))
    library("rgb", rgb.model())
    flat = Graph()
    flat.output(flat.node("Gemm", flat.input(1, 7), flat.draw(7, 3)))
    library("flat", flat.model())
    two = Graph()
    two.output(two.node("Add", two.input(2, 3), two.input(2, 3)))
    library("two", two.model())
    mute = flat.model()
    mute.metadata_props.add(key="mean", value="[0.5]")
    library("mute", mute)

    x = np.random.default_rng(0).standard_normal((1, 1, 32, 32), dtype=np.float32)
    np.save(folder / "x.npy", x)
    np.savez(folder / "x.npz", input=x)
    (folder / "x.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    np.savez(folder / "wrongname.npz", image=x)
    np.save(folder / "double.npy", x.astype(np.float64))
    np.save(folder / "cut.npy", x[:, :, :5])
    np.save(folder / "flat.npy", np.ones((1, 7), np.float32))
    pair = {"x0": np.full((2, 3), 2, np.float32), "x1": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.savez(folder / "pair.npz", **pair)
    for suffix in ("npy", "npz", "pb", "png", "so", "onnx"):
        (folder / f"empty.{suffix}").write_bytes(b"")
        (folder / f"noise.{suffix}").write_bytes(b"\xffnoise\x00" * 40)
    for name in ("x.npy", "x.npz", "lenet5.so"):
        whole = (folder / name).read_bytes()
        (folder / f"short{name[-4:]}").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray((folder / "x.npz").read_bytes())
    flipped[2000] ^= 255  # in the data, which a CRC covers
    (folder / "flipped.npz").write_bytes(flipped)
    (folder / "npy.npz").write_bytes((folder / "x.npy").read_bytes())
    np.save(folder / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    (folder / "text.txt").write_text("zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n")

    images, labels = digits
    digit = Image.fromarray(images[list(labels).index(7)])
    digit.save(folder / "seven.png")
    digit.convert("RGBA").resize((64, 64), Image.Resampling.NEAREST).save(folder / "large.png")
    short = (folder / "seven.png").read_bytes()
    (folder / "short.png").write_bytes(short[: len(short) // 2])
    Image.new("RGB", (5, 4), (255, 0, 51)).save(folder / "red.png")

    model = onnx.load(LENET5)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "conv2.weight")
    changed = numpy_helper.to_array(weight).copy()
    changed[3, 2, 1, 4] += 0.5
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, folder / "changed.onnx")
    model = onnx.load(LENET5)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "answers"
    onnx.save(model, folder / "renamed.onnx")
    odd = Graph()
    sin = odd.node("RandomUniformLike", odd.input(1, 3))
    odd.shapes["last"] = (1, 3)  # the reference knows neither operator
    odd.nodes.append(onnx.helper.make_node("Unique", [odd.node("Relu", sin)], ["last"], name="n_last"))
    odd.output("last")
    onnx.save(odd.model(), folder / "odd.onnx")

    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys, tmp_path, shelf)


def in_a_process(*words: str, cwd: Path, **keywords: Any) -> subprocess.CompletedProcess[str]:
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-m", "tvmcnn", *words]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, timeout=GUARD, **keywords)


# ---- the program as a process ---------------------------------------------------------------------------------------


def test_version_in_a_process(tmp_path: Path) -> None:
    done = in_a_process("--version", cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tvmcnn {tvmcnn.__version__}\n", "")


def test_no_command_in_a_process(tmp_path: Path) -> None:
    done = in_a_process(cwd=tmp_path, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: tvmcnn ")
    assert "Traceback" not in done.stderr


def test_a_mistake_in_a_process(tmp_path: Path) -> None:
    done = in_a_process("compile", "missing.onnx", cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert done.stderr == "tvmcnn: cannot read missing.onnx: No such file or directory\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["ops", "targets", "bench {s}/lenet5.so --seconds 0.05"])
def test_a_reader_that_leaves_early(command: str, tmp_path: Path, shelf: Path) -> None:
    # As in `tvmcnn ops | head -1`, without the race: the reader is gone before the first line is written.
    reading, writing = os.pipe()
    os.close(reading)
    words = command.format(s=shelf).split()
    done = in_a_process(*words, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


def test_head(tmp_path: Path) -> None:
    root = ROOT
    command = f"set -o pipefail; '{sys.executable}' -m tvmcnn ops | head -1"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Abs ")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "COMMAND"),
        ("nonsense", "invalid choice: 'nonsense'"),
        ("targets --frobnicate", "unrecognized arguments: --frobnicate"),
        ("compile", "MODEL.onnx"),
        ("compile {m} --emit pdf", "'pdf' cannot be emitted; allowed are header, package, tir, asm, c"),
        ("compile {m} --input-shape 1x1x32x32", "is not NAME:1x3x224x224"),
        ("compile {m} --input-shape input:1x0x32x32", "is not NAME:1x3x224x224"),
        ("compile {m} --batch 0", "not a whole number of at least 1"),
        ("compile {m} --batch ²", "not a whole number of at least 1"),
        ("compile {m} --precision int8", "invalid choice: 'int8'"),
        ("run {s}/lenet5.so", "--input"),
        ("run {s}/lenet5.so --input {s}/seven.png --mean dark", "'dark' is not a number"),
        ("run {s}/lenet5.so --input {s}/x.npy --top 0", "not a whole number of at least 1"),
        ("bench {s}/lenet5.so --seconds nan", "'nan' is not a number of seconds above 0"),
        ("bench {s}/lenet5.so --seconds -1", "--seconds"),
        ("verify {s}/lenet5.so", "--model"),
        ("verify {s}/lenet5.so --model {m} --seed -1", "--seed"),
    ],
)
def test_wrong_usage(shell: Shell, command: str, words: str) -> None:
    assert words in shell.misused(command)


# ---- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = [
    ("demo --data nowhere", "the folder nowhere holds neither t10k-images-idx3-ubyte nor t10k-images-idx3-ubyte.gz"),
    ("compile {m} -o out.txt", "'out.txt' ends in '.txt'; a library's name must end in .so"),
    ("compile {m} -o out", "a library's name must end in .so"),
    ("compile {m} --no-verify -o nowhere/out.so", "cannot write nowhere/out.so: the folder nowhere does not exist"),
    ("compile {m} --target sparc", "unknown target 'sparc'; allowed are native, host, x86-64-v3, x86-64-v3-vnni"),
    ("compile {m} --target x86-64-v3,native", "'native' cannot be one of several; those that can are"),
    ("compile {m} --input-shape image:1x1x32x32", "has no input 'image'; its inputs are input"),
    ("compile {m} --input-shape input:1x1x32", "the shape 1x1x32 does not fit it"),
    ("compile {m} --input-shape input:1x1x28x28", "node 'conv3' (Conv): the window does not fit"),
    ("compile {m} --records {s}/binary.jsonl", "binary.jsonl is no file of records: it is not UTF-8 text"),
    ("compile {m} --records nowhere.jsonl", "cannot read the records nowhere.jsonl: No such file or directory"),
    ("compile nowhere.onnx", "cannot read nowhere.onnx: No such file or directory"),
    ("compile {s}/noise.onnx", "noise.onnx is not an ONNX model or is truncated"),
    ("compile {s}/empty.onnx", "empty.onnx is not an ONNX model"),
    ("compile {s}", "Is a directory"),
    ("compile {m} --target cuda:80", "target 'cuda:80': GPUs are named as in cuda:sm_80 or cuda:sm_80,sm_90"),
    ("compile {m} --target cuda:sm_80 --emit asm", "--emit asm is for CPUs, the target is cuda:sm_80"),
    ("compile {m} --emit cuda", "--emit cuda is for GPUs, the target is native"),
    ("tune {m} --emit-candidates here", "--emit-candidates and --measured are for GPUs, the target is native"),
    ("tune {m} --target cuda:sm_80,sm_90 --emit-candidates here", "candidates are measured on one kind of GPU"),
    ("tune {m} --target cuda:sm_80 --measured {s} -o mine.jsonl", "has no results of measure.py"),
    ("tune nowhere.onnx -o mine.jsonl", "cannot read nowhere.onnx: No such file or directory"),
    ("tune {m} -o mine.jsonl --budget soon", "the budget 'soon' is no time above 0; write 90s, 10m or 2h"),
    ("tune {m} -o mine.txt", "the records 'mine.txt' end in '.txt'; a file of records ends in .jsonl"),
    ("tune {m} -o mine.jsonl --plot best.bmp", "'best.bmp' ends in '.bmp'; allowed are .png, .svg, .pdf"),
    ("tune {m} -o mine.jsonl --target sparc", "unknown target 'sparc'"),
    ("tune {m} -o mine.jsonl --rpc-key k", "--rpc-tracker HOST:PORT and --rpc-key KEY belong together"),
    ("tune {m}", "there is no place for your own records ($TVMCNN_RECORDS is off, or $HOME is missing): give -o"),
    ("records list nowhere.jsonl", "cannot read the records nowhere.jsonl: No such file or directory"),
    ("records list {s}/binary.jsonl", "binary.jsonl is no file of records: it is not UTF-8 text"),
    ("records merge {s}/binary.jsonl", "records merge writes a new file: name it with -o OUT.jsonl"),
    ("records prune", "records prune takes at least one file"),
    ("run nowhere.so --input {s}/x.npy", "cannot read nowhere.so: No such file or directory"),
    ("run {s}/x.npy --input {s}/x.npy", "its name must end in .so"),
    ("run {s}/noise.so --input {s}/x.npy", "noise.so is not a library of tvmcnn"),
    ("run {s}/empty.so --input {s}/x.npy", "empty.so is not a library of tvmcnn"),
    ("run {s}/short5.so --input {s}/x.npy", "its trailer is missing"),
    ("run {s}/lenet5.so --input nowhere.npy", "cannot read nowhere.npy: No such file or directory"),
    ("run {s}/lenet5.so --input nowhere.npz", "cannot read nowhere.npz: No such file or directory"),
    ("run {s}/lenet5.so --input nowhere.png", "cannot read nowhere.png: No such file or directory"),
    ("run {s}/lenet5.so --input nowhere.pb", "nowhere.pb"),
    ("run {s}/lenet5.so --input {s}/text.txt", "ends in '.txt'; allowed are .npy, .npz, .pb, .png"),
    *[
        (f"run {{s}}/lenet5.so --input {{s}}/{name}", name)
        for name in (
            *("noise.npy", "noise.npz", "noise.pb", "noise.png", "empty.npy", "empty.npz", "empty.pb", "empty.png"),
            *("short.npy", "short.npz", "short.png", "flipped.npz", "npy.npz", "object.npy"),
        )
    ],
    ("run {s}/lenet5.so --input {s}/wrongname.npz", "the inputs given are 'image'; lenet5 takes 'input'"),
    ("run {s}/lenet5.so --input {s}/double.npy", "input 'input' is float64; it must be native float32"),
    ("run {s}/lenet5.so --input {s}/cut.npy", "(1, 1, 5, 32); the library is compiled for (1, 1, 32, 32)"),
    ("run {s}/two.so --input {s}/x.npy", "the network has 2 inputs: give an .npz with x0, x1"),
    ("run {s}/flat.so --input {s}/seven.png", "seven.png is an image; the network takes (1, 7)"),
    ("run {s}/three.so --input {s}/seven.png", "seven.png is an image; the network takes (3, 1, 32, 32)"),
    ("run {s}/lenet5.so --input {s}/seven.png --mean 0,0,0", "--mean has 3 values"),
    ("run {s}/rgb.so --input {s}/red.png --std 1,1", "--std has 2 values"),
    ("run {s}/rgb.so --input {s}/red.png --std 1,0,1", "--std has a zero"),
    ("run {s}/mute.so --input {s}/flat.npy", "metadata says mean = '[0.5]', which is not numbers: give --mean"),
    ("run {s}/lenet5.so --input {s}/x.npy -o y.txt", "y.txt ends in '.txt'; allowed are .npz and .npy"),
    ("run {s}/lenet5.so --input {s}/x.npy -o nowhere/y.npz", "cannot write nowhere/y.npz: No such file"),
    ("run {s}/lenet5.so --input {s}/x.npy --labels nowhere.txt", "cannot read the labels nowhere.txt: No such file"),
    ("run {s}/lenet5.so --input {s}/x.npy --labels {s}/seven.png", "seven.png: it is not UTF-8 text"),
    ("bench {s}/lenet5.so --threads 65", "threads=65; allowed are 1 to 64"),
    ("bench {s}/lenet5.so --input-shape input:1x1x30x32", "'input' is asked for as 1x1x30x32;"),
    ("bench {s}/mute.so --batch 3", "): compile it with --batch 3"),
    ("bench nowhere.so", "cannot read nowhere.so"),
    ("verify {s}/lenet5.so --model nowhere.onnx", "cannot read nowhere.onnx"),
    ("verify {s}/lenet5.so --model {s}/flat.onnx", "has no input 'input'; its inputs are x0"),
    ("verify {s}/lenet5.so --model {s}/renamed.onnx", "has the outputs answers"),
    ("verify {s}/short5.so --model {m}", "its trailer is missing"),
    ("ops --check nowhere.onnx", "cannot read nowhere.onnx"),
    ("ops --check {s}/noise.onnx --json", "noise.onnx is not an ONNX model"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_mistake(shell: Shell, command: str, words: str) -> None:
    assert words in shell.refuses(command)


# ---- demo -----------------------------------------------------------------------------------------------------------


def test_demo(shell: Shell) -> None:
    done = shell.succeeds("demo")
    assert done.err == ""
    assert "40 of 40 printed digits right" in done.out
    assert "verified against NumPy: 12 tensors and the outputs agree" in done.out
    assert re.search(r"[\d.]+ µs from Python in one native call", done.out)
    assert "@" in done.out, "the picture"
    assert not files(shell.folder)


def test_demo_with_handwritten_digits(shell: Shell, digits: tuple[Array, Array]) -> None:
    # The printed digits as MNIST files; their margin of two pixels is empty, so that the answers must be the same.
    images, labels = digits
    cut = images[:, 2:30, 2:30]
    assert int(cut.sum(dtype=np.int64)) == int(images.sum(dtype=np.int64))
    folder = shell.folder / "mnist"
    folder.mkdir()
    header = b"\0\0\x08\x03" + b"".join(int(n).to_bytes(4, "big") for n in cut.shape)
    (folder / "t10k-images-idx3-ubyte").write_bytes(header + cut.tobytes())
    wrong = labels.astype(np.uint8)
    wrong[:3] = (wrong[:3] + 1) % 10
    (folder / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + len(wrong).to_bytes(4, "big") + wrong.tobytes())
    done = shell.succeeds("demo --data mnist --json")
    result = json.loads(done.out)
    assert "37 of 40 handwritten digits right (92.50%)" in done.err
    assert (result["printed_right"], result["printed"]) == (40, 40)
    assert (result["handwritten_right"], result["handwritten"]) == (37, 40)
    assert result["verification"]["passed"] is True
    assert result["microseconds"] > 0 and result["numpy_microseconds"] > 0
    assert result["target"] == targets.resolve("native").name
    assert 250_000 < result["library_bytes"] < 1_000_000


# ---- compile --------------------------------------------------------------------------------------------------------

KERNEL = re.compile(r"^k\d+_\w+ .* rule (\w+) \((\w[\w ]*)\)", re.MULTILINE)


def test_compile_says_what_it_does(shell: Shell) -> None:
    done = shell.succeeds("compile {m}")
    assert done.err == ""
    assert done.out.startswith(f"target {targets.resolve('native').name} (")
    assert machine.cpu_name() in done.out.splitlines()[0]
    assert "input 'input': its leading dimension 'batch' stays open: batches run image by image" in done.out
    kernels = KERNEL.findall(done.out)
    manifest = read_manifest(shell.folder / "lenet5.so")
    assert kernels == [(kernel["rule"], kernel["tier"]) for kernel in manifest["kernels"]]
    size = (shell.folder / "lenet5.so").stat().st_size
    last = f"{len(kernels)} kernels, 0 of them by the fallback rule; wrote lenet5.so ({size:,} bytes)"
    assert done.out.splitlines()[-1] == last
    assert "verified against NumPy: 12 tensors" in done.out
    assert files(shell.folder) == {shell.folder / "lenet5.so"}


def test_compile_counts_fallbacks(shell: Shell) -> None:
    graph = Graph()
    x = graph.conv(graph.input(1, 6, 9, 7), 4, (3, 2))
    graph.output(graph.node("ReduceLogSumExp", x, axes=[3]))
    onnx.save(graph.model(), shell.folder / "sum.onnx")
    done = shell.succeeds("compile sum.onnx")
    rules = [rule for rule, _ in KERNEL.findall(done.out)]
    assert "fallback" in rules, "this test needs a kernel that no rule takes"
    assert f"{len(rules)} kernels, {rules.count('fallback')} of them by the fallback rule" in done.out


def test_compile_json(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --json -o out.so --emit header")
    result = json.loads(done.out)
    assert result["written"] == ["out.so", "out.h"]
    assert result["bytes"] == (shell.folder / "out.so").stat().st_size
    assert result["fallbacks"] == 0
    assert result["manifest"] == read_manifest(shell.folder / "out.so")
    assert result["manifest"]["name"] == "out"
    assert len(KERNEL.findall(done.err)) == len(result["manifest"]["kernels"]), "the lines for a person still appear"


def test_compile_emits(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --no-verify --emit header,package,tir,asm,c -o my-net.so")
    signs = {
        "my_net.h": "int32_t my_net_run(const float *input, float *scores, void *arena);",
        "my_net/__init__.py": "my_net.so",
        "my_net.tir.py": "@T.prim_func",
        "my_net.s": "vfmadd",
        "my_net.c": '#include "entry.h"',
    }
    assert f"wrote my-net.so, {', '.join(name.split('/')[0] for name in signs)} (" in done.out
    for name, sign in signs.items():
        assert sign in (shell.folder / name).read_text(), name


def test_compile_binds_shapes(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --no-verify --input-shape input:2x1x32x32 -o two.so")
    assert "bound to 1" not in done.out
    assert read_manifest("two.so")["inputs"][0]["shape"] == [2, 1, 32, 32]
    # LeNet-5's first two layers fit any image, but its dense layers do not: the override must be of another model.
    shell.succeeds("compile {s}/rgb.onnx --no-verify --input-shape x0:1x3x6x7 -o wide.so")
    assert read_manifest("wide.so")["inputs"][0]["shape"] == [1, 3, 6, 7]


def test_compile_batch(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --batch 3")
    assert "verified against NumPy" in done.out
    assert read_manifest("lenet5.so")["inputs"][0]["shape"] == [3, 1, 32, 32]
    x = np.random.default_rng(1).standard_normal((3, 1, 32, 32), dtype=np.float32)
    scores = tvmcnn.load("lenet5.so")(x)
    one = tvmcnn.load(shell.shelf / "lenet5.so")
    for i in range(3):
        np.testing.assert_allclose(scores[i : i + 1], one(x[i : i + 1]), atol=1e-5 * np.abs(scores).max())


def test_compile_takes_records(shell: Shell) -> None:
    network = import_model(LENET5)
    kernel = fuse(network)[-1]
    config = {"width": 8, "rows": 1, "parts": 2, "unroll": 1}
    record = {"kernel": kernel_words(network, kernel), "rule": "dense", "config": config}
    measured = {"time_us": 0.3, "tvmcnn": tvmcnn.__version__, "tvm": version("apache-tvm")}
    line = json.dumps({**record, **measured, "target": {"isa": "x86-64-v3"}})
    (shell.folder / "mine.jsonl").write_text(f"{line}\n\n")
    done = shell.succeeds("compile {m} --target x86-64-v3 --records mine.jsonl")
    last = next(k for k in read_manifest("lenet5.so")["kernels"] if k["name"] == "k4_gemm")
    assert (last["tier"], last["config"]) == ("given record", config)
    assert re.search(
        r"^k4_gemm .* rule dense \(given record\) width=8 rows=1 parts=2 unroll=1$", done.out, re.MULTILINE
    )
    assert "verified against NumPy" in done.out


def test_compile_without_verification(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --no-verify")
    assert "\nnot verified: it was turned off (--no-verify)" in done.out, "one target is not named"
    assert read_manifest("lenet5.so")["verification"] is None


def test_compile_without_activations(shell: Shell) -> None:
    done = shell.succeeds("compile {m} --no-activations")
    kernels = read_manifest("lenet5.so")["kernels"]
    stored, hidden = (sum(len(kernel[word]) for kernel in kernels) for word in ("stores", "hidden"))
    seen = re.search(r"verified against NumPy: (\d+) tensors and the outputs agree", done.out)
    assert seen is not None
    assert stored <= int(seen[1]) < stored + hidden
    assert read_manifest("lenet5.so")["activations"] is False
    assert Path("lenet5.so").stat().st_size < (shell.shelf / "lenet5.so").stat().st_size


@pytest.mark.parametrize("option", ["--exact", "--precision fp32"])
def test_compile_options_that_change_nothing_yet(shell: Shell, option: str) -> None:
    # Both are promises that hold for every library so far: the same bytes must come out.
    shell.succeeds(f"compile {{m}} --no-verify {option}")
    assert Path("lenet5.so").read_bytes() == (shell.shelf / "lenet5.so").read_bytes()


def test_compile_for_another_cpu(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    without = frozenset(targets.TARGETS["x86-64-v3"].features)  # whatever this machine has
    monkeypatch.setattr(kinds, "cpu_flags", lambda: without)
    monkeypatch.setattr("tvmcnn.run.cpu_flags", lambda: without)
    done = shell.succeeds("compile {m} --target x86-64-v4 --emit header,package --json")
    result = json.loads(done.out)
    assert "target x86-64-v4 (16 float32 lanes" in done.err
    why = "not verified: this CPU lacks avx512f, avx512bw, avx512cd, avx512dq, avx512vl, which x86-64-v4 needs"
    assert why in done.err
    assert result["manifest"]["target"]["name"] == "x86-64-v4"
    assert result["manifest"]["verification"] is None
    assert result["written"] == ["lenet5.so", "lenet5.h", "lenet5"]
    assert "is made for x86-64-v4; this CPU (" in shell.refuses("run lenet5.so --input {s}/x.npy")
    assert "lacks avx512f" in shell.refuses("bench lenet5.so")


def test_compile_lists_every_unsupported_node(shell: Shell) -> None:
    done = shell("compile {s}/odd.onnx")
    assert done.status == 1
    head, *nodes = done.err.splitlines()
    assert head.startswith("tvmcnn: ")
    assert head.endswith("odd.onnx has 2 nodes that tvmcnn cannot compile:")
    assert len(nodes) == 2
    assert "RandomUniformLike" in nodes[0]
    assert "Unique" in nodes[1]
    assert not files(shell.folder)


def test_compile_replaces_a_library(shell: Shell) -> None:
    Path("lenet5.so").write_bytes(b"old")
    shell.succeeds("compile {m} --no-verify")
    assert read_manifest("lenet5.so")["name"] == "lenet5"
    assert shell.refuses("compile {m} --target sparc")
    assert read_manifest("lenet5.so")["name"] == "lenet5", "a failure leaves the earlier library alone"


# ---- run ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.pb"])
def test_run_arrays(shell: Shell, name: str) -> None:
    scores = tvmcnn.load(shell.shelf / "lenet5.so")(np.load(shell.shelf / "x.npy"))
    done = shell.succeeds(f"run {{s}}/lenet5.so --input {{s}}/{name} -o y.npy --top 3")
    np.testing.assert_array_equal(np.load("y.npy"), scores)
    head, *rows, last = done.out.splitlines()
    assert (head, last) == ("scores 1x10", "wrote y.npy")
    best = np.argsort(-scores[0])[:3]
    assert [row.split()[1] for row in rows] == [str(i) for i in best]
    np.testing.assert_allclose([float(row.split()[0]) for row in rows], scores[0, best], rtol=1e-5)


def test_run_writes_outputs_by_name(shell: Shell) -> None:
    shell.succeeds("run {s}/two.so --input {s}/pair.npz -o y.npz")
    name = tvmcnn.load(shell.shelf / "two.so").outputs[0].name
    with np.load("y.npz") as outputs:
        assert outputs.files == [name]
        np.testing.assert_array_equal(outputs[name], np.arange(6).reshape(2, 3) + 2)


def test_run_shows_each_row(shell: Shell) -> None:
    done = shell.succeeds("run {s}/two.so --input {s}/pair.npz --top 1 --json")
    (result,) = json.loads(done.out).values()
    assert result["shape"] == [2, 3]
    assert [[(entry["index"], entry["score"]) for entry in row] for row in result["top"]] == [[(2, 4.0)], [(2, 7.0)]]


@pytest.mark.parametrize("name", ["seven.png", "large.png"])  # the second: 64 x 64, colour and alpha
def test_run_reads_an_image_as_the_model_wants_it(shell: Shell, name: str, digits: tuple[Array, Array]) -> None:
    done = shell.succeeds(f"run {{s}}/lenet5.so --input {{s}}/{name} --top 1 --labels {{s}}/text.txt -o y.npy")
    assert done.out.splitlines()[1].split()[1] == "seven"
    image = digits[0][list(digits[1]).index(7)]
    x = ((image / 255 - MEAN) / STD).astype(np.float32)[None, None]
    expected = tvmcnn.load(shell.shelf / "lenet5.so")(x)
    if name == "seven.png":  # resizing blurs the other
        np.testing.assert_allclose(np.load("y.npy"), expected, atol=1e-5 * np.abs(expected).max())


def test_run_normalises_as_told(shell: Shell, digits: tuple[Array, Array]) -> None:
    shell.succeeds("run {s}/lenet5.so --input {s}/seven.png --mean 0.25 --std 0.5 -o y.npy")
    image = digits[0][list(digits[1]).index(7)]
    x = ((image / 255 - 0.25) / 0.5).astype(np.float32)[None, None]
    expected = tvmcnn.load(shell.shelf / "lenet5.so")(x)
    np.testing.assert_allclose(np.load("y.npy"), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("options", "means"),
    [
        ("", [1, 0, 0.2]),
        ("--bgr", [0.2, 0, 1]),
        ("--mean 0.5 --std 0.25", [2, -2, -1.2]),
        ("--mean 0.5,0,0.1 --std 0.25,1,0.5", [2, 0, 0.2]),
        ("--bgr --mean 0.5,0,0.1 --std 0.25,1,0.5", [-1.2, 0, 1.8]),
    ],
)
def test_run_colour_channels(shell: Shell, options: str, means: list[float]) -> None:
    shell.succeeds(f"run {{s}}/rgb.so --input {{s}}/red.png -o y.npy {options}")
    np.testing.assert_allclose(np.load("y.npy"), [means], atol=1e-6)


def test_run_takes_few_labels_and_large_top(shell: Shell) -> None:
    Path("labels.txt").write_text("first\n")
    done = shell.succeeds("run {s}/rgb.so --input {s}/red.png --labels labels.txt --top 99")
    assert [row.split()[1] for row in done.out.splitlines()[1:]] == ["first", "2", "1"]


# ---- bench, verify --------------------------------------------------------------------------------------------------


def test_bench(shell: Shell) -> None:
    done = shell.succeeds("bench {s}/lenet5.so --seconds 0.1 --threads 1 --batch 1")
    lines = done.out.splitlines()
    assert lines[0].startswith(
        f"lenet5 for {targets.resolve('native').name} on {machine.cpu_name()}, 1 thread, batch 1"
    )
    assert [line.split()[0] for line in lines[4:-1]] == ["k0_conv", "k1_conv", "k2_conv", "k3_gemm", "k4_gemm"]
    shares = [float(match) for match in re.findall(r"([\d.]+)%", done.out)]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_bench_json(shell: Shell) -> None:
    done = shell.succeeds("bench {s}/three.so --seconds 0.1 --threads 3 --json")
    result = json.loads(done.out)
    assert set(result) == {"network", "target", "machine", "threads", "batch", "call", "bound", "kernels"}
    assert (result["network"], result["batch"], result["threads"]) == ("three", 3, 3)
    for kind in ("call", "bound"):
        assert 0 < result[kind]["median"] <= result[kind]["p90"] <= result[kind]["p99"]
    flops = sum(kernel["flops"] for kernel in result["kernels"])
    assert flops == 3 * 2 * 416_520, "LeNet-5's products, counted by test_lenet5_model.py"
    assert all(kernel["microseconds"] > 0 and kernel["bytes"] > 0 for kernel in result["kernels"])


def test_verify(shell: Shell) -> None:
    done = shell.succeeds("verify {s}/lenet5.so --model {m}")
    lines = done.out.splitlines()
    assert len(lines) == 13
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert [line.split()[1] for line in lines[:3]] == ["conv1:", "relu1:", "pool1:"]
    assert lines[-1].startswith("verified against NumPy: 12 tensors and the outputs agree")


def test_verify_takes_a_seed(shell: Shell) -> None:
    first, again, other = (
        json.loads(shell.succeeds(f"verify {{s}}/lenet5.so --model {{m}} --json --seed {seed}").out)
        for seed in (7, 7, 8)
    )
    assert first == again
    assert (first["passed"], first["seed"], first["wrong"], first["tensors"]) == (True, 7, None, 12)
    assert first["error"] != other["error"]


def test_verify_names_the_first_wrong_tensor(shell: Shell) -> None:
    before = files(shell.shelf)
    done = shell("verify {s}/lenet5.so --model {s}/changed.onnx")
    assert done.status == 1
    assert done.err.startswith("tvmcnn: ")
    assert done.err.endswith("lenet5.so does not agree with " + str(shell.shelf / "changed.onnx") + "\n")
    words = [line.split()[:2] for line in done.out.splitlines()]
    assert words[:4] == [["ok", "conv1:"], ["ok", "relu1:"], ["ok", "pool1:"], ["WRONG", "conv2:"]]
    assert "the first tensor that differs from NumPy is conv2: " in done.out.splitlines()[-1]
    assert files(shell.shelf) == before


def test_verify_json_of_a_wrong_library(shell: Shell) -> None:
    done = shell("verify {s}/lenet5.so --model {s}/changed.onnx --json")
    assert done.status == 1
    result = json.loads(done.out)
    assert (result["passed"], result["wrong"]) == (False, "conv2")


# ---- ops, targets ---------------------------------------------------------------------------------------------------


def test_ops(shell: Shell) -> None:
    names = [line.split()[0] for line in shell.succeeds("ops").out.splitlines()]
    assert names == sorted(names)
    assert {"Add", "Conv", "Gemm", "MaxPool", "Relu", "Softmax"} <= set(names)
    rows = json.loads(shell.succeeds("ops --json").out)
    assert [row["name"] for row in rows] == names
    assert all(row["attributes"].split()[0] for row in rows), "at least its operands"
    for name in names:
        assert onnx.defs.has(name), f"{name} is no operator of ONNX"


def test_ops_check(shell: Shell) -> None:
    done = shell.succeeds("ops --check {m}")
    assert "every node is supported" in done.out
    assert json.loads(shell.succeeds("ops --check {m} --json").out)["unsupported"] == []


def test_operators_page_is_the_committed_one(shell: Shell) -> None:
    page = DOCS / "operators.md"
    made = shell.succeeds("ops --markdown").out
    assert made == page.read_text(), "run: tvmcnn ops --markdown > docs/operators.md"
    assert made.count("\n| ") == len(tvmcnn.importer.operators.OPERATORS) + 1


def test_ops_check_takes_shapes(shell: Shell) -> None:
    assert "wants" not in shell.succeeds("ops --check {m} --input-shape input:2x1x32x32").out


def test_ops_check_lists_reasons(shell: Shell) -> None:
    done = shell("ops --check {s}/odd.onnx")
    assert done.status == 1
    first, second = done.out.splitlines()
    assert "RandomUniformLike" in first
    assert "Unique" in second
    assert done.err == f"tvmcnn: {shell.shelf / 'odd.onnx'} has 2 unsupported nodes\n"
    listed = shell("ops --check {s}/odd.onnx --json")
    assert listed.status == 1
    assert json.loads(listed.out)["unsupported"] == [first, second]


def test_targets(shell: Shell) -> None:
    native = targets.resolve("native")
    done = shell.succeeds("targets")
    head, *rows, gpus, own = done.out.splitlines()
    assert gpus.startswith("cuda:sm_80,…  NVIDIA GPUs of these architectures; ")
    assert own == "your own records, which tune writes and compile reads: no place for them"
    assert head.startswith(f"this machine: {machine.cpu_name()}, ")
    assert head.endswith(f"native (or host) resolves to {native.name}")
    assert [row.split()[0] for row in rows] == list(targets.TARGETS)
    assert all(("runs here" in row) == (not targets.TARGETS[row.split()[0]].missing()) for row in rows)
    result = json.loads(shell.succeeds("targets --json").out)
    assert result["native"] == native.name
    assert result["cpus"] == machine.usable_cpus()
    assert result["targets"]["x86-64-v4"]["lanes"] == 16
    assert result["targets"][native.name]["missing"] == []


def test_targets_tell_of_own_records(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shell.folder / "own.jsonl"
    monkeypatch.setenv("TVMCNN_RECORDS", str(path))
    assert f"which tune writes and compile reads: 0 in {path}" in shell.succeeds("targets").out
    shutil.copy(records.schedules_folder() / "x86-64-v3.jsonl", path)
    count = len(path.read_text().splitlines())
    assert f"which tune writes and compile reads: {count} in {path}" in shell.succeeds("targets").out
    assert json.loads(shell.succeeds("targets --json").out)["own_records"] == count


def test_tune(shell: Shell) -> None:
    """A budget in, records out, which compile takes and `records` keeps in order; of another target it refuses them."""
    onnx.save(tiny(), shell.folder / "few.onnx")
    done = shell.succeeds("tune few.onnx --budget 24h --from-scratch -o mine.jsonl --plot best.svg")
    isa = targets.resolve("native").isa
    assert re.search(r"^1 kernels of few have \d+ candidates; 86400 s to try them$", done.out, re.MULTILINE)
    assert re.search(r"^network, 1 thread: [\d.]+ µs before, [\d.]+ after", done.out, re.MULTILINE)
    closing = r"^\d+ trials in \d+ s \(\d+ with those of earlier runs; 0 wrong, 0 failed\); nothing is left to try$"
    assert re.search(closing, done.out, re.MULTILINE)
    assert done.out.splitlines()[-2:] == ["tvmcnn compile few.onnx --records mine.jsonl", "wrote best.svg"]
    assert "<svg" in Path("best.svg").read_text()
    assert re.search(
        r"^k\d_conv .*\(given record\)", shell.succeeds("compile few.onnx --records mine.jsonl").out, re.MULTILINE
    )
    other = next(name for name, target in targets.TARGETS.items() if target.isa != isa)
    told = shell.succeeds(f"compile few.onnx --records mine.jsonl --target {other} --no-verify").out
    assert re.search(r"^configs: \d computed$|^configs: .*by shipped", told, re.MULTILINE)
    assert re.search(rf"^mine.jsonl: (\d+) of \1 records are not used: \1 (is|are) for {isa}$", told, re.MULTILINE)
    assert "(given record)" not in told

    count = len(Path("mine.jsonl").read_text().splitlines())
    assert shell.succeeds("records list mine.jsonl").out.endswith(f"{count} records, 0 lines skipped\n")
    Path("mine.jsonl").write_text(Path("mine.jsonl").read_text() + "{torn\n")
    assert "line" in shell.succeeds("records list mine.jsonl").out.splitlines()[-2]
    pruned = shell.succeeds("records prune mine.jsonl").out
    assert pruned.endswith(f"{count} records, 1 lines skipped; wrote mine.jsonl\n")
    merged = json.loads(shell.succeeds("records merge mine.jsonl mine.jsonl -o two.jsonl --json").out)
    assert (len(merged["records"]), len(merged["skipped"]), merged["written"]) == (count, count, ["two.jsonl"])
    again = shell.succeeds("tune few.onnx --budget 24h --from-scratch -o mine.jsonl --json")
    assert "trials of an earlier run are known and not measured again" in again.err
    assert json.loads(again.out.splitlines()[-1])["event"] == "end"


def test_targets_of_a_lesser_cpu(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    without = frozenset(targets.TARGETS["x86-64-v3"].features)
    monkeypatch.setattr(kinds, "cpu_flags", lambda: without)
    done = shell.succeeds("targets")
    assert "native (or host) resolves to x86-64-v3" in done.out
    assert re.search(r"^x86-64-v4 .*cannot run here: this CPU lacks avx512f, ", done.out, re.MULTILINE)
    monkeypatch.setattr(kinds, "cpu_flags", lambda: without - {"avx2", "fma"})
    assert "lacks avx2, fma: tvmcnn needs at least x86-64-v3" in shell.refuses("targets")
