"""The plan of the arena: nobody shares memory while both are alive, and no byte is wasted where that can be had."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tvmcnn import arena
from tvmcnn.arena import Block, lower_bound, plan


def drawn(seed: int, count: int = 60) -> list[Block]:
    """Blocks as networks have them: most live for a few steps, some for long."""
    draw, blocks = random.Random(seed), []
    for step in range(count):
        life = draw.choice((1, 1, 1, 2, 5, 25))
        blocks.append(Block(64 * draw.randrange(1, 400), step, step + life))
    return blocks


def overlaps(blocks: list[Block]) -> bool:
    return any(
        a.meets(b) and a.offset < b.offset + b.size and b.offset < a.offset + a.size
        for i, a in enumerate(blocks)
        for b in blocks[:i]
    )


@pytest.mark.parametrize("seed", range(20))
def test_nobody_shares_memory_while_both_live(seed: int) -> None:
    blocks = drawn(seed)
    peak = plan(blocks)
    assert not overlaps(blocks)
    assert peak == max(block.offset + block.size for block in blocks) >= lower_bound(blocks)
    assert peak <= 1.1 * lower_bound(blocks)


def test_the_same_plan_each_time() -> None:
    one, other = drawn(3), drawn(3)
    assert plan(one) == plan(other)
    assert one == other


def test_other_orders_are_tried() -> None:
    """Largest first leaves a hole under the third block here."""
    blocks = next(
        blocks for seed in range(99) if (blocks := drawn(seed, 12)) and first_fit(blocks) > lower_bound(blocks)
    )
    assert plan(blocks) < first_fit(blocks)


def first_fit(blocks: list[Block]) -> int:
    copies = [replace(block) for block in blocks]
    offsets = arena._first_fit(copies, [float(block.size) for block in copies])
    return arena._peak(copies, offsets)


def test_lower_bound_counts_what_lives_together() -> None:
    assert lower_bound([Block(3, 0, 1), Block(5, 1, 2), Block(7, 2, 2)]) == 12
    assert lower_bound([]) == plan([]) == 0


def test_a_plan_that_forgets_lifetimes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "meets", lambda self, other: self.first == other.first)
    blocks = drawn(1)
    plan(blocks)
    monkeypatch.undo()
    assert overlaps(blocks)
