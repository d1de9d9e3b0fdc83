"""Defaults: the config that a rule gets where neither the kernel's record nor a similar kernel's fits, see
`State.tuned`. Computed from shapes, registers and caches.
"""

from __future__ import annotations

import itertools
import math

from tvmcnn.blocks import BLOCK, channels_together, groups_together
from tvmcnn.configs import (
    ColumnsConfig,
    DenseConfig,
    DirectConfig,
    FewMapsConfig,
    FilteringConfig,
    ImagesConfig,
    MatmulConfig,
    PixelsConfig,
    RecurrentConfig,
    RowsConfig,
    StreamedConfig,
    WinogradConfig,
)
from tvmcnn.fuse import multiply_accumulates, window_size
from tvmcnn.network import FLOAT32, Kernel, Network, divisors, round_up
from tvmcnn.targets import Target
from tvmcnn.winograd import grid, tiles_for

LINE_ELEMENTS = 16  # elements: planes of tiles are an odd number of them apart, see schedule/x86/winograd.py
# Bytes a thread. With all 49 tiles of 28 x 28 pixels of 512 maps at once, 5.5 MB, weights are read once: 6.1 ms, where
# 7 tiles at a time take 10.4.
MAX_SCRATCH = 8 << 20
ITEM = 4  # bytes of an element of Winograd's transforms, which are for float32 alone
L2_RATE = 32  # bytes a cycle
MAX_ROWS, MAX_BLOCKS = 7, 4  # of a register tile
WIDE, MOST_TAPS = 5, 32  # taps of a row of filters that are in one loop body, to share what pixels read,
PIXELS_OF_A_ROW = 8  # and at most so many pixels
MOST_PIXELS = 32  # of a register tile: as many as registers
FROM_L2 = 0.2  # cycles that a line from L2 costs beside FMAs
PACKED_ROWS = 32  # of a product, from which on its columns are packed for all of them
MAX_COLUMNS = 512  # of a row of sums that stays in L1


def direct_config(kernel: Kernel, maps: int, depth: int, target: Target) -> DirectConfig:
    """The tile that is estimated to be fastest."""
    taps, stride = kernel.anchor["kernel_shape"][1], kernel.anchor["strides"][1]
    if depth == 0 and WIDE <= taps <= MOST_TAPS and stride == 1 and kernel.output.shape[3] > 1:
        return _row_of_pixels(kernel)
    v, r, c = direct_tiles(kernel, maps, depth, target)[0]
    # The kernel's column outermost where LLVM may unroll the loop over channels: it would keep the broadcasts that
    # neighbouring pixels share in registers until accumulators spill (LeNet-5's second layer: 2.29 against 3.36 µs).
    unrolled = depth % 4 == 0 and depth > 0
    order, unroll = ("rb rh rw rc", 4) if unrolled else ("rw rb rh rc", 1)
    return DirectConfig(v, r, c, order, unroll, unrolled and prefetches(kernel, target), not divides(kernel, r, c))


def _row_of_pixels(kernel: Kernel) -> DirectConfig:
    """A few pixels of a row, with all taps of a row of the filter in one loop body: 7 pixels by 7 taps read 13 pixels
    for 49 FMAs, where each tap alone reads 7 for 7.

    (96 maps of 56 x 56 by 7 x 7: 98 to 112 GFLOP/s, 384 of 14 x 14: 73 to 129; of 240 by 5 x 5 98 to 122; AMD's Zen 4.
    Two rows of 14 pixels ran at 56: the accumulators spilled.)
    """
    width, taps = kernel.output.shape[3], kernel.anchor["kernel_shape"][1]
    columns = min(
        (size for size in _extents(width) if size <= PIXELS_OF_A_ROW),
        key=lambda size: (-(-width // size) * (size * taps + size + 2 * taps), -size),
    )
    return DirectConfig(1, 1, columns, "rb rh rw rc", taps, overlap=not divides(kernel, 1, columns))


def divides(kernel: Kernel, rows: int, columns: int) -> bool:
    """Whether tiles of rows x columns pixels are all whole."""
    _, _, height, width = kernel.output.shape
    return height % rows == width % columns == 0


def prefetches(kernel: Kernel, target: Target) -> bool:
    """True where the weights are too many to be in L2 still from the last time, and it is worth asking for them."""
    return weight_bytes(kernel) > target.l2_bytes / 16


def weight_bytes(kernel: Kernel) -> int:
    """Bytes of a convolution's weights: maps times the channels of one group times the window."""
    window = math.prod(kernel.anchor["kernel_shape"])
    return int(kernel.output.shape[1] * channels_together(kernel) * window * kernel.item_bytes)


def direct_tiles(kernel: Kernel, maps: int, depth: int, target: Target) -> list[tuple[int, int, int]]:
    """(vectors, rows, columns) of register tiles, those first that are estimated to be fastest.

    They need not divide the output: the last of a row or column of tiles overlaps the one before; the last blocks of
    maps are fewer. In an image of one row, of which no record tells, the weights' lines count too: 64 to 128 maps by 9
    taps at 1000 positions take 1.84 ms in tiles of 2 vectors by 6, 4.11 by 4 x 3 and 5.45 by 6 x 2 (AVX2, AMD EPYC).
    """
    window = math.prod(window_size(kernel))
    _, _, height, width = kernel.output.shape
    per_block, blocks = BLOCK // target.lanes(FLOAT32), -(-maps // BLOCK)
    group, together = kernel.anchor["group"], groups_together(kernel) or 1
    vectors = [v for v in range(1, per_block) if per_block % v == 0]
    if depth == 0:  # depthwise: every block has its own input, so that only pixels share loads
        vectors += [per_block]
    else:
        shared = -(-maps // group * together // BLOCK)  # blocks of maps that read the same channels
        vectors += [per_block * b for b in range(1, min(shared, MAX_BLOCKS) + 1)]
    terms = math.prod(kernel.anchor["kernel_shape"]) * channels_together(kernel)
    line = FROM_L2 if height == 1 < width else 0.0

    def cycles(v: int, pixels: int) -> float:
        """Cycles of a term in one tile: FMA units, loads, the FMA latency, and weights that miss L1."""
        streamed = v if terms * v * target.vector_bytes > target.l1_bytes // 2 else 0.0
        computed = max(v * pixels / target.fma_units, (v + pixels) / target.loads, target.fma_latency)
        return max(computed, streamed) + line * v

    def total(tile: tuple[int, int, int]) -> tuple[float, int]:
        v, r, c = tile
        whole, rest = divmod(per_block * blocks, v)
        pixels = r * c * window
        once = whole * cycles(v, pixels) + (cycles(rest, pixels) if rest else 0.0)
        return -(-height // r) * -(-width // c) * once, -v * r * c

    tiles = itertools.product(vectors, _extents(height), _extents(width))
    fitting = (t for t in tiles if fits_registers(t[0], t[1] * t[2] * window, target) and t[1] <= MAX_ROWS)
    return sorted(fitting, key=total)


def _extents(count: int) -> list[int]:
    """Candidate tile sizes along one axis: for each number of tiles, the smallest size that gives that number."""
    return [size for size in range(1, min(count, MOST_PIXELS) + 1) if -(-count // -(-count // size)) == size]


def fits_registers(vectors: int, pixels: int, target: Target, others: int | None = None) -> bool:
    """True if the accumulators of a tile and `others` fit: the vectors that all share in one step, and a broadcast.

    With one register too few LLVM stores and reloads accumulators in the inner loop: on AVX-512 a tile of 4 vectors by
    7 pixels ran at 566 µs where 2 by 7 took 403 (1x1, 512 to 2048 channels of 7 x 7).
    """
    return vectors * pixels + (min(vectors, pixels) + 1 if others is None else others) <= target.registers


def fma_cycles(vectors: int, pixels: int, target: Target) -> float:
    """Cycles of one FMA of a tile: the units, the tile's loads, or the latency where it has few accumulators."""
    accumulators = vectors * pixels
    loads = (vectors + pixels) / accumulators / target.loads
    return max(1 / target.fma_units, loads, target.fma_latency / accumulators)


def winograd_config(kernel: Kernel, target: Target) -> WinogradConfig | None:
    """The fastest Winograd convolution by the estimate below; None where the convolution is none that Winograd fits, or
    direct convolution is estimated to be faster.
    """
    node, image = kernel.anchor, kernel.inputs[0]
    if not winograd_fits(kernel):
        return None
    (p, q), filters = window_size(kernel), node["kernel_shape"][0]
    depth, maps = (round_up(channels, BLOCK) for channels in (image.shape[1], kernel.output.shape[1]))
    found: list[tuple[float, WinogradConfig | None]] = []
    for tile in tiles_for(filters):
        if tile % p or tile % q:
            continue
        rows, columns = grid(node, image.shape, tile, (p, q))
        for strip in divisors(rows * columns):
            strips = rows * columns // strip
            parts = 2 if strips == 1 and maps % (2 * BLOCK) == 0 else 1
            config = WinogradConfig(
                tile,
                tile // p,
                tile // q,
                strip,
                parts,
                *_register_tile(strip, depth, maps // parts, target),
                kernel=filters,
            )
            if winograd_scratch(config, depth, maps) <= MAX_SCRATCH:
                found.append((winograd_cycles(config, strips, depth, maps, target), config))
    products = math.prod(kernel.output.shape[1:]) * p * q * depth * filters**2
    direct = products / target.lanes(FLOAT32) / target.fma_units
    cycles, best = min(found, key=lambda pair: pair[0], default=(math.inf, None))
    return best if cycles < direct else None


def winograd_fits(kernel: Kernel) -> bool:
    """True for an ungrouped convolution of floats of stride 1 by 3 x 3 or 5 x 5 filters, of at least one block of
    channels."""
    node = kernel.anchor
    if node.attributes.get("exact"):  # sums of integers, which Winograd's are not
        return False
    steps = (node["strides"], node["dilations"])
    plain = node["group"] == 1 and not kernel.prologue and kernel.inputs[0].shape[1] >= BLOCK
    height, width = node["kernel_shape"]
    return plain and height == width and bool(tiles_for(height)) and steps == ((1, 1), (1, 1))


def _register_tile(strip: int, depth: int, maps: int, target: Target) -> tuple[int, int]:
    """(vectors, tiles) with the fewest loads an FMA and enough accumulators to cover its latency."""

    def cost(pair: tuple[int, int]) -> tuple[float, int]:
        v, t = pair
        return _product_cycles(v, t, depth, target), -v * t

    vectors = divisors(maps // target.lanes(FLOAT32))
    return min(((v, t) for v in vectors for t in divisors(strip) if fits_registers(v, t, target)), key=cost)


def _product_cycles(vectors: int, tiles: int, depth: int, target: Target) -> float:
    """Cycles of one FMA of Winograd's products: those of its tile, or the time in which its weights come from L2.

    There are those of all channels, which L1 seldom holds, and each of their vectors is used for so many tiles. (460
    maps are 29 vectors, a prime: all of them for one tile took 15.8 ms at 256 channels of 2 x 14 x 14 pixels, each for
    16 tiles 3.9.)
    """
    line = target.lanes(FLOAT32) * ITEM
    streamed = line / L2_RATE / tiles if depth * vectors * line > target.l1_bytes / 2 else 0.0
    return max(fma_cycles(vectors, tiles, target), streamed)


def winograd_cycles(config: WinogradConfig, strips: int, depth: int, maps: int, target: Target) -> float:
    """Estimated cycles an image: the products at the FMA peak or the rate of their weights, and both transforms.

    Fitted to AVX-512 measurements: a transform takes 1.4 cycles a vector that it stores or loads. Weights come from L2
    at 32 bytes a cycle if they stay there beside a strip's scratch, else from L3 at 16, and at first from memory at 8;
    a fifth of that is not hidden behind the products. Scratch that L2 does not hold is written and read at 16.
    """
    elements, v, t = (config.tile + config.kernel - 1) ** 2, config.vectors, config.tiles
    tiles = strips * config.strip
    products = elements * tiles * depth * maps / target.lanes(FLOAT32) * _product_cycles(v, t, depth, target)
    weights, scratch = elements * depth * maps * ITEM, winograd_scratch(config, depth, maps)
    rate = L2_RATE if weights + scratch < target.l2_bytes else 16
    streamed = weights / 8 + (strips - 1) * weights / rate
    moved = elements * tiles * (depth * config.parts + maps)
    beyond = 2 * moved * ITEM / 16 if scratch > target.l2_bytes / 2 else 0
    return max(products, streamed) + min(products, streamed) / 5 + 1.4 * moved / target.lanes(FLOAT32) + beyond


def winograd_scratch(config: WinogradConfig, depth: int, maps: int) -> int:
    """Bytes of the transformed data and the products of one strip."""
    blocks = (depth + maps // config.parts) // BLOCK
    return blocks * _planes(config, config.strip) * ITEM


def _planes(config: FilteringConfig, vectors: int) -> int:
    """Elements of the planes of one block, each of so many vectors and at most one to be an odd number."""
    return (config.tile + config.kernel - 1) ** 2 * (vectors + 1) * BLOCK


def streamed_scratch(config: StreamedConfig, depth: int, tiles: int, target: Target) -> int:
    """Bytes of the transformed filters of `vectors` vectors of maps, and of their products with all `tiles`."""
    blocks = max(1, config.vectors * target.lanes(FLOAT32) // BLOCK)
    return blocks * (depth // BLOCK * _planes(config, BLOCK) + _planes(config, tiles)) * ITEM


def columns_config(kernel: Kernel, maps: int, width: int, target: Target) -> ColumnsConfig:
    """As many maps as the registers hold: each needs an accumulator for every pixel of the pool's window."""
    window = math.prod(window_size(kernel))
    vectors = -(-width // target.lanes(kernel.dtype))
    budget = target.registers - 3  # the rest holds the loaded vectors and a broadcast
    best = max(
        ((m, v) for m in divisors(maps) for v in divisors(vectors) if m * v * window <= budget),
        key=lambda tile: tile[0] * tile[1] / (tile[0] + tile[1] * window),
        default=(1, 1),
    )
    return ColumnsConfig(*best)


def pixels_config(kernel: Kernel, group: int, target: Target) -> PixelsConfig:
    """The maps of one group by the run of pixels that are estimated to be fastest."""
    return pixels_tiles(kernel, group, target)[0]


def pixels_tiles(kernel: Kernel, group: int, target: Target) -> list[PixelsConfig]:
    """Maps of one group by runs of pixels, those first that are estimated to be fastest."""
    maps, pixels = kernel.output.shape[1] // group, math.prod(kernel.output.shape[2:])
    depth, per_block = kernel.inputs[0].shape[1] // group, BLOCK // target.lanes(kernel.dtype)

    def cycles(tile: tuple[int, int]) -> tuple[float, int]:
        """Cycles of one term in all tiles of a group: FMAs, loads, each of two of L1's lines where the maps are no
        whole number of them, the FMA latency, and pixels that L1 does not hold, from L2 at two cycles a line.
        """
        m, run = tile
        v = -(-run // BLOCK) * per_block
        loads = (m + v * (1 if pixels % LINE_ELEMENTS == 0 else 2)) / target.loads
        beyond = 2 * v if depth * run * kernel.item_bytes > target.l1_bytes else 0
        return pixels // run * (maps // m) * max(m * v / target.fma_units, loads, target.fma_latency, beyond), -m * v

    runs = [run for run in divisors(pixels) if run >= BLOCK]
    tiles = itertools.product(divisors(maps), runs)
    spare = 2 if target.fma_broadcasts else None  # no register is needed for a weight
    fitting = [t for t in tiles if fits_registers(t[0], -(-t[1] // BLOCK) * per_block, target, spare)]
    return [PixelsConfig(*tile, group) for tile in sorted(fitting, key=cycles) or [(1, runs[0])]]


def few_maps_config(kernel: Kernel, target: Target) -> FewMapsConfig:
    """As many columns as registers hold sums of, whose last tile is moved back by few pixels."""
    maps, width = kernel.output.shape[1], kernel.output.shape[3]
    vectors = BLOCK // target.lanes(kernel.dtype)
    most = max(1, min(width, (target.registers - 3) // (maps * vectors)))

    def cost(columns: int) -> tuple[float, int]:
        loads = 1 + maps / columns if maps > 1 else 1  # of pixels, which are a lone map's memory operands
        return -(-width // columns) * columns * (maps + loads), -columns

    return FewMapsConfig(min(range(1, most + 1), key=cost))


def images_config(maps: int, count: int, window: int, depth: int, target: Target) -> ImagesConfig:
    """Maps by columns of pixels, or by vectors of images, of `count` that there are: the cheapest FMAs.

    The weights of a term are in registers, all maps' of the tile, and one vector of images at a time. Vectors of
    `depth` terms that L1 does not hold come from L2, in two cycles each.
    """

    def cost(tile: tuple[int, int]) -> tuple[float, int]:
        m, vectors = tile[0], tile[1] * window
        beyond = 2 / m if depth * vectors * target.vector_bytes > target.l1_bytes else 0
        return max(fma_cycles(m, vectors, target), beyond), -m * vectors

    tiles = itertools.product(divisors(maps), divisors(count))
    fitting = [(m, c) for m, c in tiles if fits_registers(m, c * window, target, m + 1)]
    return ImagesConfig(*min(fitting, key=cost, default=(1, 1)))


def dense_config(rows: int, depth: int, maps: int, dtype: str, target: Target) -> DenseConfig:
    """The tile that is estimated to be fastest. Fewer accumulators than FMAs are under way (latency 4, two a cycle)
    leave units idle: then the sum is split into parts.
    """
    lanes = target.lanes(dtype)
    tiles = itertools.product(range(1, min(rows, target.registers) + 1), range(1, target.registers))
    # The weights of a lone row are memory operands of its FMAs.
    fitting = [DenseConfig(v * lanes, r) for r, v in tiles if fits_registers(v, r, target, 1 if r == 1 else None)]
    tile = min(fitting, key=lambda config: dense_cost(config, rows, maps, dtype, target))
    parts, accumulators = 1, tile.width // lanes * tile.rows
    while accumulators * parts * 2 <= target.fma_units * target.fma_latency and depth % (parts * 2) == 0:
        parts *= 2
    return DenseConfig(tile.width, tile.rows, parts, 1)


def dense_cost(config: DenseConfig, rows: int, maps: int, dtype: str, target: Target) -> float:
    """Estimated cycles of a useful FMA: all of a tile's, those of what tiles share or no output has counted, with the
    weights' lines that come from L2, and stalls where too few accumulators hide the latency.

    (57 x 384 x 1536 with AVX-512: tiles of 6 x 64 and 10 x 32 run at 244 GFLOP/s, one of 7 x 64, which fits no 32
    registers, at 192.)
    """
    v, r, chains = config.width // target.lanes(dtype), config.rows, target.fma_units * target.fma_latency
    computed = round_up(maps, config.width) / maps * round_up(rows, r) / rows
    cycles = max(v * r / target.fma_units, (v + r) / target.loads) + FROM_L2 * v
    return computed * (cycles / (v * r) + max(0, chains - v * r * config.parts) / 16)


def matmul_config(kernel: Kernel, depth: int, target: Target) -> MatmulConfig:
    """The tile with the fewest loads an FMA, counting what tiles compute twice. Of at least a vector of columns.

    Packed columns pay for themselves from a few tiles of rows on: 1024 x 64 x 1024 runs at 220 GFLOP/s, and at 45 where
    each term's columns are 4 KB from the last one's and fall into one set of L1.
    """
    rows, columns = kernel.output.shape[-2:]
    lanes = target.lanes(kernel.dtype)
    tiles = itertools.product(range(1, min(rows, target.registers) + 1), range(1, columns // lanes + 1))
    fitting = [DenseConfig(v * lanes, r) for r, v in tiles if fits_registers(v, r, target)]
    best = min(fitting, key=lambda config: dense_cost(config, rows, columns, kernel.dtype, target))
    packed = rows >= PACKED_ROWS and depth * best.width * kernel.item_bytes <= MAX_SCRATCH
    return MatmulConfig(best.width, best.rows, packed)


def recurrent_config(kernel: Kernel, target: Target) -> RecurrentConfig:
    """The tile with the fewest cycles an FMA, whose columns of all gates that share a sum fit the registers."""
    node, (_, _, batch, hidden) = kernel.anchor, kernel.output.shape
    lanes = target.lanes(kernel.dtype)
    gates = {"RNN": 1, "GRU": 3 if node["linear_before_reset"] else 1, "LSTM": 4}[node.op]
    widths = [count * lanes for count in range(1, hidden // lanes + 1)] or [hidden]
    tiles = list(itertools.product(widths, range(1, min(batch, MAX_ROWS) + 1)))
    fitting = [(w, r) for w, r in tiles if fits_registers(-(-w // lanes) * gates, r, target)]

    def cost(tile: tuple[int, int]) -> float:
        width, rows = max(tile[0], lanes), tile[1]
        return dense_cost(DenseConfig(width * gates, rows), batch, hidden * gates, kernel.dtype, target)

    return RecurrentConfig(*min(fitting, key=cost))


def rows_config(network: Network, kernel: Kernel) -> RowsConfig:
    """Tiles of up to 512 columns; for a product four rows, or what divides them, and four terms if they divide it."""
    shape = kernel.output.shape
    columns = shape[-1] if shape else 1
    fitting = max(d for d in divisors(columns) if d <= MAX_COLUMNS)
    columns = fitting if fitting * 4 > min(columns, MAX_COLUMNS) else MAX_COLUMNS  # else the last tile is cut short
    if kernel.anchor.op not in ("MatMul", "Gemm", "QLinearMatMul", "MatMulInteger") or len(shape) < 2:
        return RowsConfig(1, columns, 1)
    rows = max(d for d in divisors(shape[-2]) if d <= 4)
    depth = multiply_accumulates(network, kernel) // kernel.output.size
    return RowsConfig(rows, columns, 4 if depth % 4 == 0 and depth else 1)
