"""Well-known CNNs as ONNX models with seeded weights: what the compiler is checked on where no trained file is at hand.

    model = make("mobilenet_v2", size=64)

`networks.py` and `mobile.py` write each network as its paper's table, in the words of `builder.py`; `light.py` reads
nine more from the onnx wheel; `weights.py` draws the weights of all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from models import light, mobile, networks
from models.topology import Size, Topology, extents
from models.weights import fill

Build = Callable[[Size], Topology]

BUILT: dict[str, Build] = {
    "resnet18": networks.resnet18,
    "vgg16": networks.vgg16,
    "mobilenet_v1": mobile.mobilenet_v1,
    "mobilenet_v2": mobile.mobilenet_v2,
    "mobilenet_v3_large": mobile.mobilenet_v3_large,
    "efficientnet_b0": mobile.efficientnet_b0,
    "unet": networks.unet,
}
NETWORKS: dict[str, Build] = BUILT | light.NETWORKS
SIZE = 224  # pixels of the square input that the papers use, U-Net's aside


def make(name: str, size: Size = SIZE, seed: int = 0) -> onnx.ModelProto:
    """The network `name` with a symbolic batch N, an input of N x 3 x `size`, and weights drawn from `seed`.

    The same arguments give the same bytes. Raises ValueError for an unknown name, or a size too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network '{name}'; there are {', '.join(NETWORKS)}")
    rows, columns = extents(size)
    try:
        return fill(NETWORKS[name](size), seed)
    except ValueError as error:
        raise ValueError(f"{name} cannot be built for {rows} x {columns}: {error}") from error
