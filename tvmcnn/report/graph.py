"""The network as a drawing: a box a kernel with the ONNX nodes that run in it, an arrow a tensor, from top to bottom.

igraph places the boxes in layers so that few arrows cross (Sugiyama, Tagawa and Toda, 1981); the drawing is SVG, whose
boxes are links to the kernels' rows on the page.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from tvmcnn.algorithms import Makes
from tvmcnn.report.facts import Facts, KernelFact
from tvmcnn.report.quantities import number

LETTER = 6.6  # pixels: the width of one in 11 px monospace
LINE = 16.0
PADDING = 8.0
GAP, RISE = 28.0, 30.0  # pixels between boxes of a layer, and between layers
MARGIN = 12.0
LONGEST = 26  # letters of a name


@dataclass
class Box:
    """A kernel, an input or an output: lines of text, the first a title; where its centre and top are."""

    lines: list[str]
    link: str = ""
    kind: str = "kernel"
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        """Pixels."""
        return max(len(line) for line in self.lines) * LETTER + 2 * PADDING

    @property
    def height(self) -> float:
        """Pixels."""
        return len(self.lines) * LINE + PADDING


def drawing(facts: Facts) -> str:
    """The SVG element."""
    boxes, edges = _boxes(facts)
    routes = _place(boxes, edges)
    width = max(*(box.x + box.width / 2 for box in boxes), *(x for route in routes for x, _ in route), 0.0) + MARGIN
    height = max(box.y + box.height for box in boxes) + MARGIN
    lines = [_edge(boxes[a], boxes[b], label, bends) for (a, b, label), bends in zip(edges, routes, strict=True)]
    return (
        f'<svg class="graph" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        f' role="img" aria-label="{len(facts.kernels)} kernels of {_escaped(facts.name)} and the tensors between them">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z"/></marker></defs>'
        f"{''.join(lines)}{''.join(map(_drawn, boxes))}</svg>"
    )


def _boxes(facts: Facts) -> tuple[list[Box], list[tuple[int, int, str]]]:
    """The boxes, and an edge (from, to, what flows) for each tensor that one reads of another."""
    made: dict[str, tuple[int, str]] = {}  # by tensor: the box that makes it, and its shape
    boxes: list[Box] = []
    for text in facts.inputs:
        name, _, shape = text.rsplit(" ", 2)
        made[name] = (len(boxes), shape)
        boxes.append(Box([_short(name), shape], kind="data"))
    edges: list[tuple[int, int, str]] = []
    for kernel in facts.kernels:
        for name in dict.fromkeys(kernel.reads):
            if name in made:
                edges.append((made[name][0], len(boxes), made[name][1]))
        made[kernel.writes] = (len(boxes), kernel.shape)
        boxes.append(
            Box(
                _lines(kernel),
                f"#{kernel.name}",
                "view" if kernel.makes is Makes.NOTHING else "kernel",
            )
        )
    for text in facts.outputs:
        name, _, shape = text.rsplit(" ", 2)
        if name in made:
            edges.append((made[name][0], len(boxes), shape))
            boxes.append(Box([_short(name), shape], kind="data"))
    return boxes, edges


def _lines(kernel: KernelFact) -> list[str]:
    """k1_conv 12.3 µs; then each ONNX node with its operator."""
    spent = f"  {number(kernel.microseconds)} µs" if kernel.microseconds is not None else ""
    nodes = [
        f"{op} {_short(name)}".rstrip() if name != op else op for op, name in zip(kernel.ops, kernel.nodes, strict=True)
    ]
    return [f"{kernel.name}{spent}", *nodes]


def _place(boxes: Sequence[Box], edges: Sequence[tuple[int, int, str]]) -> list[list[tuple[float, float]]]:
    """Give the boxes their places; returns the bends of each edge, where it passes between other boxes."""
    import igraph

    graph = igraph.Graph(n=len(boxes), edges=[(a, b) for a, b, _ in edges], directed=True)
    layout = graph.layout_sugiyama(layers=_layers(len(boxes), edges), hgap=1, vgap=1, maxiter=200)
    rows: dict[int, list[Box]] = {}
    for box, (_, y) in zip(boxes, layout, strict=True):
        rows.setdefault(round(y), []).append(box)
    heights = {row: max(box.height for box in members) for row, members in rows.items()}
    tops, top = {}, MARGIN
    for row in sorted(rows):
        tops[row] = top
        top += heights[row] + RISE
    bends = [[(x, round(y)) for x, y in route or ()] for route in layout.edge_routing or [()] * len(edges)]
    across = [x for x, _ in (*layout, *(place for route in bends for place in route))]
    step = max(box.width for box in boxes) + GAP

    left = float(min(across))

    def column(x: float) -> float:
        return MARGIN + step / 2 + (x - left) * step

    for box, (x, y) in zip(boxes, layout, strict=True):
        box.x, box.y = column(x), tops[round(y)] + (heights[round(y)] - box.height) / 2
    return [
        [place for x, row in route for place in ((column(x), tops[row]), (column(x), tops[row] + heights[row]))]
        for route in bends
    ]


def _layers(count: int, edges: Sequence[tuple[int, int, str]]) -> list[int]:
    """One more than the deepest of those that a box reads: kernels come in the order that they run."""
    depth = [0] * count
    for a, b, _ in edges:
        depth[b] = max(depth[b], depth[a] + 1)
    return depth


def _edge(a: Box, b: Box, label: str, bends: Sequence[tuple[float, float]]) -> str:
    """A smooth line through the bends, vertical at each."""
    places = [(a.x, a.y + a.height), *bends, (b.x, b.y - 2)]
    path = f"M{places[0][0]:.0f} {places[0][1]:.0f}"
    for (x, y), (u, v) in itertools.pairwise(places):
        middle = (y + v) / 2
        path += f"L{u:.0f} {v:.0f}" if abs(x - u) < 1 else f"C{x:.0f} {middle:.0f} {u:.0f} {middle:.0f} {u:.0f} {v:.0f}"
    return f'<path class="edge" d="{path}" marker-end="url(#tip)"><title>{_escaped(label)}</title></path>'


def _drawn(box: Box) -> str:
    left, title, *rest = box.x - box.width / 2, *box.lines
    text = f'<text x="{box.x:.1f}" y="{box.y + LINE - 2:.1f}" class="title">{_escaped(title)}</text>'
    for row, line in enumerate(rest, 2):
        text += f'<text x="{box.x:.1f}" y="{box.y + row * LINE - 2:.1f}">{_escaped(line)}</text>'
    shape = (
        f'<rect x="{left:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
        f' rx="{box.height / 2 if box.kind == "data" else 4:.0f}"/>'
    )
    inner = f'<g class="{box.kind}">{shape}{text}</g>'
    return f'<a href="{_escaped(box.link)}">{inner}</a>' if box.link else inner


def _short(name: str) -> str:
    """The end of a long name, which tells it from the others."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
