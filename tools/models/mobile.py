"""The MobileNets and EfficientNet-B0: depthwise convolutions, inverted residuals, squeeze and excitation."""

from __future__ import annotations

from collections.abc import Callable

from models.builder import Builder
from models.networks import CLASSES
from models.topology import Size, Topology

Activation = Callable[[str], str]

# Swish passes half of a small value and all of a large one, and a gate may be all or nothing: weights that know only
# the one would make a network chaotic for inputs that lead into the other. So the first sees values of both kinds, and
# the second opens about halfway.
WIDE = 4.0  # root mean square of what goes into a Swish, hard or not
NARROW = 0.15  # and into a gate


def mobilenet_v1(size: Size) -> Topology:
    """Howard et al., MobileNets, 2017, table 1.

    Its last depthwise layer is printed with stride 2; the shapes beside it, and every implementation, have stride 1.
    """
    b = Builder("mobilenet_v1", size)
    x = b.relu(b.batch_norm(b.conv(b.input, 32, 3, 2)))
    layers = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
    for maps, stride in layers:
        x = b.relu(b.batch_norm(b.depthwise(x, 3, stride)))
        x = b.relu(b.batch_norm(b.conv(x, maps, 1)))
    return b.topology(b.dense(b.flatten(b.global_average_pool(x)), CLASSES))


def mobilenet_v2(size: Size) -> Topology:
    """Sandler et al., MobileNetV2, 2018, table 2."""
    b = Builder("mobilenet_v2", size)
    x = b.relu6(b.batch_norm(b.conv(b.input, 32, 3, 2)))
    table = (  # expansion t, maps c, repeats n, stride s
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for expansion, maps, repeats, stride in table:
        for repeat in range(repeats):
            hidden = expansion * b.shapes[x][0]
            x = _inverted_residual(b, x, 3, hidden, maps, stride if repeat == 0 else 1, b.relu6)
    x = b.relu6(b.batch_norm(b.conv(x, 1280, 1)))
    return b.topology(b.dense(b.flatten(b.global_average_pool(x)), CLASSES))


def mobilenet_v3_large(size: Size) -> Topology:
    """Howard et al., Searching for MobileNetV3, 2019, table 1; the last two layers as dense ones, after the pool."""
    b = Builder("mobilenet_v3_large", size)
    x = b.hard_swish(b.batch_norm(b.conv(b.input, 16, 3, 2), 1e-3, WIDE))
    re, hs = b.relu, b.hard_swish
    table = (  # kernel, expanded size, maps, squeeze and excitation, nonlinearity, stride
        (3, 16, 16, False, re, 1),
        (3, 64, 24, False, re, 2),
        (3, 72, 24, False, re, 1),
        (5, 72, 40, True, re, 2),
        (5, 120, 40, True, re, 1),
        (5, 120, 40, True, re, 1),
        (3, 240, 80, False, hs, 2),
        (3, 200, 80, False, hs, 1),
        (3, 184, 80, False, hs, 1),
        (3, 184, 80, False, hs, 1),
        (3, 480, 112, True, hs, 1),
        (3, 672, 112, True, hs, 1),
        (5, 672, 160, True, hs, 2),
        (5, 960, 160, True, hs, 1),
        (5, 960, 160, True, hs, 1),
    )
    for kernel, hidden, maps, squeezed, activation, stride in table:
        # A quarter of the expanded size, in steps of 8 and never 10 % below it, as the authors' code has it.
        squeeze = _in_steps_of_8(hidden / 4) if squeezed else 0
        gate = (squeeze, b.relu, b.hard_sigmoid)
        x = _inverted_residual(b, x, kernel, hidden, maps, stride, activation, gate, 1e-3)
    x = b.hard_swish(b.batch_norm(b.conv(x, 960, 1), 1e-3, WIDE))
    x = b.hard_swish(b.dense(b.flatten(b.global_average_pool(x)), 1280))
    return b.topology(b.dense(x, CLASSES))


def efficientnet_b0(size: Size) -> Topology:
    """Tan and Le, EfficientNet, 2019, table 1; Swish as PyTorch exports it, Sigmoid and Mul."""
    b = Builder("efficientnet_b0", size)
    x = b.swish(b.batch_norm(b.conv(b.input, 32, 3, 2), 1e-3, WIDE))
    table = (  # expansion, kernel, maps, layers, stride
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    )
    for expansion, kernel, maps, layers, stride in table:
        for layer in range(layers):
            channels = b.shapes[x][0]
            gate = (channels // 4, b.swish, b.sigmoid)  # squeezed to a quarter of the block's input
            step = stride if layer == 0 else 1
            x = _inverted_residual(b, x, kernel, expansion * channels, maps, step, b.swish, gate, 1e-3)
    x = b.swish(b.batch_norm(b.conv(x, 1280, 1), 1e-3, WIDE))
    return b.topology(b.dense(b.flatten(b.global_average_pool(x)), CLASSES))


def _inverted_residual(
    b: Builder,
    x: str,
    kernel: int,
    hidden: int,
    maps: int,
    stride: int,
    activation: Activation,
    gate: tuple[int, Activation, Activation] | None = None,
    epsilon: float = 1e-5,
) -> str:
    """Expand to `hidden` channels, filter each, gate them, project to `maps` without an activation, add the input.

    There is no expansion to the number of channels that the input has already, no gate that squeezes to 0 channels,
    and no addition where the shapes differ.
    """
    y = x
    size = WIDE if activation in (b.swish, b.hard_swish) else 1.0
    if hidden != b.shapes[x][0]:
        y = activation(b.batch_norm(b.conv(y, hidden, 1), epsilon, size))
    y = activation(b.batch_norm(b.depthwise(y, kernel, stride), epsilon, size))
    if gate is not None and gate[0]:
        y = _squeeze_and_excite(b, y, *gate)
    y = b.batch_norm(b.conv(y, maps, 1), epsilon)
    return b.add(y, x) if b.shapes[x] == b.shapes[y] else y


def _squeeze_and_excite(b: Builder, x: str, squeeze: int, activation: Activation, gate: Activation) -> str:
    """Hu et al., Squeeze-and-Excitation Networks, 2017: each channel times a gate that sees the means of all."""
    y = activation(b.conv(b.global_average_pool(x), squeeze, 1, bias=True, size=WIDE))
    return b.mul(x, gate(b.conv(y, b.shapes[x][0], 1, bias=True, size=NARROW)))


def _in_steps_of_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
