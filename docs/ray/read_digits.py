"""Read a folder of images of digits with a worker on each CPU but one, by Ray Data.

tvmcnn compile lenet5.onnx -o lenet5.so --batch 1,64
python docs/ray/read_digits.py lenet5.so digits/ answers/

Ray reads the images, shares them out, starts a worker again that dies, and repeats what that one had not finished. A
worker has one thread: Ray fills the machine with workers.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray

import tvmcnn

MEAN, STD = 0.1001, 0.2753  # the model's own normalisation, which `tvmcnn inspect lenet5.so` shows


class Reader:
    """A worker: it loads the library once, or is told that the file is another than the one that was meant."""

    def __init__(self, net: tvmcnn.Runner) -> None:
        self.net = net  # pickled: its path and hash

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of images of shape (n, 32, 32), in grey levels, becomes paths and digits."""
        x = (batch["image"].astype(np.float32)[:, None] / 255 - MEAN) / STD
        return {"path": batch["path"], "digit": self.net(x.astype(np.float32)).argmax(axis=1)}


def read(library: str, folder: str, workers: int, reader: type[Reader] = Reader) -> ray.data.Dataset:
    """One row an image: its path and its digit."""
    images = ray.data.read_images(folder, size=(32, 32), mode="L", include_paths=True)
    net = tvmcnn.load(library, threads=1)
    return images.map_batches(reader, fn_constructor_args=(net,), batch_size=64, concurrency=workers)


if __name__ == "__main__":
    ray.init()
    cpus = int(ray.cluster_resources()["CPU"])
    read(sys.argv[1], sys.argv[2], max(1, cpus - 1)).write_csv(sys.argv[3])  # reading the images takes a CPU too
