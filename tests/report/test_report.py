"""The report: facts, the page, the drawing, filters and maps, the annotated model, the trace."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from builders import Graph, wide
from helpers import GUARD
from PIL import Image

import tvmcnn
from tvmcnn import targets
from tvmcnn.check.verify import verify_library
from tvmcnn.cli import inspect as looking
from tvmcnn.cli import main
from tvmcnn.codegen.listing import texts
from tvmcnn.compiler import Compiled
from tvmcnn.demo import MODEL
from tvmcnn.errors import InputError, ToolError
from tvmcnn.report import facts as module
from tvmcnn.report import plots
from tvmcnn.report.annotate import annotate
from tvmcnn.report.facts import Facts, collect
from tvmcnn.report.filters import filters
from tvmcnn.report.graph import drawing
from tvmcnn.report.labels import Box, along, around, beside, shortened
from tvmcnn.report.maps import draw, layers
from tvmcnn.report.page import report_page
from tvmcnn.run.trace import chrome_trace, trace
from tvmcnn.tuning import machine_peak
from tvmcnn.tuning.machine_peak import Limit

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]
HOSTILE = '<script>alert("1")</script>'


def branches() -> onnx.ModelProto:
    """A residual, a concatenation, two outputs, and a name that a browser must not run."""
    g = Graph()
    x = g.input(1, 6, 18, 20)
    a = g.node("Relu", g.conv(x, 32, (3, 3), pads=[1, 1, 1, 1]))
    b = g.node("Relu", g.node("Add", g.conv(a, 32, (3, 3), pads=[1, 1, 1, 1]), a))
    c = g.node("Concat", b, g.conv(a, 16, (1, 1)), axis=1)
    g.output(g.node("GlobalAveragePool", c), g.node("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2]))
    model = g.model()
    model.graph.node[0].name = HOSTILE
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    onnx.save(branches(), str(folder / "branches.onnx"))
    return folder


@pytest.fixture(scope="module")
def compiled(folder: Path) -> Compiled:
    return tvmcnn.compile(folder / "branches.onnx", output=folder / "branches.so", verify=False)


@pytest.fixture(scope="module")
def facts(compiled: Compiled, folder: Path) -> Facts:
    verdict = verify_library(compiled.path, folder / "branches.onnx")[0]
    code = texts(compiled.program, compiled.target)
    return collect(compiled.path, threads=1, seconds=0.1, verdict=verdict, code=code)


# ---- facts ----------------------------------------------------------------------------------------------------------


def test_facts(facts: Facts, compiled: Compiled) -> None:
    """Every kernel with times, shares, errors and code; the sums; the same as JSON."""
    steps = compiled.program.steps
    assert [kernel.name for kernel in facts.kernels] == [step.choice.name for step in steps]
    assert facts.flop == 2 * 18 * 20 * (32 * 6 * 9 + 32 * 32 * 9 + 16 * 32)
    assert facts.peak_gflops and facts.peak_gflops > 1 and facts.copy_gigabytes and facts.copy_gigabytes > 0.1
    assert facts.limits == (Limit(1, facts.peak_gflops, facts.copy_gigabytes),)
    for kernel, step in zip(facts.kernels, steps, strict=True):
        assert kernel.reads == tuple(source.name for source in step.choice.sources)
        assert kernel.microseconds is not None
        if step.choice.is_view:
            continue
        assert kernel.microseconds > 0
        if kernel.flop:
            assert kernel.peak_share == pytest.approx(kernel.flop / kernel.microseconds / 1e3 / facts.peak_gflops)
        assert kernel.worst is None or kernel.worst.passed
        assert set(kernel.code) == {"tensor expression", "schedule", "LLVM IR", "assembly"}
        assert "ret" in kernel.code["assembly"] and ".cfi" not in kernel.code["assembly"]
    assert {error.tensor for kernel in facts.kernels for error in kernel.errors} >= {"relu1", "add3", "relu4"}
    assert facts.measured == pytest.approx(sum(kernel.microseconds or 0 for kernel in facts.kernels))
    found = json.loads(json.dumps(facts.as_json()))
    assert found["kernels"][0]["name"] == facts.kernels[0].name
    assert found["arena_bytes"] == compiled.program.arena_bytes


class Invented:
    """Limits that nobody measured: of each thread 100 GFLOP/s and 10 GB/s."""

    def __init__(self, target: targets.Target, counts: Sequence[int]) -> None:
        self.counts, self.measured = {*counts}, 0

    def measure(self) -> None:
        self.measured += 1

    def found(self) -> dict[int, Limit]:
        assert self.measured == 2, "before and after the kernels"
        return {count: Limit(count, 100.0 * count, 10.0 * count) for count in sorted(self.counts)}


def test_shares_are_of_as_many_threads_as_ran(
    compiled: Compiled, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On three threads a kernel of two tasks uses two, and most use one; shares are of the peak of as many."""
    real, tasks = module._kernel, (1, 2, 64)
    monkeypatch.setattr(module, "_kernel", lambda i, entry: dataclasses.replace(real(i, entry), tasks=tasks[i % 3]))
    monkeypatch.setattr(module, "Limits", Invented)
    found = collect(compiled.path, threads=3, seconds=0.1)
    assert [limit.threads for limit in found.limits] == [1, 2, 3]
    assert (found.peak_gflops, found.copy_gigabytes) == (300.0, 30.0)
    for kernel in found.kernels:
        assert kernel.threads == 1 + kernel.index % 3
        rate = kernel.flop / (kernel.microseconds or 0) / 1e3
        assert kernel.peak_share == (pytest.approx(rate / (100 * kernel.threads)) if kernel.flop else None)
        rate = kernel.bytes / (kernel.microseconds or 0) / 1e3
        assert kernel.bandwidth_share == pytest.approx(rate / (10 * kernel.threads))
    assert "FMA peak 200 GFLOP/s, copying 20 GB/s with 2 threads" in found.lines()
    annotate(folder / "branches.onnx", found, tmp_path / "seen.onnx")
    words = {entry.value for node in onnx.load(str(tmp_path / "seen.onnx")).graph.node for entry in node.metadata_props}
    for kernel in found.kernels:
        if kernel.peak_share is not None:
            plural = "s" if kernel.threads != 1 else ""
            assert f"{kernel.peak_share:.0%} of the FMA peak with {kernel.threads} thread{plural}" in words


def test_limits_are_the_best_of_several_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else runs can only make the machine seem slower; and two threads do what one does, at least."""
    rates = {1: itertools.cycle([50.0, 101.0, 70.0]), 2: itertools.cycle([60.0, 95.0])}

    class Machine:
        def __init__(self, *target: object) -> None:
            pass

        def measure(self, *given: float) -> float:
            return next(rates[int(given[-1])])

    monkeypatch.setattr(machine_peak, "FmaPeak", Machine)
    monkeypatch.setattr(machine_peak, "CopyBandwidth", Machine)
    measured = machine_peak.Limits(targets.TARGETS["x86-64-v3"], [2, 1, 2])
    measured.measure()
    assert measured.found() == {1: Limit(1, 101.0, 101.0), 2: Limit(2, 101.0, 101.0)}
    rates[2] = itertools.repeat(180.0)
    rates[1] = itertools.repeat(20.0)
    measured.measure()
    assert measured.found() == {1: Limit(1, 101.0, 101.0), 2: Limit(2, 180.0, 180.0)}


def test_arena_is_as_planned(facts: Facts, compiled: Compiled) -> None:
    """No two tensors have the same bytes at once, and the largest set that is alive is the bound."""
    assert max(offset + size for _, offset, size, _, _ in facts.held) == facts.arena_bytes
    for (_, a, s, f, la), (_, b, t, g, lb) in itertools.combinations(facts.held, 2):
        assert la < g or lb < f or a + s <= b or b + t <= a
    alive = [sum(s for _, _, s, f, la in facts.held if f <= step <= la) for step in range(len(facts.kernels))]
    assert max(alive) == facts.arena_lower_bound


def test_facts_of_what_cannot_run_here(compiled: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvmcnn.run.cpu_flags", lambda: frozenset())
    found = collect(compiled.path)
    assert "lacks" in found.not_measured and found.measured is None and found.threads is None
    page = report_page(found)
    assert "Not measured: " in page and "Roofline" not in page
    assert "not measured: " in "\n".join(found.lines())


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The elements of a page; fails on tags that do not match."""

    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(facts: Facts) -> None:
    """It asks for nothing, runs nothing of the model's, and has a row and a box for each kernel, with links to it."""
    text = report_page(facts)
    page = Page(text)
    assert "alert(" in text and HOSTILE not in text, "shown, not run"
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        assert "src" not in attributes
        link = attributes.get("href") or attributes.get("xlink:href")
        if link and tag != "link":
            assert link.startswith("#") and (link[1:] in ids or tag == "use"), link
    names = {kernel.name for kernel in facts.kernels}
    assert names <= ids and {f"more-{name}" for name in names} <= ids
    packed = json.loads(re.search(r"const texts = (\{.*\});", text)[1])  # type: ignore[index]
    unpacked = [zlib.decompress(base64.b64decode(each)).decode() for each in packed.values()]
    assert any("T.prim_func" in each or "@T" in each for each in unpacked)
    assert any("define" in each for each in unpacked)
    assert any(re.search(r"vfm|vmul", each) for each in unpacked)
    assert "no plan needs less" in text and "FMA peak" in text


def test_drawing(facts: Facts) -> None:
    """No box covers another, all lie inside, and an arrow ends at every box that reads something."""
    svg = ElementTree.fromstring(drawing(facts))
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    boxes = []
    for rect in svg.iter("rect"):
        x, y, w, h = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        boxes.append((x, y, w, h))
    assert len(boxes) == len(facts.kernels) + 3  # an input, two outputs
    for (x, y, w, h), (u, v, p, q) in itertools.combinations(boxes, 2):
        assert x + w <= u or u + p <= x or y + h <= v or v + q <= y
    arrows = [path for path in svg.iter("path") if path.attrib.get("class") == "edge"]
    assert len(arrows) == sum(len(set(kernel.reads)) for kernel in facts.kernels) + 2
    text = "".join(svg.itertext())
    assert "Concat" in text and HOSTILE[-10:] in text


def texts_of(svg: str, size: int) -> list[tuple[str, Box]]:
    """The texts of a plot in one size of letters, with boxes that are at most theirs."""
    found = []
    for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        style = element.attrib["style"]
        if not re.search(rf"\b{size}px", style):
            continue
        text = "".join(element.itertext())
        moved = re.findall(r"-?\d+\.?\d*", element.attrib.get("transform", "")) or ["0", "0"]
        x, y = (float(element.attrib.get(axis, moved[place])) for place, axis in enumerate("xy"))
        width = 0.45 * size * len(text)
        left = x - width / 2 if "middle" in style else x
        found.append((text, Box(left, y, left + width, y + 0.6 * size)))
    return found


def crowded(facts: Facts) -> Facts:
    """Twenty kernels of nearly the same figures, and tensors with long names."""
    name = "a_tensor_with_a_name_that_no_box_has_room_for"
    kernels = tuple(
        dataclasses.replace(
            facts.kernels[1], index=i, name=f"k{i}_conv", flop=10**8, bytes=10**6 + i, microseconds=1000.0 + i
        )
        for i in range(20)
    )
    held = tuple((f"{name}{i}", 0, facts.arena_bytes, i, i) for i in range(14))
    limit = Limit(2, 200.0, 20.0)
    return dataclasses.replace(facts, threads=2, kernels=kernels, held=held, limits=(Limit(1, 100.0, 15.0), limit))


def test_numbers_of_the_axes_are_numbers(facts: Facts) -> None:
    for svg in (plots.roofline(crowded(facts)), plots.roofline(facts), plots.arena(facts)):
        assert "mathdefault" not in svg and "$" not in svg
        ticks = [text for text, _ in texts_of(svg, 10)]
        assert len([text for text in ticks if re.fullmatch(r"[\d.]+", text)]) >= 4, ticks


def test_names_of_the_roofline_lie_apart(facts: Facts) -> None:
    """The slowest kernels have names that lie apart, although the kernels are at one place."""
    svg = plots.roofline(crowded(facts))
    names = [each for each in texts_of(svg, 8) if each[0].startswith("k")]
    assert sorted(text for text, _ in names) == sorted(f"k{i}_conv" for i in range(20 - plots.NAMED, 20))
    for (_, one), (_, other) in itertools.combinations(names, 2):
        assert not one.overlaps(other)
    legend = [text for text, _ in texts_of(svg, 9)]
    assert {"2 threads: FMA peak 200 GFLOP/s,", "1 thread: FMA peak 100 GFLOP/s,"} <= {*legend}


def test_names_of_the_arena_lie_in_their_boxes(facts: Facts) -> None:
    svg = plots.arena(crowded(facts))
    root = ElementTree.fromstring(svg)
    boxes = []
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        if "opacity: 0.6" in path.attrib.get("style", "") and len(numbers) >= 8:
            boxes.append(Box(min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])))
    written = texts_of(svg, 7)
    assert len(boxes) == len(written) == 14
    for text, place in written:
        assert text.startswith("…") and any(b.left <= place.left and place.right <= b.right for b in boxes), text


def test_a_text_finds_its_place() -> None:
    """Beside its mark, over nothing and inside; none where there is no room."""
    rng = np.random.default_rng(3)
    inside = Box(0, 0, 400, 300)
    marks = [around(*rng.uniform(120, 280, 2), radius) for radius in (3, 9, 12, 5, 7, 4)]
    taken = [*marks, *along([(0.0, 200.0), (400.0, 120.0)])]
    for mark in marks:
        box = beside(mark, 61, 9, taken, inside)
        assert box is not None and inside.contains(box)
        assert (box.right - box.left, box.top - box.bottom) == (pytest.approx(61), pytest.approx(9))
        assert not [each for each in taken if each.overlaps(box)]
        taken.append(box)
    assert beside(marks[0], 61, 9, [inside], inside) is None
    assert [shortened("stem.conv1.weight", most) for most in (20, 17, 7)] == [*["stem.conv1.weight"] * 2, "…weight"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_page_in_a_browser(width: int, facts: Facts, tmp_path: Path) -> None:
    """No error on its console, nothing wider than the window, code that unfolds."""
    probe = """<script>addEventListener("load", async () => {
      for (const each of document.querySelectorAll("details")) each.open = true;
      const unfolded = () => [...document.querySelectorAll("details.code pre")].every((e) => e.textContent.length > 50);
      for (let turn = 0; turn < 20000 && !unfolded(); ++turn) {  // of the browser's loop, whatever time they take
        const { port1, port2 } = new MessageChannel();
        await new Promise((done) => { port1.onmessage = done; port2.postMessage(0); });
      }
      document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, unfolded()]);
    });</script></body>"""
    path = tmp_path / "page.html"
    path.write_text(report_page(facts).replace("</body>", probe))
    browser = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    flags = ["--enable-logging=stderr", "--virtual-time-budget=100000", "--dump-dom", f"file://{path}"]
    done = subprocess.run([*browser, *flags], capture_output=True, text=True, timeout=GUARD)
    assert "CONSOLE" not in done.stderr, done.stderr
    scroll, inner, unfolded = json.loads(re.search(r"<title>(\[.*\])</title>", done.stdout)[1])  # type: ignore[index]
    assert scroll <= inner
    assert unfolded


# ---- filters and maps -----------------------------------------------------------------------------------------------


def convolutions() -> onnx.ModelProto:
    """Convolutions of every algorithm, stride, dilation, pad and group, each with few channels in."""
    g = Graph()
    x = g.input(1, 3, 37, 45)
    a = g.node("Relu", g.conv(x, 8, (5, 4), strides=[2, 3], pads=[2, 1, 0, 3]))
    b = g.node("Relu", g.conv(a, 16, (3, 3), pads=[1, 1, 1, 1]))
    c = g.node("Relu", g.conv(b, 24, (3, 3), pads=[2, 2, 2, 2], dilations=[2, 2], group=2))
    d = g.node("Relu", g.conv(c, 24, (3, 2), group=24))
    e = g.conv(d, 10, (1, 1))
    g.output(g.node("MaxPool", g.node("Relu", g.conv(e, 6, (2, 3))), kernel_shape=[2, 2], strides=[2, 2]))
    return g.model()


def test_filters_are_the_weights(tmp_path: Path) -> None:
    """Found by the answers of the compiled code alone; of every convolution here."""
    compiled = tvmcnn.compile(convolutions(), output=tmp_path / "x.so", verify=False)
    net, network = tvmcnn.load(compiled.path), compiled.program.network
    seen = 0
    for index, step in enumerate(compiled.program.steps):
        if step.choice.kernel.anchor.op != "Conv":
            assert filters(net, index) is None
            continue
        weight = network.constants[step.choice.kernel.anchor.inputs[1]]
        np.testing.assert_allclose(filters(net, index), weight, rtol=0, atol=1e-5 * np.abs(weight).max())
        seen += 1
    assert seen == 6


def test_filters_by_winograd(tmp_path: Path) -> None:
    g = Graph()
    x = g.conv(g.input(1, 8, 33, 31), 64, (1, 1))
    g.output(g.node("Relu", g.conv(x, 32, (3, 3), pads=[1, 1, 1, 1])))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False)
    index = next(i for i, s in enumerate(compiled.program.steps) if s.choice.algorithm in ("winograd", "streamed"))
    weight = compiled.program.network.constants[compiled.program.steps[index].choice.kernel.anchor.inputs[1]]
    found = filters(tvmcnn.load(compiled.path), index)
    np.testing.assert_allclose(found, weight, rtol=0, atol=1e-5 * np.abs(weight).max())


def test_filters_of_awkward_places(tmp_path: Path) -> None:
    """A convolution that reads an output of the network shows its filters; one that reads a reshaped tensor none."""
    g = Graph()
    a = g.conv(g.input(1, 3, 11, 13), 5, (2, 3))
    b = g.conv(a, 7, (3, 2))
    c = g.node("Reshape", g.node("Gemm", g.input(1, 9), g.draw(9, 20)), g.constant(np.array([1, 1, 4, 5])))
    g.output(a, b, g.conv(c, 6, (2, 2)))
    compiled = tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False)
    net, found = tvmcnn.load(compiled.path), list[bool]()
    for index, step in enumerate(compiled.program.steps):
        if step.choice.kernel.anchor.op == "Conv":
            weight = compiled.program.network.constants[step.choice.kernel.anchor.inputs[1]]
            seen = filters(net, index)
            found.append(seen is not None)
            if seen is not None:
                np.testing.assert_allclose(seen, weight, rtol=0, atol=1e-5 * np.abs(weight).max())
    assert found == [True, True, False]


def test_names_that_are_formulas_to_others(tmp_path: Path) -> None:
    """matplotlib would take $\\x$ for TeX, and fail."""
    g = Graph()
    g.output(g.node("Relu", g.conv(g.conv(g.input(1, 3, 17, 19), 20, (3, 3)), 18, (3, 3))))
    model = g.model()
    for node in model.graph.node:
        node.input[:] = [f"$\\{name}$" if name.startswith("conv") else name for name in node.input]
        node.output[:] = [f"$\\{name}$" if name.startswith("conv") else name for name in node.output]
    net = tvmcnn.load(tvmcnn.compile(model, output=tmp_path / "x.so", verify=False).path)
    assert "$\\conv0$" in report_page(collect(net.path, seconds=0.05))
    x = np.ones((1, 3, 17, 19), np.float32)
    draw(x[0], layers(net, x), [("$\\a$", 1.0)], tmp_path / "m.png", "$\\b$")


def test_a_scalar_input(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Add", g.input(), g.input(5)))
    assert collect(tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False).path, seconds=0.05).sizes == ()


def lines() -> onnx.ModelProto:
    """Two filters made by hand: one sees horizontal lines, one vertical."""
    g = Graph()
    across = np.array([[-1, -1, -1], [2, 2, 2], [-1, -1, -1]])
    weight = g.constant(np.stack([across, across.T])[:, None].astype(float))
    g.output(g.node("Relu", g.node("Conv", g.input(1, 1, 24, 28), weight, pads=[1, 1, 1, 1])))
    return g.model()


def test_maps_show_where_lines_are(tmp_path: Path) -> None:
    net = tvmcnn.load(tvmcnn.compile(lines(), output=tmp_path / "x.so", verify=False).path)
    image = np.zeros((1, 1, 24, 28), np.float32)
    image[0, 0, 7, 4:20] = 1
    image[0, 0, 10:22, 23] = 1
    (layer,) = layers(net, image)
    horizontal, vertical = layer.values
    assert {*np.argwhere(horizontal == horizontal.max())[:, 0]} == {7}
    assert {*np.argwhere(vertical == vertical.max())[:, 1]} == {23}
    np.testing.assert_allclose(layer.filters[0, 0], [[-1] * 3, [2] * 3, [-1] * 3], atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_picture_of_the_way_of_an_image(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command draws a digit's way through LeNet-5; the second file is the same."""
    monkeypatch.chdir(tmp_path)
    library = tvmcnn.compile(MODEL, output="lenet5.so", verify=False).path
    digits = np.load(MODEL.parent / "digits.npz")
    Image.fromarray(digits["images"][3]).save("digit.png")
    command = f"inspect {library} --image digit.png --activations maps{suffix}"
    assert main(command.split()) == 0
    first = Path(f"maps{suffix}").read_bytes()
    assert main(command.split()) == 0
    assert Path(f"maps{suffix}").read_bytes() == first
    if suffix == ".png":
        pixels = np.asarray(Image.open("maps.png").convert("RGB")).astype(int)
        assert pixels.shape[1] > 1000 and pixels.shape[0] > 500
        blue, red = ((pixels[..., a] - pixels[..., b] > 90).sum() for a, b in ((2, 0), (0, 2)))
        assert blue > 1000 and red > 1000, "filters are drawn"
    else:
        assert b"lenet5: digit.png" in first or b"lenet5" in first


def test_picture_in_colours(tmp_path: Path) -> None:
    g = Graph()
    g.output(g.node("Relu", g.conv(g.input(1, 3, 17, 19), 20, (3, 3))))
    net = tvmcnn.load(tvmcnn.compile(g.model(), output=tmp_path / "x.so", verify=False).path)
    image = np.random.default_rng(0).random((1, 3, 17, 19), np.float32)
    draw(image[0], layers(net, image), [], tmp_path / "maps.png", "colours")
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ToolError, match=r"'.*maps\.gif' ends in '\.gif'; allowed are \.png, \.svg, \.pdf"):
        draw(image[0], layers(net, image), [], tmp_path / "maps.gif", "colours")
    with pytest.raises(InputError, match="no layer"):
        draw(image[0], [], [], tmp_path / "maps.png", "colours")


# ---- the annotated model --------------------------------------------------------------------------------------------


def test_annotated_model(facts: Facts, folder: Path, tmp_path: Path) -> None:
    """Every node says its kernel; the model is the same for a compiler; a second time replaces the first."""
    path = tmp_path / "annotated.onnx"
    count = annotate(folder / "branches.onnx", facts, path)
    model = onnx.load(str(path))
    onnx.checker.check_model(model)
    assert count == len(model.graph.node)
    by_kernel = {kernel.name: kernel for kernel in facts.kernels}
    for node in model.graph.node:
        found = {entry.key: entry.value for entry in node.metadata_props}
        kernel = by_kernel[found["tvmcnn.kernel"].split(":")[0]]
        assert node.name in kernel.nodes
        assert "µs" in found["tvmcnn.time"]
    annotate(path, facts, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    x = np.random.default_rng(1).standard_normal((1, 6, 18, 20), np.float32)
    one, other = (tvmcnn.reference(each, x) for each in (path, folder / "branches.onnx"))
    assert all((one[name] == other[name]).all() for name in other)


def test_annotation_says_what_was_folded(tmp_path: Path) -> None:
    g = Graph()
    a = g.node("Relu", g.conv(g.input(1, 5, 9, 11), 7, (3, 3)))
    g.output(g.node("BatchNormalization", g.conv(a, 4, (2, 2)), *(g.constant(np.arange(1.0, 5) + n) for n in range(4))))
    path = tmp_path / "m.onnx"
    onnx.save(g.model(), str(path))
    facts = collect(tvmcnn.compile(path, output=tmp_path / "m.so", verify=False).path, seconds=0.05)
    annotate(path, facts, tmp_path / "a.onnx")
    texts_ = [{e.key: e.value for e in node.metadata_props} for node in onnx.load(str(tmp_path / "a.onnx")).graph.node]
    assert texts_[2]["tvmcnn.kernel"] == "none: folded into the weights of the node beside it"


# ---- the trace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_trace(threads: int, tmp_path: Path) -> None:
    """Kernels follow each other; each task is some thread's once, within its kernel's time."""
    compiled = tvmcnn.compile(wide(), output=tmp_path / "wide.so", verify=False)
    net = tvmcnn.load(compiled.path, threads=threads)
    spans = trace(net)
    kernels = net.manifest["kernels"]
    calls = [span for span in spans if span.first is None]
    assert [span.kernel for span in calls] == list(range(len(kernels)))
    for one, other in itertools.pairwise(calls):
        assert one.begin <= one.end == other.begin
    done: dict[int, list[int]] = {}
    for span in (span for span in spans if span.first is not None):
        call = calls[span.kernel]
        assert call.begin <= span.begin <= span.end <= call.end and span.thread < threads
        done.setdefault(span.kernel, []).extend(range(span.first, span.last))  # type: ignore[arg-type]
    shared = {index for index, kernel in enumerate(kernels) if kernel["tasks"] > 1 and threads > 1}
    assert set(done) == shared
    assert all(sorted(tasks) == list(range(kernels[index]["tasks"])) for index, tasks in done.items())
    events = json.loads(chrome_trace(net, spans))["traceEvents"]
    assert sum(event["ph"] == "X" for event in events) == len(spans)
    assert {event["args"]["name"] for event in events if event["name"] == "thread_name"} >= {"chain"}
    told = [event["args"]["tasks"] for event in events if "tasks" in event.get("args", {})]
    parts = [(span.first, span.last, kernels[span.kernel]["tasks"]) for span in spans if span.first is not None]
    assert told == [f"{first} to {last - 1} of {count}" for first, last, count in parts]  # type: ignore[operator]


def test_a_library_for_gpus_is_not_traced(compiled: Compiled) -> None:
    net = tvmcnn.load(compiled.path)
    net.symbol = "none"  # which has no function that traces
    with pytest.raises(InputError, match=r"branches\.so cannot be traced: it is for GPUs"):
        trace(net)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_inspect_writes_what_is_asked_for(
    folder: Path, compiled: Compiled, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = f"inspect {compiled.path} --model {folder / 'branches.onnx'} --seconds 0.1 --threads 1"
    assert main(f"{words} --html r.html --annotate a.onnx --trace t.json --lock l.json".split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote r.html, a.onnx, t.json, l.json"
    assert "const texts" in Path("r.html").read_text()
    assert main(f"inspect {compiled.path} --html s.html --seconds 0.1".split()) == 0
    assert "const texts" not in Path("s.html").read_text(), "no code without the model"
    capsys.readouterr()
    assert main(f"inspect {compiled.path} --measure --json --seconds 0.1".split()) == 0
    assert json.loads(capsys.readouterr().out)["kernels"][0]["microseconds"] > 0
    assert main(f"inspect {folder / 'branches.onnx'} --measure --seconds 0.1".split()) == 0
    out = capsys.readouterr().out
    assert re.search(r"^k\d+_conv +Conv\+Relu .* \d+% ", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--html r.txt", "'r.txt' ends in '.txt'; allowed are .html"),
        ("--html nowhere/r.html", "cannot write nowhere/r.html: the folder nowhere does not exist"),
        ("--trace t.html", "'t.html' ends in '.html'; allowed are .json"),
        (
            "--image i.png",
            "--image and --activations go together: an image in, the picture of each layer's maps out",
        ),
        ("--image i.png --activations m.gif", "'m.gif' ends in '.gif'; allowed are .png, .svg, .pdf"),
        ("--code k0:llvm --html r.html", "--code prints one kernel's code and nothing else: leave out --html"),
        ("--input-shape x:1x2", "--input-shape is for models: {library} was compiled for its shapes"),
        ("--image i.npy --activations m.png", "cannot read i.npy: No such file or directory"),
        ("--annotate a.onnx", "--annotate writes into the model: name it with --model MODEL.onnx"),
    ],
)
def test_mistakes(
    words: str, sentence: str, compiled: Compiled, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(compiled.path), *words.split()]) == 1
    assert capsys.readouterr().err == f"tvmcnn: {sentence.format(library=compiled.path)}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_page_without_what_makes_it(
    compiled: Compiled, capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    """Said before the work, with the extra that has it."""
    monkeypatch.setattr(looking, "find_spec", lambda name: None)
    assert main(["inspect", str(compiled.path), "--html", str(tmp_path / "r.html")]) == 1
    assert capsys.readouterr().err == "tvmcnn: this needs jinja2: install it by pip install 'tvmcnn[report]'\n"


def test_measured_targets_are_known() -> None:
    """The limits are measured by code of the target's own vectors."""
    assert {"x86-64-v3", "x86-64-v4"} <= set(targets.TARGETS)
