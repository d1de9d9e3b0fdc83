"""Train LeNet-5 on handwritten (MNIST) and machine-printed digits, and write it as an ONNX file.

The MNIST test images and the held-out font families are opened once, after training, for the final figures. The
epoch is chosen by the last images of the MNIST training set and by font families of their own.
"""

from __future__ import annotations

import argparse
import copy
import json
import shlex
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

try:
    import numpy as np
    import onnx
    import onnxruntime
    import torch
    from numpy.typing import NDArray
    from onnx import TensorProto, helper, numpy_helper
    from printed_digits import Face, families, find_fonts, render_digit, render_set
    from torch import Tensor, nn
    from torch.nn import functional

    from tvmcnn.digits import IMAGE_SIDE, Digits, Normalisation, check_mnist, load_mnist
    from tvmcnn.errors import ToolError
    from tvmcnn.progress import can_draw
except ImportError as missing:
    sys.exit(f"{missing}: the tool needs the packages torch, numpy, pillow, onnx and onnxruntime")

VALIDATION_IMAGES = 5_000  # the last of the 60,000 MNIST training images
PRINTED_PER_FAMILY = 800  # with about 60 families, about as many printed images as handwritten ones
TEST_PER_FAMILY = 1_000  # with 8 held-out families, 0.01 % of accuracy is about one image
BATCH = 128  # images per step
LEARNING_RATE = 3e-3  # the peak of the one-cycle schedule
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05
PARAMETERS = 61_706
MULTIPLY_ACCUMULATES = 416_520  # per image
OPSET = 17
IR_VERSION = 8  # the one that came with operator set 17
TARGET = 0.99  # the accuracy below which no file is written, on either test

# Augmentation of every training image, drawn evenly and anew each time; mild, as MNIST is already centred and scaled.
TURN = 10.0  # degrees
ZOOM = 0.1  # 1 - ZOOM to 1 + ZOOM, each axis by itself
MOVE = 2.0  # pixels
SHEAR = 0.1  # pixels sideways per pixel of height: slanted handwriting and italics


def lenet5() -> nn.Sequential:
    """Return LeNet-5 with ReLU and max pooling, for input of shape (count, 1, 32, 32) and ten scores per image."""
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 6, 5)),  # to 6x28x28
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 16, 5)),  # to 16x10x10
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("conv3", nn.Conv2d(16, 120, 5)),  # to 120x1x1
        ("relu3", nn.ReLU()),
        ("flatten", nn.Flatten()),
        ("dense1", nn.Linear(120, 84)),
        ("relu4", nn.ReLU()),
        ("dense2", nn.Linear(84, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def multiply_accumulates(model: nn.Sequential) -> int:
    """Return the multiply-accumulates of one image, from the shapes of the layers; biases are not counted."""
    side, total = IMAGE_SIDE, 0
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            side += 1 - layer.kernel_size[0]  # no padding, stride 1
            total += side * side * layer.weight.numel()  # every weight is used once per output pixel
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, nn.Linear):
            total += layer.weight.numel()
    return total


def check_cost(model: nn.Sequential) -> None:
    """Raise ValueError unless `model` has LeNet-5's numbers of parameters and of multiply-accumulates."""
    parameters = sum(weights.numel() for weights in model.parameters())
    if parameters != PARAMETERS:
        raise ValueError(f"the network has {parameters} parameters instead of {PARAMETERS}")
    if multiply_accumulates(model) != MULTIPLY_ACCUMULATES:
        raise ValueError(
            f"an image takes {multiply_accumulates(model)} multiply-accumulates instead of {MULTIPLY_ACCUMULATES}"
        )


def build_onnx(model: nn.Sequential) -> onnx.ModelProto:
    """Return `model` as ONNX: input `input` of shape (batch, 1, 32, 32), output `scores` of shape (batch, 10).

    Nodes and the tensors they give have the names of the layers. Neither date nor path gets in.
    """
    nodes, tensor = [], "input"
    layers = list(model.named_children())
    for name, layer in layers:
        inputs, output = [tensor], "scores" if name == layers[-1][0] else name
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            inputs += [f"{name}.weight", f"{name}.bias"]
        if isinstance(layer, nn.Conv2d):
            node = helper.make_node("Conv", inputs, [output], name=name, kernel_shape=list(layer.kernel_size))
        elif isinstance(layer, nn.ReLU):
            node = helper.make_node("Relu", inputs, [output], name=name)
        elif isinstance(layer, nn.MaxPool2d):
            node = helper.make_node("MaxPool", inputs, [output], name=name, kernel_shape=[2, 2], strides=[2, 2])
        elif isinstance(layer, nn.Flatten):
            node = helper.make_node("Flatten", inputs, [output], name=name, axis=1)
        elif isinstance(layer, nn.Linear):
            node = helper.make_node("Gemm", inputs, [output], name=name, transB=1)  # weights are (outputs, inputs)
        else:
            raise TypeError(f"the layer {name} has no ONNX form here")
        nodes.append(node)
        tensor = output
    weights = [numpy_helper.from_array(value.numpy(), name) for name, value in model.state_dict().items()]
    graph = helper.make_graph(
        nodes,
        "lenet5",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, IMAGE_SIDE, IMAGE_SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    onnx_model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="tvmcnn"
    )
    onnx.checker.check_model(onnx_model, full_check=True)
    return onnx_model


def run_onnx(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores, of shape (count, 10), of normalised images of shape (count, 1, 32, 32)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    parts = [session.run(["scores"], {"input": images[i : i + 1000]})[0] for i in range(0, len(images), 1000)]
    return np.concatenate(parts)


def save_onnx(model: onnx.ModelProto, facts: Mapping[str, str], path: Path) -> None:
    """Write `model` to `path` with `facts`, and what holds for every run, as its metadata."""
    fixed = {
        "scale": repr(1.0 / 255.0),
        "normalisation": "(grey level * scale - mean) / std",
        "polarity": "white digit on black background",
        "licence": "Apache-2.0",
    }
    helper.set_model_props(model, {**fixed, **facts})
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of shape (count, 1, 32, 32) each turned, scaled, sheared and shifted at random."""

    def draw(limit: float) -> Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * limit

    angle = torch.deg2rad(draw(TURN))
    cos, sin, shear = angle.cos(), angle.sin(), draw(SHEAR)
    wide, high = 1 + draw(ZOOM), 1 + draw(ZOOM)
    half = IMAGE_SIDE / 2  # affine_grid measures positions from the centre, in halves of the side
    rows = [
        torch.stack([cos / wide, (shear * cos - sin) / wide, draw(MOVE / half)], 1),
        torch.stack([sin / high, (shear * sin + cos) / high, draw(MOVE / half)], 1),
    ]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def accuracy(model: nn.Module, digits: Digits, norm: Normalisation) -> float:
    """Return the share, 0 to 1, of `digits` whose highest score is their label's."""
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(torch.from_numpy(norm.apply(part))) for part in _parts(digits.images)])
    return float((scores.argmax(1).numpy() == digits.labels).mean())


def _parts(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (images[start : start + 1000] for start in range(0, len(images), 1000))


def train(
    training: Digits,
    validation: tuple[Digits, Digits],
    norm: Normalisation,
    epochs: int,
    seed: int,
    report: Callable[[int, str], None],
) -> nn.Sequential:
    """Return LeNet-5 with the weights of the epoch that has the best mean accuracy on the two validation sets.

    `report` is called with the number of steps done, out of epochs times ceil(images / BATCH), and a line of text.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = lenet5()
    images = torch.from_numpy(training.images)
    labels = torch.from_numpy(training.labels)
    steps = -(-len(images) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2, cycle_momentum=False
    )
    best, best_state, line = -1.0, copy.deepcopy(model.state_dict()), "first epoch"
    for epoch in range(epochs):
        model.train()
        for step, chosen in enumerate(torch.split(torch.randperm(len(images), generator=generator), BATCH)):
            batch = augment(images[chosen, None].float() / 255.0, generator)
            loss = functional.cross_entropy(
                model((batch - norm.mean) / norm.std), labels[chosen], label_smoothing=LABEL_SMOOTHING
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            report(epoch * steps + step + 1, line)
        handwritten, printed = (accuracy(model, digits, norm) for digits in validation)
        line = f"epoch {epoch + 1}: validation {handwritten:.2%} handwritten, {printed:.2%} printed"
        if handwritten + printed > best:
            best, best_state = handwritten + printed, copy.deepcopy(model.state_dict())
        report((epoch + 1) * steps, line)
    model.load_state_dict(best_state)
    return model.eval()


@contextmanager
def progress(total: int) -> Iterator[Callable[[int, str], None]]:
    """Give a function that shows the steps done: a bar on a terminal with rich, else each new line of text once."""
    shown = {"first epoch"}

    def print_line(done: int, line: str) -> None:
        if line not in shown:
            shown.add(line)
            print(line, file=sys.stderr, flush=True)

    if not can_draw(sys.stderr):
        yield print_line
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield print_line
        return
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("first epoch", total=total)
        yield lambda done, line: bar.update(task, completed=done, description=line)


def render_sample(path: Path, faces: tuple[Face, ...]) -> None:
    """Write the demonstration digits to the NumPy archive `path`.

    It holds `images` of shape (40, 32, 32), grey levels, four of each digit, `labels` of shape (40,), and the
    texts `font` and `licence`. The font is held out of training and may be redistributed, as may its bitmaps.
    """
    face = next((face for face in faces if (face.family, face.style) == ("DejaVu Sans", "Book")), None)
    if face is None:
        raise ToolError("the face DejaVu Sans Book is missing; the Debian package fonts-dejavu-core provides it")
    # Height in pixels, angle in degrees and shift in pixels of the four renderings of a digit.
    variants = [(20.0, 0.0, (0.0, 0.0)), (16.0, 8.0, (1.0, -1.0)), (22.0, -6.0, (-1.0, 0.5)), (18.0, -10.0, (0.0, 1.0))]
    images = [
        render_digit(digit, face.path, size, angle=angle, shift=shift)
        for size, angle, shift in variants
        for digit in range(10)
    ]
    labels = np.arange(len(images)) % 10
    licence = "Bitstream Vera Fonts licence; the DejaVu changes are in the public domain"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=np.stack(images), labels=labels, font="DejaVu Sans Book", licence=licence)


class _Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line as ToolError."""

    def error(self, message: str) -> NoReturn:
        raise ToolError(message)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line; raise ToolError where they are wrong."""
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="MNIST_FOLDER", help="folder of the four MNIST IDX files")
    parser.add_argument(
        "--fonts",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        default=[Path("/usr/share/fonts")],
        help="folders searched for .ttf and .otf files (default: /usr/share/fonts)",
    )
    parser.add_argument("--epochs", type=int, default=24, help="passes over the training images (default: 24)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("-o", "--output", type=Path, default=Path("tvmcnn/data/lenet5.onnx"), help="the ONNX file")
    parser.add_argument("--sample", type=Path, metavar="NPZ", help="also write 40 printed digits for demonstration")
    parser.add_argument("--validation-only", action="store_true", help="leave the test sets closed; write no ONNX file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_args(arguments)
    if options.data is None and options.sample is None:
        raise ToolError("nothing to do: give the folder of the MNIST files with --data, or --sample")
    if options.epochs < 1 or options.seed < 0:
        raise ToolError("--epochs must be at least 1 and --seed at least 0")
    return options


def main(arguments: list[str]) -> None:
    """Do what the command line asks for; raise ToolError where the user must put something right."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)  # sums in one order, hence the same weights from the same seed
    torch.use_deterministic_algorithms(True)
    if options.data is not None:
        check_mnist(options.data)
    fonts = find_fonts(options.fonts)
    if options.sample is not None:
        render_sample(options.sample, fonts.held_out)
    if options.data is None:
        return

    start = time.monotonic()
    rng = np.random.default_rng(options.seed)
    whole = load_mnist(options.data, "train")
    if len(whole.images) <= VALIDATION_IMAGES:
        raise ToolError(f"the MNIST training set holds only {len(whole.images)} images")
    written = Digits(whole.images[:-VALIDATION_IMAGES], whole.labels[:-VALIDATION_IMAGES])
    printed = render_set(fonts.training, PRINTED_PER_FAMILY, rng)
    validation = (
        Digits(whole.images[-VALIDATION_IMAGES:], whole.labels[-VALIDATION_IMAGES:]),
        render_set(fonts.validation, TEST_PER_FAMILY, rng),
    )
    # Four decimals, so that the figures in the file's metadata are those the network was trained with.
    norm = Normalisation(round(float(written.images.mean() / 255.0), 4), round(float(written.images.std() / 255.0), 4))
    training = Digits(
        np.concatenate([written.images, printed.images]), np.concatenate([written.labels, printed.labels])
    )
    with progress(options.epochs * -(-len(training.images) // BATCH)) as report:
        model = train(training, validation, norm, options.epochs, options.seed, report)
    check_cost(model)
    onnx_model = build_onnx(model)
    expected = model(torch.from_numpy(norm.apply(validation[1].images))).detach().numpy()
    if not np.allclose(run_onnx(onnx_model, norm.apply(validation[1].images)), expected, atol=1e-4):
        raise RuntimeError("the ONNX model's scores differ from PyTorch's")
    result: dict[str, str] = {
        "mean": repr(norm.mean),
        "std": repr(norm.std),
        "validation_mnist_accuracy": repr(accuracy(model, validation[0], norm)),
        "validation_printed_accuracy": repr(accuracy(model, validation[1], norm)),
        "mnist_training_images": str(len(written.images)),
        "printed_training_images": str(len(printed.images)),
        "seed": str(options.seed),
        "training_fonts": ", ".join(families(fonts.training)),
        "validation_fonts": ", ".join(families(fonts.validation)),
        "held_out_fonts": ", ".join(families(fonts.held_out)),
        "torch_version": torch.__version__.split("+")[0],
    }
    if not options.validation_only:
        final = {
            "mnist": load_mnist(options.data, "t10k"),
            "printed": render_set(fonts.held_out, TEST_PER_FAMILY, rng),
        }
        for name, digits in final.items():
            right = run_onnx(onnx_model, norm.apply(digits.images)).argmax(1) == digits.labels
            result[f"{name}_accuracy"], result[f"{name}_images"] = repr(float(right.mean())), str(len(right))
            if right.mean() < TARGET:
                raise ToolError(
                    f"no file written: {right.mean():.2%} of the {name} test digits are right, under {TARGET:.0%}"
                )
        # A path outside the working folder would tell of the machine, so only its last part is kept.
        output = options.output.name if options.output.is_absolute() else options.output.as_posix()
        result["command"] = (
            f"python tools/train_lenet5.py --data MNIST_FOLDER --epochs {options.epochs} --seed {options.seed} "
            f"-o {shlex.quote(output)}"
        )
        save_onnx(onnx_model, result, options.output)
    print(f"training took {time.monotonic() - start:.0f} s", file=sys.stderr)
    print(json.dumps(result, indent=2) if options.json else "\n".join(f"{key}: {result[key]}" for key in result))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ToolError, OSError) as error:
        sys.exit(f"train_lenet5: {error}")
    except KeyboardInterrupt:
        sys.exit("train_lenet5: interrupted")
