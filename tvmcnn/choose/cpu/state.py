"""State: what is known while kernels are chosen one by one, from the first to the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tvmcnn.blocks import BLOCK
from tvmcnn.choose.cpu.shared_prologue import sharing_prologue
from tvmcnn.choose.cpu.shared_rows import sharing_rows
from tvmcnn.choose.cpu.tasks import task_count
from tvmcnn.choose.fits import recorded
from tvmcnn.choose.kernel_key import kernel_words
from tvmcnn.choose.records import NEAREST, Records
from tvmcnn.configs import StreamedConfig, WinogradConfig
from tvmcnn.network import NO_PADS, PLAIN, Choice, Kernel, Layout, Network, Node, Numbers, Pads, Tensor, round_up
from tvmcnn.targets import Target


@dataclass
class State:
    """Where and how each tensor is stored so far, what its readers want, and the choices made."""

    network: Network
    target: Target
    records: Records
    exact: bool  # direct convolution only
    readers: Mapping[str, tuple[Kernel, ...]]  # by tensor name
    stored: dict[str, tuple[Tensor, Layout]]
    halos: Mapping[str, Pads]  # by tensor name what its readers want around it,
    fills: Mapping[str, int]  # which is the zero point of integers, else zeros
    ends: Mapping[str, tuple[int, int]]  # and the images of zeros before the first and behind the last
    winograd: Mapping[str, tuple[WinogradConfig | StreamedConfig, str] | None]  # by output; None: not faster
    homes: dict[str, tuple[Tensor, int]]  # parts of a concatenation: the whole, and the channel they start at in it
    images: int  # side by side, in convolutions and matrix products
    precision: str = "fp32"  # of the factors of products, see precision.py,
    narrow: frozenset[str] = frozenset()  # and the outputs of convolutions that multiply such ones
    blocked: bool = True  # images may be stored in blocks of channels
    choices: list[Choice] = field(default_factory=list)

    def is_output(self, kernel: Kernel) -> bool:
        """Whether a kernel makes an output of the network."""
        return kernel.output.name in {tensor.name for tensor in self.network.outputs}

    def want(self, name: str, layout: Layout, *, exact: bool = False) -> tuple[Tensor, Layout]:
        """The tensor in a layout that covers `layout`, by a reorder if need be (one for all readers that agree)."""
        tensor, have = self.stored[name]
        if have.like(layout) or (have.covers(layout) and not exact):
            return tensor, have
        if layout == PLAIN and len(tensor.shape) == 2 and tensor.shape[0] == 1:
            return tensor, PLAIN  # a single row's halo lies behind it
        copy = self.fresh(f"{tensor.name}@{layout}", tensor)
        if copy not in self.stored:
            self.reorder(tensor, have, dataclasses.replace(tensor, name=copy), layout)
        return self.stored[copy]

    def fresh(self, name: str, tensor: Tensor) -> str:
        """`name` for a copy of `tensor`, marked until no ONNX tensor and no copy in another shape has it."""
        while name in self.network.tensors or (name in self.stored and self.stored[name][0].shape != tensor.shape):
            name += "'"
        return name

    def plain(self, tensor: Tensor) -> tuple[Tensor, Layout]:
        """The tensor in plain layout and under its own shape, even if it is stored under one it was reshaped from."""
        stored, layout = self.want(tensor.name, PLAIN, exact=True)
        return dataclasses.replace(stored, shape=tensor.shape), layout

    def image(self, tensor: Tensor, layout: Layout) -> tuple[Tensor, Layout]:
        """The tensor in `layout`; one that is stored under another shape goes through plain memory."""
        if self.stored[tensor.name][0].shape != tensor.shape:
            self.stored[tensor.name] = self.plain(tensor)
        return self.want(tensor.name, layout)

    def gate(self, tensor: Tensor) -> tuple[Tensor, Layout]:
        """One value a map, as squeeze-and-excite blocks make them: read in any layout, under its own shape.

        A kernel in blocks reads a whole one at the end of a plain gate too, whose place in the arena has room for that
        (layout.py). The user's memory has not: an input or an output is copied into blocks.
        """
        stored, layout = self.stored[tensor.name]
        stored, layout = (stored, layout) if stored.shape == tensor.shape else self.plain(tensor)
        users = {each.name for each in (*self.network.inputs, *self.network.outputs)}
        if layout.block == 1 and tensor.shape[1] % BLOCK and stored.name in users:
            return self.image(tensor, Layout(BLOCK))
        return stored, layout

    def reorder(self, tensor: Tensor, have: Layout, output: Tensor, layout: Layout) -> None:
        """A kernel that stores `tensor` once more, as `output` in `layout`."""
        node = Node("Reorder", output.name, (tensor.name,), output.name)
        kernel = Kernel("reorder", (node,), (tensor,), output)
        self.add(Choice(kernel, "reorder", (tensor,), (have,), layout, "memory"))

    def tuned(
        self, kernel: Kernel, rule: str, computed: Numbers, fits: Callable[[Numbers], bool] | None = None
    ) -> tuple[Numbers, str]:
        """The config and its tier: recorded for the kernel, or for the nearest one whose config `fits`, or computed."""
        if (found := recorded(self.records, self.network, kernel, rule)) is not None:
            return found
        near = self.records.near(kernel_words(self.network, kernel), rule) if fits is not None else ()
        config = next(filter(fits, near), None)
        return (computed, "default") if config is None else (config, NEAREST)

    def between_ends(self, choice: Choice) -> Choice:
        """The choice with its images as a part of a larger batch, where images of zeros are wanted around them."""
        made = choice.kernel.output
        before, after = self.ends.get(made.name, (0, 0))
        if not before + after:
            return choice
        images, channels = made.shape[0], round_up(made.shape[1], BLOCK)
        whole = dataclasses.replace(made, name=self.fresh(f"{made.name}@ends", made))
        whole = dataclasses.replace(whole, shape=(before + images + after, *made.shape[1:]))
        return dataclasses.replace(choice, within=(whole, before * channels))

    def add(self, choice: Choice) -> None:
        """The next kernel, numbered. One that makes a part of a concatenation writes it there."""
        kernel = choice.kernel
        home = self.homes.get(kernel.output.name)
        if choice.writes == Layout(BLOCK) and not choice.is_view:  # whose parts lie where they were written
            if home is not None:
                pitch = home[0].shape[1] // BLOCK if home[0].shape[0] > 1 else 0  # a lone image is followed by none
                choice = dataclasses.replace(choice, writes=Layout(BLOCK, pitch=pitch), within=home)
            else:
                name = kernel.output.name
                writes = Layout(BLOCK, self.halos.get(name, NO_PADS), fill=self.fills.get(name, 0))
                choice = dataclasses.replace(choice, writes=writes)
                choice = self.between_ends(choice)
        kernel = dataclasses.replace(kernel, name=f"k{len(self.choices)}_{kernel.anchor.op.lower()}")
        choice = sharing_prologue(dataclasses.replace(choice, kernel=kernel), self.target)
        choice = sharing_rows(choice, self.target)
        choice = dataclasses.replace(choice, tasks=task_count(self.network, choice, self.target))
        self.choices.append(choice)
        self.stored[kernel.output.name] = (kernel.output, choice.writes)
