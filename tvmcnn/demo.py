"""The demo: the shipped LeNet-5 compiled, checked, shown reading digits, and timed beside NumPy."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmcnn.check.reference import reference
from tvmcnn.compiler import compile  # noqa: A004 (the contract's name)
from tvmcnn.digits import Digits, Normalisation, load_mnist
from tvmcnn.network import Array
from tvmcnn.run import load
from tvmcnn.run.bench import rounds

if TYPE_CHECKING:
    from tvmcnn.run import Net

DATA = Path(__file__).parent / "data"
MODEL = DATA / "lenet5.onnx"
SHADES = " .:-=+*#%@"  # ten grey levels for a terminal


@dataclass(frozen=True)
class DemoResult:
    """What the demo found: right answers of so many, and µs an image of one native call and of NumPy."""

    printed_right: int
    printed: int
    handwritten_right: int
    handwritten: int
    microseconds: float
    numpy_microseconds: float
    verification: dict[str, Any]
    target: str
    library_bytes: int


def run_demo(mnist: Path | None, say: Callable[[str], None]) -> DemoResult:
    """Compile LeNet-5 for this machine, verify it, classify printed digits and (from `mnist`) handwritten ones, time
    it.

    Raises ToolError if `mnist` does not hold the four MNIST files.
    """
    handwritten = load_mnist(mnist, "t10k") if mnist is not None else None
    with tempfile.TemporaryDirectory(prefix="tvmcnn-demo-") as folder:
        say(f"Compiling LeNet-5 ({MODEL.name}: 61,706 parameters, trained on handwritten and printed digits)")
        compiled = compile(MODEL, output=Path(folder) / "lenet5.so", report=lambda line: say(f"  {line}"))
        size = compiled.path.stat().st_size
        net = load(compiled.path)
    facts = net.manifest["metadata"]
    norm = Normalisation(float(facts["mean"]), float(facts["std"]))
    say(f"  one library of {size / 1000:.0f} kB: code, weights and manifest, no TVM needed to run it\n")

    with np.load(DATA / "digits.npz") as sheet:
        printed, font = Digits(sheet["images"], sheet["labels"]), str(sheet["font"])
    answers = classify(net, norm, printed)
    say(f"Printed digits ({font}, a font that training never saw), and the answers:")
    shown = np.unique(printed.labels, return_index=True)[1][::2]  # one each of 0, 2, 4, 6, 8
    say(picture(printed.images[shown], answers[shown]))
    printed_right = int((answers == printed.labels).sum())
    say(f"{printed_right} of {len(answers)} printed digits right")
    say(f"The model's record: {_record(facts)}")

    handwritten_right = 0
    if handwritten is not None:
        answers = classify(net, norm, handwritten)
        handwritten_right = int((answers == handwritten.labels).sum())
        say("\nHandwritten digits (MNIST test set), and the answers:")
        say(picture(handwritten.images[:5], answers[:5]))
        say(f"{handwritten_right} of {len(answers)} handwritten digits right ({handwritten_right / len(answers):.2%})")

    x = norm.apply(printed.images[:1])
    calls = (lambda: net(x), lambda: reference(MODEL, {"input": x}))
    times = list(itertools.islice(rounds(calls, 0.02), 21))
    ours, numpy_time = (float(np.median(samples)) for samples in zip(*times, strict=True))
    say(f"\nOne image: {ours:.1f} µs from Python in one native call, {numpy_time / ours:,.0f} times as fast as the")
    say(f"NumPy reference that checked it ({numpy_time:,.0f} µs, written for clarity); 1 thread, {net.target}")
    total = len(handwritten.labels) if handwritten is not None else 0
    verification: dict[str, Any] = net.manifest["verification"] or {}
    counts = (printed_right, len(printed.labels), handwritten_right, total)
    return DemoResult(*counts, ours, numpy_time, verification, net.target, size)


def _record(facts: Mapping[str, str]) -> str:
    mnist, printed = float(facts["mnist_accuracy"]), float(facts["printed_accuracy"])
    fonts = len(facts["held_out_fonts"].split(", "))
    return (
        f"{mnist:.2%} of {int(facts['mnist_images']):,} handwritten test digits (MNIST),"
        f" {printed:.2%} of {int(facts['printed_images']):,} printed ones in {fonts} unseen font families"
    )


def classify(net: Net, norm: Normalisation, digits: Digits) -> Array:
    """The digit with the highest score for each image, (count,)."""
    volumes = norm.apply(digits.images)
    scores = np.empty((len(volumes), 10), np.float32)
    for i in range(len(volumes)):
        net(volumes[i : i + 1], out=scores[i : i + 1])
    best: Array = scores.argmax(axis=1)
    return best


def picture(images: Array, answers: Array) -> str:
    """Images (count, 32, 32) side by side as text, 14 lines high, each with the answer under it."""
    # A character is about twice as high as wide: average 2 x 2 pixels across, take every second row of those.
    rows = images[:, 2:30].astype(float).reshape(len(images), 14, 2, 16, 2).mean(axis=(2, 4))
    levels = (rows / 255 * (len(SHADES) - 1)).round().astype(int)
    lines = ["  ".join("".join(SHADES[level] for level in image[y]) for image in levels) for y in range(14)]
    lines.append("  ".join(f"{answer}".center(16) for answer in answers))
    return "\n".join(line.rstrip() for line in lines)
