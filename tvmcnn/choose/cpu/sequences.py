"""Sequences: operators whose steps follow one another, in time or along an axis."""

from __future__ import annotations

import dataclasses
import math

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.defaults import recurrent_config
from tvmcnn.choose.cpu.state import State
from tvmcnn.choose.shared import IN_ORDER, choice_of
from tvmcnn.configs import InOrderConfig
from tvmcnn.fuse import RECURRENT
from tvmcnn.network import ALIGNMENT, PLAIN, Choice, Kernel, round_up

WIDE_TILE, TILES = 64, 16  # columns of a tile whose steps are in order, where there are so many tiles
NUMBER, SELECTED = (
    4,
    5 * 8,
)  # bytes of a box that may be selected, its number; of one that is, corners and area in float64
WHOLE_ROW = 1 << 20  # columns at most
SCANNED = 8  # elements of a part, at least, for each index that it passes over
RECURRENT_STAGES = 4  # of a step, that are as large as the state: two states before it, and two after it


def runs_over_time(state: State, kernel: Kernel) -> bool:
    """True for a layer with a state that goes from time to time."""
    return kernel.anchor.op in RECURRENT


def goes_in_order(state: State, kernel: Kernel) -> bool:
    """True for an operator that reads what it has written."""
    return kernel.anchor.op in IN_ORDER


def over_time(state: State, kernel: Kernel) -> Choice:
    """Choose the tiles of an LSTM, GRU or RNN, whose states lie in the scratch."""
    config = recurrent_config(kernel, state.target)
    read = [state.plain(tensor) for tensor in kernel.inputs]
    choice = choice_of(kernel, "recurrent", read, PLAIN, "recurrent", (config, "default"))
    columns = round_up(kernel.output.shape[-1], config.width) * config.rows
    stages = RECURRENT_STAGES * round_up(columns * kernel.item_bytes, ALIGNMENT)
    return dataclasses.replace(choice, scratch_bytes=stages)


def in_order(state: State, kernel: Kernel) -> Choice:
    """Tiles of a few vectors; of one where there would be too few to share. A heap has one column. A ScatterND is cut
    into parts of its data, which is copied in runs, as many as may each read all indices.
    """
    node, shape = kernel.anchor, kernel.output.shape
    first, last = node["along"]
    outer, inner = math.prod(shape[:first]), math.prod(shape[last:])
    config = InOrderConfig(WIDE_TILE if outer * inner >= TILES * WIDE_TILE else BLOCK)
    if node.op == "TopK":
        config = InOrderConfig(1)
    if node.op == "ScatterND":
        indices = math.prod(state.network.shape(node.inputs[1]))
        parts = min(TILES, math.prod(shape[:last]), kernel.output.size // (SCANNED * max(1, indices)))
        config = InOrderConfig(min(max(1, inner), WHOLE_ROW), max(1, parts))
    read = [state.plain(tensor) for tensor in kernel.inputs]
    choice = choice_of(kernel, "in_order", read, PLAIN, "in_order", (config, "default"))
    if node.op == "NonMaxSuppression":
        listed, kept = NUMBER * state.network.shape(node.inputs[1])[-1], SELECTED * round_up(node["most"], BLOCK)
        return dataclasses.replace(choice, scratch_bytes=round_up(listed, ALIGNMENT) + round_up(kept, ALIGNMENT))
    return choice
