"""Batch inference by Ray Data on a local cluster, as docs/ray shows it; a worker is killed in the middle."""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data import DOCS
from helpers import GUARD
from PIL import Image

import tvmcnn
from tvmcnn.demo import MODEL
from tvmcnn.digits import Normalisation

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray.data", reason="ray is not installed: pip install 'tvmcnn[ray]'")

PROGRAM = DOCS / "ray" / "read_digits.py"
COUNT = 1000
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tvmcnn.compile(MODEL, output=tmp_path_factory.mktemp("ray") / "lenet5.so", batch=[1, 32], verify=False).path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Array]:
    """A folder of drawn images, and the images."""
    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(3).integers(0, 256, (COUNT, 32, 32), np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:04}.png")
    return folder, pixels


def digits(library: Path, pixels: Array) -> list[int]:
    """What one runner says of them all."""
    scores = tvmcnn.load(library)(Normalisation(0.1001, 0.2753).apply(pixels))
    return [int(digit) for digit in scores.argmax(axis=1)]


def test_program_of_the_docs(library: Path, images: tuple[Path, Array], tmp_path: Path) -> None:
    folder, pixels = images
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    words = [sys.executable, str(PROGRAM), str(library), str(folder), str(tmp_path / "answers")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=GUARD)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [row for path in (tmp_path / "answers").iterdir() for row in csv.DictReader(path.open())]
    assert [int(row["digit"]) for row in sorted(rows, key=lambda row: row["path"])] == digits(library, pixels)


def test_a_killed_worker_loses_no_image(
    library: Path, images: tuple[Path, Array], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one killed in its second batch: every image once, and as one runner reads it."""
    monkeypatch.setenv("PYTHONPATH", str(PROGRAM.parents[2]))
    specification = importlib.util.spec_from_file_location("read_digits", PROGRAM)
    assert specification is not None and specification.loader is not None
    program = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(program)
    notes = tmp_path / "notes"
    notes.mkdir()

    class Slow(program.Reader):  # type: ignore[misc, name-defined]
        """Leaves a note with its process's number, and is killed at its second batch if it is the first to have one."""

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            found = super().__call__(batch)
            note = notes / str(os.getpid())
            if note.exists():
                try:
                    (notes / "killed").touch(exist_ok=False)
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            note.touch()
            time.sleep(0.1)  # so that both have work
            return found

    ray.DataContext.get_current().enable_progress_bars = False
    import ray as cluster

    cluster.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        folder, pixels = images
        rows = program.read(str(library), str(folder), 2, Slow).take_all()
    finally:
        cluster.shutdown()
    assert (notes / "killed").exists()
    assert len({note.name for note in notes.iterdir()} - {"killed"}) >= 3, (
        "two workers, and one in the killed one's place"
    )
    names = [Path(row["path"]).name for row in rows]
    assert len(names) == COUNT, "none lost, none twice"
    assert sorted(names) == [f"{index:04}.png" for index in range(COUNT)]
    assert [row["digit"] for row in sorted(rows, key=lambda row: row["path"])] == digits(library, pixels)
