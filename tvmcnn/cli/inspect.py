"""The commands that look into a library: verify and inspect."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmcnn.artifact.container import read_manifest
from tvmcnn.cli.options import FORMS, one_size, permitted, read_feeds, read_labels
from tvmcnn.cli.output import best_of, print_json, reporter
from tvmcnn.errors import ArtifactError, InputError, ModelError, VerifyError
from tvmcnn.files import PICTURES, check_place, write_file
from tvmcnn.network import dims
from tvmcnn.progress import bar
from tvmcnn.run import load
from tvmcnn.run.runner import Runner

if TYPE_CHECKING:
    from tvmcnn.check.bisect import Bisection
    from tvmcnn.report.facts import Facts


def do_verify(options: argparse.Namespace) -> int:
    """Compare with NumPy; say, or show, where it differs and which choice is to blame."""
    from tvmcnn.check.verify import verify_library

    check_place(options.html, (".html",))
    _check_pages(options.html)
    model = permitted(options.model, options)
    verdicts = verify_library(options.library, model, options.seed, histograms=options.html is not None)
    passed = all(verdict.passed for verdict in verdicts)
    bisection, words = _bisected(options) if options.bisect else (None, "")
    if options.html is not None:
        from tvmcnn.report.page import verify_page

        shown = next((index for index, verdict in enumerate(verdicts) if not verdict.passed), 0)
        program = load(options.library).programs[shown]
        write_file(options.html, verify_page(program.name, verdicts[shown], program.manifest, words))
    if options.json:
        entries = [verdict.as_json() for verdict in verdicts]
        found = entries[0] if len(entries) == 1 else {"passed": passed, "batches": entries}
        print_json(found if not words else {**found, "bisection": bisection.as_json() if bisection else words})
        return 0 if passed else 1
    for verdict in verdicts:
        for error in verdict.tensors:
            print(f"{'ok   ' if error.passed else 'WRONG'} {error}")
        print(verdict)
    if words:
        print(words)
    if options.html is not None:
        print(f"wrote {options.html}")
    if not passed:
        raise VerifyError(f"{options.library} does not agree with {options.model}")
    return 0


def _bisected(options: argparse.Namespace) -> tuple[Bisection | None, str]:
    """What came of it, also in words; these alone for a library that cannot be bisected."""
    from tvmcnn.check.bisect import bisect

    try:
        with bar() as progress:
            found = bisect(options.library, permitted(options.model, options), options.seed, progress=progress)
    except ArtifactError as error:
        return None, f"not bisected: {error}"
    return found, str(found)


def do_inspect(options: argparse.Namespace) -> int:
    """What a library is, in words, figures, pages and pictures."""
    from tvmcnn.artifact.lock import lock_of
    from tvmcnn.artifact.manifest import described

    _check_inspect(options)
    with _opened(options) as (library, model):
        manifest, written, facts = read_manifest(library), list[Path](), None
        if options.measure or options.html is not None or options.annotate is not None:
            facts = _facts(options, library, model)
        if options.code is not None:
            texts = _code(library, model, *options.code)
            print_json(texts) if options.json else print(_joined(texts), end="")
            return 0
        if options.html is not None and facts is not None:
            from tvmcnn.report.page import report_page

            write_file(options.html, report_page(facts))
            written.append(options.html)
        if options.annotate is not None and facts is not None and model is not None:
            from tvmcnn.report.annotate import annotate

            annotate(model, facts, options.annotate)
            written.append(options.annotate)
        if options.trace is not None:
            from tvmcnn.run.trace import chrome_trace, trace

            net = load(library, options.threads).programs[0]
            write_file(options.trace, chrome_trace(net, trace(net)))
            written.append(options.trace)
        if options.activations is not None:
            _picture(options, load(library, options.threads).programs[0])
            written.append(options.activations)
        if options.lock is not None:
            write_file(options.lock, json.dumps(lock_of(manifest), indent=2) + "\n")
            written.append(options.lock)
    if options.json:
        print_json(manifest if facts is None else facts.as_json())
        return 0
    if facts is not None and options.measure:
        print("\n".join(facts.lines()))
    elif not written or written == [options.lock]:
        for line in described(manifest):
            reporter(options)(line)
    if written:
        print(f"wrote {', '.join(map(str, written))}")
    return 0


def _check_pages(page: Path | None) -> None:
    """Before the work: whether what a page is made with is there. Raises ModuleNotFoundError if not."""
    for name in ("jinja2", "igraph") if page is not None else ():
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def _check_inspect(options: argparse.Namespace) -> None:
    """Say what is wrong before the work."""
    places = ((options.html, (".html",)), (options.annotate, (".onnx",)), (options.trace, (".json",)))
    for path, suffixes in (*places, (options.activations, PICTURES)):
        check_place(path, suffixes)
    _check_pages(options.html)
    asked = [name for name in ("html", "annotate", "trace", "activations", "lock") if getattr(options, name)]
    if options.code is not None and (asked or options.measure):
        raise InputError(f"--code prints one kernel's code and nothing else: leave out --{(asked or ['measure'])[0]}")
    if (options.image is None) != (options.activations is None):
        raise InputError("--image and --activations go together: an image in, the picture of each layer's maps out")
    if options.file.suffix == ".onnx" and options.model is not None:
        raise InputError(f"--model is for libraries: {options.file} is a model itself")
    if options.file.suffix != ".onnx" and options.input_shape:
        raise InputError(f"--input-shape is for models: {options.file} was compiled for its shapes")
    if options.annotate is not None and options.model is None and options.file.suffix != ".onnx":
        raise InputError("--annotate writes into the model: name it with --model MODEL.onnx")


@contextlib.contextmanager
def _opened(options: argparse.Namespace) -> Iterator[tuple[Path, PathLike[str] | None]]:
    """The library and its model, if it is known; a model alone is compiled for this machine."""
    if options.file.suffix != ".onnx":
        yield options.file, None if options.model is None else permitted(options.model, options)
        return
    import tvmcnn

    with tempfile.TemporaryDirectory(prefix="tvmcnn-") as folder, bar() as progress:
        library = Path(folder) / f"{options.file.stem}.so"
        say = reporter(options, sys.stderr) if options.verbose else lambda line: None
        shapes = one_size(options)
        model = permitted(options.file, options)
        tvmcnn.compile(model, output=library, input_shapes=shapes, verify=False, report=say, progress=progress)
        yield library, model


def _facts(options: argparse.Namespace, library: Path, model: PathLike[str] | None) -> Facts:
    """Measured, and beside the model if it is known: errors, and the code of its kernels."""
    from tvmcnn.report.facts import collect

    verdict, code = None, {}
    with bar() as progress:
        if model is not None:
            from tvmcnn.check.verify import verify_program
            from tvmcnn.codegen.listing import texts
            from tvmcnn.reweighting import rebuilt

            try:
                program = load(library, options.threads).programs[0]
                progress("comparing with NumPy", 0, 0)
                verdict = verify_program(program, library, model, 0)
                progress("comparing with NumPy", 1, 1)
            except ArtifactError:  # this machine cannot run it, which the facts say
                pass
            if options.html is not None:
                try:
                    laid_out, machine = rebuilt(library, model)
                    code = texts(laid_out, machine, progress)
                except (ArtifactError, ModelError) as error:
                    reporter(options)(f"the code is not shown: {error}")
        return collect(
            library, threads=options.threads, seconds=options.seconds, verdict=verdict, code=code, progress=progress
        )


def _code(library: Path, model: PathLike[str] | None, kernel: str, forms: Sequence[str]) -> dict[str, str]:
    """One kernel's code in these forms."""
    from tvmcnn.codegen import listing as shown
    from tvmcnn.reweighting import rebuilt

    if model is None:
        raise InputError("--code needs the model of the library: name it with --model MODEL.onnx")
    program, machine = rebuilt(library, model)
    found = shown.texts(program, machine, kernel=kernel).get(kernel)
    if found is None:
        known = ", ".join(step.choice.name for step in program.steps if not step.choice.is_view)
        raise InputError(f"{library.stem} has no kernel '{kernel}' with code; it has {known}")
    words = dict(zip(FORMS, (shown.EXPRESSION, shown.SCHEDULE, shown.LLVM, shown.ASSEMBLY), strict=True))
    return {words[form]: found[words[form]] for form in forms}


def _joined(texts: Mapping[str, str]) -> str:
    """Texts one behind the other, each under a line that names it where there are several."""
    parts = [f"---- {form} ----\n" * (len(texts) > 1) + text for form, text in texts.items()]
    return "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts)


def _picture(options: argparse.Namespace, net: Runner) -> None:
    """What each layer makes of an image."""
    from tvmcnn.report.maps import draw, layers

    if len(net.inputs) != 1 or len(net.inputs[0].shape) != 4:
        taken = ", ".join(f"{info.name} {dims(info.shape)}" for info in net.inputs) or "nothing"
        raise InputError(f"--image is for networks that take images and nothing else; {net.name} takes {taken}")
    feeds = read_feeds(net, options.image, options)
    (array,) = feeds.values()
    scores = net.run(None, feeds)[0]
    answer: list[tuple[str, float]] = []
    if scores.size == max(scores.shape, default=0) > 1:  # a score for each class
        best: list[dict[str, Any]] = best_of(scores.reshape(1, -1), 5, read_labels(options.labels))[0]
        answer = [(entry["label"], entry["score"]) for entry in best]
    draw(array[0], layers(net, array), answer, options.activations, f"{net.name}: {options.image.name}")
