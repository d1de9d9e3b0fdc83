"""ResNet-18, VGG-16 and U-Net."""

from __future__ import annotations

from models.builder import Builder
from models.topology import Size, Topology, extents

CLASSES = 1000


def resnet18(size: Size) -> Topology:
    """He et al., Deep Residual Learning for Image Recognition, 2015, table 1, 18-layer."""
    b = Builder("resnet18", size)
    x = b.max_pool(b.relu(b.batch_norm(b.conv(b.input, 64, 7, 2))), 3, 2, 1)
    for maps, blocks, stride in ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)):
        for block in range(blocks):
            x = _residual(b, x, maps, stride if block == 0 else 1)
    return b.topology(b.dense(b.flatten(b.global_average_pool(x)), CLASSES))


def _residual(b: Builder, x: str, maps: int, stride: int) -> str:
    """Two 3 x 3 convolutions around which the input passes, by a 1 x 1 convolution where its shape changes (B)."""
    y = b.relu(b.batch_norm(b.conv(x, maps, 3, stride)))
    y = b.batch_norm(b.conv(y, maps, 3))
    if b.shapes[x] != b.shapes[y]:
        x = b.batch_norm(b.conv(x, maps, 1, stride))
    return b.relu(b.add(y, x))


def vgg16(size: Size) -> Topology:
    """Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, table 1, column D. No batch normalisation."""
    b = Builder("vgg16", size)
    x = b.input
    for maps, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            x = b.relu(b.conv(x, maps, 3, bias=True))
        x = b.max_pool(x, 2, 2)
    x = b.flatten(x)
    for features in (4096, 4096):
        x = b.relu(b.dense(x, features))
    return b.topology(b.dense(x, CLASSES))


def unet(size: Size) -> Topology:
    """Ronneberger et al., U-Net, 2015, figure 1, two classes a pixel.

    As it is used today, it departs from the paper in two points: the 3 x 3 convolutions are padded, so that the output
    has the size of the input and skips need no cropping, and batch normalisation follows each of them.
    """
    if any(extent % 16 for extent in extents(size)):
        raise ValueError("four poolings need a multiple of 16")
    b = Builder("unet", size)
    x, skips = b.input, []
    for maps in (64, 128, 256, 512):
        skips.append(_double_conv(b, x, maps))
        x = b.max_pool(skips[-1], 2, 2)
    x = _double_conv(b, x, 1024)
    for maps in (512, 256, 128, 64):
        x = b.concat(skips.pop(), b.conv_transpose(x, maps, 2))
        x = _double_conv(b, x, maps)
    return b.topology(b.conv(x, 2, 1, bias=True))


def _double_conv(b: Builder, x: str, maps: int) -> str:
    for _ in range(2):
        x = b.relu(b.batch_norm(b.conv(x, maps, 3)))
    return x
