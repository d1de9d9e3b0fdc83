"""Maps: what each filter sees. The picture of one image's way through a network, layer by layer, with the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmcnn.algorithms import ALGORITHMS, Makes
from tvmcnn.artifact.manifest import tensors_of
from tvmcnn.errors import InputError
from tvmcnn.files import PICTURES, check_place, written_whole
from tvmcnn.network import Array, dims
from tvmcnn.report.filters import filters
from tvmcnn.run.runner import Runner

COLUMNS = 16  # maps of a layer that are shown
TALLEST = 256  # pixels of a tile: a column of samples is squeezed
MOST_PIXELS = 60_000  # of the picture's height: matplotlib draws fewer than 65,536
TILE, GAP = 64, 8  # pixels of one, and between two
WIDTH = 10.5  # inches
DEEPEST = 16  # input maps of filters that are shown: more would be specks
POOLS = ("MaxPool", "AveragePool")
INK = "#33383f"


@dataclass(frozen=True)
class Layer:
    """What a kernel makes: maps (C, H, W) or a vector (C,); its filters (C, depth, kH, kW), if they can be shown."""

    title: str
    values: Array
    filters: Array | None


def layers(net: Runner, *arrays: Any) -> list[Layer]:
    """The layers that a run on `arrays` goes through, image 0 of each.

    Raises InputError as `Runner.activations`.
    """
    shown, found = net.activations(*arrays), []
    for index, kernel in enumerate(net.manifest["kernels"]):
        if ALGORITHMS[kernel["algorithm"]].makes is not Makes.TENSOR:
            continue
        windowed = math.prod(kernel["attributes"].get("kernel_shape", (1,))) > 1
        weights = filters(net, index) if windowed and _depth(net, kernel) <= DEEPEST else None
        for tensor, ops in _layers_of(net, kernel):
            name, shape = tensor["name"], tuple(tensor["shape"])
            if len(shape) not in (2, 4) or name not in shown:
                continue
            values = shown[name][0]
            values = values.reshape(-1) if math.prod(values.shape[1:]) == 1 else values
            seen, weights = (weights if values.ndim == 3 else None), None  # they stand above the first maps
            found.append(Layer(f"{name}  {dims(shape)}  {' + '.join(ops)}", values.astype(np.float32), seen))
    return found


def _layers_of(net: Runner, kernel: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[str]]]:
    """The tensors of a kernel to be shown, with the operators that make each: Conv+Relu+MaxPool are two layers."""
    made = [tensor for tensor in tensors_of(net.manifest, kernel) if tensor not in kernel["hidden"]]
    ops = kernel["ops"]
    pool = next((place for place, op in enumerate(ops) if op in POOLS and place > 0), 0)
    before = [(kernel["hidden"][pool - 1], ops[:pool])] if pool else []
    return [*before, *((tensor, ops[pool:]) for tensor in made[:1])]


def _depth(net: Runner, kernel: Any) -> int:
    """Maps that one filter of a convolution reads."""
    shapes = {entry["name"]: entry["shape"] for entry in net.manifest["inputs"]}
    shapes |= {each["output"]["name"]: each["output"]["shape"] for each in net.manifest["kernels"]}
    return int(shapes[kernel["reads"][0]][1] // kernel["attributes"].get("group", 1)) if kernel["reads"] else 1 << 30


def draw(image: Array, found: Sequence[Layer], answer: Sequence[tuple[str, float]], path: Path, title: str) -> None:
    """Write the picture of an image (C, H, W), its layers, and the best answers with their scores.

    Filters are blue where negative, white at 0, red where positive, and stand above the maps that they make. Raises
    ToolError as `check_place`, InputError for a network without layers to show.
    """
    check_place(path, PICTURES)
    if not found:
        raise InputError("there is no layer of maps or vectors to show")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    strips = [_titled(layer) for layer in found]
    heights = [1.5, *(WIDTH * strip.shape[0] / strip.shape[1] + 0.3 for _, strip in strips)]
    with pyplot.rc_context({"font.size": 8, "text.color": INK, "svg.hashsalt": "tvmcnn", "text.parse_math": False}):
        figure = pyplot.figure(figsize=(WIDTH + 0.4, sum(heights) + 0.6), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        _head(figure.add_subfigure(grid[0]), image, answer)
        for row, (text, strip) in enumerate(strips, 1):
            axes = figure.add_subplot(grid[row])
            axes.imshow(strip, interpolation="none", aspect="equal")
            axes.set_title(text, loc="left", fontsize=8)
            axes.set_anchor("W")
            axes.axis("off")
        fine = min(110, MOST_PIXELS / sum(heights))
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=fine, metadata=_undated(path))
        pyplot.close(figure)


def _undated(path: Path) -> dict[str, None]:
    return {} if path.suffix == ".png" else {"Date" if path.suffix == ".svg" else "CreationDate": None}


def _head(part: Any, image: Array, answer: Sequence[tuple[str, float]]) -> None:
    """The image, and bars for the answers."""
    left, right = part.subplots(1, 2, width_ratios=[1, 4])
    low, high = float(image.min()), float(image.max())
    shown = (image.transpose(1, 2, 0) - low) / (high - low or 1.0)
    left.imshow(shown[..., 0] if shown.shape[2] != 3 else shown, cmap="gray", interpolation="none")
    left.axis("off")
    if not answer:
        right.axis("off")
        return
    names, scores = [name for name, _ in answer], [score for _, score in answer]
    bars = right.barh(range(len(names)), scores, color=["#0072b2", *["#b9c4cd"] * (len(names) - 1)], height=0.7)
    right.bar_label(bars, fmt="%.4g", padding=3)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.margins(x=0.15)
    right.set_xticks([])
    right.tick_params(left=False)
    right.spines[:].set_visible(False)


def _titled(layer: Layer) -> tuple[str, Array]:
    """A title, and a picture (rows, columns, RGB) of always one width: filters above maps, or a vector."""
    if layer.values.ndim == 1:
        return layer.title, _vector(layer.values)
    count = min(COLUMNS, len(layer.values))
    more = f", the first {count}" if len(layer.values) > count else ""
    maps = _strip([*_coloured(layer.values[:count], "viridis", 0.0)])
    if layer.filters is None:
        return f"{layer.title}{more}", maps
    size = dims(layer.filters.shape[1:])
    above = _strip(_kernels(layer.filters[:count]))
    return f"{layer.title}{more}; above each map its filter, {size}", np.concatenate([above, maps])


def _kernels(weights: Array) -> list[Array]:
    """Each filter (depth, kH, kW) as a picture: in colours if it reads three maps, else its slices side by side."""
    if weights.shape[1] == 3:
        reach = float(np.abs(weights).max()) or 1.0
        return [each.transpose(1, 2, 0) / reach / 2 + 0.5 for each in weights]
    return [_mosaic([*_coloured(each, "RdBu_r", None, float(np.abs(weights).max()))]) for each in weights]


def _coloured(values: Array, colours: str, low: float | None, reach: float = 0.0) -> Array:
    """RGB of values (…, H, W), from `low` or their least if that is less to their largest, or from -reach to reach."""
    from matplotlib import colormaps

    finite = np.nan_to_num(values)
    bottom, top = (-reach, reach) if low is None else (min(low, float(finite.min())), float(finite.max()))
    return np.asarray(colormaps[colours]((finite - bottom) / (top - bottom or 1.0)))[..., :3]


def _mosaic(tiles: Sequence[Array]) -> Array:
    """Slices of a filter in a square of squares, a line between them."""
    columns = math.ceil(math.sqrt(len(tiles)))
    height, width, _ = tiles[0].shape
    rows = math.ceil(len(tiles) / columns)
    gap = 1 if len(tiles) > 1 else 0
    whole = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for place, tile in enumerate(tiles):
        y, x = (place // columns) * (height + gap), (place % columns) * (width + gap)
        whole[y : y + height, x : x + width] = tile
    return whole


def _strip(tiles: Sequence[Array]) -> Array:
    """Pictures side by side, each scaled to TILE columns, as wide as COLUMNS of them."""
    rows = min(TALLEST, max(1, round(TILE * tiles[0].shape[0] / tiles[0].shape[1])))
    whole = np.ones((rows + GAP, COLUMNS * (TILE + GAP), 3))
    for place, tile in enumerate(tiles):
        y = np.arange(rows) * tile.shape[0] // rows
        x = np.arange(TILE) * tile.shape[1] // TILE
        whole[:rows, place * (TILE + GAP) : place * (TILE + GAP) + TILE] = tile[y][:, x]
    return whole


def _vector(values: Array) -> Array:
    """A line of cells, as wide as COLUMNS pictures."""
    width = COLUMNS * (TILE + GAP)
    cells = _coloured(values[None], "viridis", 0.0)[0]
    return np.repeat(cells[np.arange(width) * len(cells) // width][None], TILE // 4, axis=0)
