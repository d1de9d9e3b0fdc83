"""The models and images that these tests read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from quantize_models import draw_images, old_network


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old network and its images."""
    folder = tmp_path_factory.mktemp("shelf")
    onnx.save(old_network(), folder / "old.onnx")
    draw_images(folder / "images")
    (folder / "few").mkdir()
    (folder / "few" / "one.png").write_bytes((folder / "images" / "cat" / "0.png").read_bytes())
    (folder / "none").mkdir()
    (folder / "none" / "notes.txt").write_text("no image")
    np.save(folder / "double.npy", np.zeros((1, 3, 17, 13)))
    np.save(folder / "none.npy", np.zeros((2, 3, 4, 5), np.float32))
    return folder
