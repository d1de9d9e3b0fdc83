"""Page: the facts of a library as one HTML file, which needs nothing else to be looked at.

A model is data, also to a browser: what it names is escaped, and the page's own policy lets no request leave it.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

from tvmcnn.algorithms import Makes
from tvmcnn.artifact.container import Manifest
from tvmcnn.artifact.manifest import tensors_of
from tvmcnn.check.verify import HISTOGRAM, Verdict
from tvmcnn.report import graph, plots
from tvmcnn.report.facts import Facts
from tvmcnn.report.quantities import flop, number, size, spent


def report_page(facts: Facts) -> str:
    """The page."""
    texts: dict[str, str] = {}
    code: dict[str, list[tuple[str, str]]] = {}
    keys: dict[str, str] = {}  # by text: kernels that differ in names only share theirs
    for kernel in facts.kernels:
        code[kernel.name] = []
        for kind, text in kernel.code.items():
            key = keys.setdefault(text, f"t{len(keys)}")
            texts.setdefault(key, _packed(text))
            code[kernel.name].append((kind, key))
    errors = {error.tensor: error for kernel in facts.kernels for error in kernel.errors}.values()
    return rendered(
        "report.html",
        facts=facts,
        nodes=len({name for kernel in facts.kernels for name in kernel.nodes if kernel.makes is not Makes.COPY}),
        errors=list(errors),
        wrong=sum(not error.passed for error in errors),
        drawing=_safe(graph.drawing(facts)),
        roofline=_safe(plots.roofline(facts)),
        arena=_safe(plots.arena(facts)),
        code=code,
        texts=texts,
    )


def verify_page(name: str, verdict: Verdict, manifest: Manifest, bisection: str = "") -> str:
    """The errors of each tensor of a library, with their histograms; `bisection` in words."""
    kernels = {
        tensor["name"]: f"{kernel['name']} {'+'.join(kernel['ops'])}"
        for kernel in reversed(manifest["kernels"])  # the one that makes it, not one that copies it
        for tensor in tensors_of(manifest, kernel)
    }
    known = {error.name for error in verdict.tensors}
    outputs = [error for error in verdict.outputs if error.name not in known or not error.passed]
    return rendered(
        "verify.html",
        name=name,
        verdict=verdict,
        first=verdict.first_wrong,
        errors=[*verdict.tensors, *outputs],
        kernels=kernels,
        bisection=bisection,
        edge=int(np.searchsorted(HISTOGRAM, 0.0)),
    )


def rendered(template: str, **values: Any) -> str:
    """A template of ours with these values, escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tvmcnn.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"time": spent, "size": size, "flop": flop, "number": number}
    return environment.get_template(template).render(**values)


def _safe(element: str) -> Any:
    """An element that is ours, with everything of the model's in it escaped already."""
    from markupsafe import Markup

    return Markup(element)


def _packed(text: str) -> str:
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()
