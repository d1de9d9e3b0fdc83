"""Layouts of images: what is around them, and who may read them as they are."""

from __future__ import annotations

import numpy as np
import pytest

from tvmcnn.network import PLAIN, Choice, Kernel, Layout, Node, Tensor


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("fill", [0, 113, -7])
def test_halos_hold_the_fill(block: int, fill: int) -> None:
    layout = Layout(block, (1, 2, 3, 0), fill=fill)
    x = np.arange(2 * 19 * 5 * 7).reshape(2, 19, 5, 7).astype(np.int16)
    stored = layout.pack(x)
    assert stored.shape == layout.physical(x.shape)
    np.testing.assert_array_equal(layout.unpack(stored, x.shape), x)
    for border in (stored[:, :, :1], stored[:, :, 6:], stored[:, :, :, :2]):
        around = np.moveaxis(border, 2, 0) if block == 1 else border
        assert set(np.unique(around)) <= {fill, 0}
        assert (around == fill).sum() >= around.size * 19 // (-(-19 // block) * block)


def test_what_covers_what() -> None:
    """A larger halo of the same fill does; what no halo holds is of no account."""
    wide, narrow = Layout(16, (1, 1, 2, 1), fill=9), Layout(16, (1, 1, 1, 1), fill=9)
    assert wide.covers(narrow) and not narrow.covers(wide)
    assert not wide.covers(Layout(16, (1, 1, 1, 1), fill=8))
    assert wide.covers(Layout(16)) and wide.covers(Layout(16, fill=8))
    assert Layout(16).like(Layout(16, fill=8)) and not narrow.like(Layout(16, (1, 1, 1, 1)))
    assert str(narrow) == "NCHW16c+halo1,1,1,1=9" and str(Layout(16, fill=9)) == "NCHW16c"
    assert PLAIN.covers(Layout(fill=3))


def test_types_that_have_layouts() -> None:
    """Floats of 32 bits and integers of 8; others are plain."""
    for dtype, known in (("float32", True), ("uint8", True), ("int8", True), ("int16", False), ("float16", False)):
        tensor = Tensor("x", (1, 16, 3, 5), dtype)
        kernel = Kernel("k", (Node("Relu", "r", ("x",), "y"),), (tensor,), Tensor("y", tensor.shape, dtype))
        given = (kernel, "elementwise", (tensor,), (Layout(16),), Layout(16), "memory")
        if known:
            assert Choice(*given).writes.block == 16
            continue
        with pytest.raises(ValueError, match=f"'x' is {dtype} in NCHW16c: only float32 and integers of 8 bits"):
            Choice(*given)
