"""Well-known networks, at small inputs: those that tools/ makes, compiled and compared with onnxruntime and NumPy; the
trained ones; and photographs that a trained network names.

tools/check_networks.py does the same at full size.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import check_networks
import numpy as np
import onnx
import onnxruntime
import pytest
from check_networks import TOLERANCE, TRAINED, check, difference, inputs, markdown
from data import TOOLS
from models import BUILT, NETWORKS, light, make
from models.topology import Size, Topology
from PIL import Image
from skimage import data

import tvmcnn
from tvmcnn.check.reference import reference
from tvmcnn.errors import UnsupportedError
from tvmcnn.run.runner import Runner

pytestmark = pytest.mark.slow

Array = np.ndarray[Any, Any]

# Rows and columns of the input, and the batch. The last images are 1 x 1 to 4 x 4 pixels.
SMALL = {
    "resnet18": (48, 3),
    "vgg16": (32, 3),
    "mobilenet_v1": (40, 3),
    "mobilenet_v2": (40, 1),
    "mobilenet_v3_large": (40, 3),
    "efficientnet_b0": (40, 3),
    "unet": (48, 3),
    "alexnet": (64, 3),
    "vgg19": (32, 1),
    "inception_v1": (64, 1),
    "inception_v2": (64, 3),
    "resnet50": (40, 1),
    "densenet121": (40, 3),
    "squeezenet": (48, 3),
    "shufflenet": (40, 3),
    "zfnet512": (64, 1),
}


@dataclass(frozen=True)
class Made:
    """A network at a small size."""

    name: str
    batch: int
    model: onnx.ModelProto


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: pytest.FixtureRequest) -> Made:
    """Each network in turn, made once for all tests of it."""
    size, batch = SMALL[request.param]
    return Made(request.param, batch, make(request.param, size))


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """onnxruntime's outputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data_ = model.SerializeToString()
    return onnxruntime.InferenceSession(data_, options, providers=["CPUExecutionProvider"]).run(None, feeds)


# ---- agreement ------------------------------------------------------------------------------------------------------


@pytest.mark.numbers
def test_agrees_with_onnxruntime_and_numpy(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "network.so"
    tvmcnn.compile(made.model, output=path, batch=made.batch, verify=False, activations=False)
    net = tvmcnn.load(path)
    for kind, feeds in zip(check_networks.KINDS, inputs(net, 5), strict=True):
        found = net.run(None, feeds)
        assert difference(found, run(made.model, feeds)) <= TOLERANCE, f"onnxruntime, {kind} inputs"
    assert difference(found, list(reference(made.model, feeds).values())) <= TOLERANCE, f"NumPy, {kind} inputs"


@pytest.mark.parametrize("name", TRAINED)
def test_trained_network_agrees_with_onnxruntime(name: str, test_data: Path, tmp_path: Path) -> None:
    row = check(name, 0, (1, 3), tmp_path)
    assert not row.reason
    assert max(row.differences.values()) <= TOLERANCE
    assert list(row.differences) == ([1] if name == "mnist-8" else [1, 3])  # its Reshape says 1


# ---- the networks themselves ----------------------------------------------------------------------------------------

# As published: parameters with those of batch normalisation but without its running statistics, and millions of
# multiply-accumulates of convolutions and dense layers at 224 x 224. The figures are torchvision's, but MobileNetV1's
# are its paper's and Keras's, and U-Net's are those of the widely used version with padding and batch normalisation.
PUBLISHED: dict[str, tuple[int, int | None]] = {
    "resnet18": (11_689_512, 1_814),
    "vgg16": (138_357_544, 15_470),
    "mobilenet_v1": (4_231_976, 569),
    "mobilenet_v2": (3_504_872, 301),
    "mobilenet_v3_large": (5_483_032, 217),
    "efficientnet_b0": (5_288_548, 386),
    "unet": (31_037_698, None),
    "vgg19": (143_667_240, 19_632),
    "resnet50": (25_557_032, 4_089),
    "squeezenet": (1_235_496, 349),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_network_has_the_published_size(name: str) -> None:
    topology = NETWORKS[name](224)
    statistics = {
        tensor for node in topology.nodes if node.op_type == "BatchNormalization" for tensor in node.input[3:]
    }
    parameters, millions = PUBLISHED[name]
    counted = sum(math.prod(shape) for tensor, shape in topology.weights.items() if tensor not in statistics)
    assert counted == parameters
    if millions is not None:
        assert multiply_accumulates(topology) == pytest.approx(millions * 1e6, abs=0.6e6)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("resnet18", {"Conv": 20, "Add": 8, "Relu": 17}),
        ("vgg16", {"Conv": 13, "MaxPool": 5, "Gemm": 3, "Relu": 15}),
        ("mobilenet_v1", {"Conv": 27, "Relu": 27}),
        ("mobilenet_v2", {"Conv": 52, "Clip": 35, "Add": 10}),
        ("mobilenet_v3_large", {"HardSwish": 21, "Relu": 19, "HardSigmoid": 8, "Mul": 8, "Add": 10}),
        ("efficientnet_b0", {"Sigmoid": 49 + 16, "Mul": 49 + 16, "Add": 9, "GlobalAveragePool": 16 + 1}),
        ("unet", {"Conv": 19, "ConvTranspose": 4, "Concat": 4, "MaxPool": 4, "Relu": 18}),
    ],
)
def test_network_has_the_layers_of_its_paper(name: str, counts: dict[str, int]) -> None:
    found = Counter(node.op_type for node in NETWORKS[name](64).nodes)
    assert {op: found[op] for op in counts} == counts


def multiply_accumulates(topology: Topology) -> int:
    """Multiply-accumulates of convolutions and dense layers, for one image."""
    shapes, total = topology.shapes(), 0
    for node in topology.nodes:
        if node.op_type in ("Conv", "Gemm"):
            total += math.prod(shapes[node.output[0]][1:]) * math.prod(shapes[node.input[1]][1:])
    return total


@pytest.mark.parametrize("name", light.FILES)
def test_light_network_at_its_own_size_is_the_published_one(name: str) -> None:
    published = onnx.load(str(light.FOLDER / f"{light.FILES[name]}.onnx"))
    inferred = onnx.shape_inference.infer_shapes(published).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.value_info}
    topology = NETWORKS[name](224)
    found = topology.shapes()
    nodes = [node for node in published.graph.node if node.op_type != "ConstantOfShape"]
    for ours, theirs in zip(topology.nodes, nodes, strict=True):
        assert ours == theirs
        if theirs.output[0] in shapes:
            wanted = shapes[theirs.output[0]]
            assert list(found[ours.output[0]]) == ([0, *wanted[1:]] if wanted[0] == 1 else wanted)


def test_activations_keep_their_size(made: Made) -> None:
    """Images that the weights were not drawn for; activations differ between images too."""
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    layers = [n.output[0] for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in layers)
    (source,) = model.graph.input
    size = source.type.tensor_type.shape.dim[2].dim_value
    x = np.random.default_rng(9).standard_normal((2, 3, size, size), np.float32)
    output, *activations = run(model, {source.name: x})
    sizes = [float(np.sqrt(np.mean(np.square(y)))) for y in activations]
    assert min(sizes) > 0.1
    assert max(sizes) < 10
    assert np.max(np.abs(output[0] - output[1])) > 0.02 * np.max(np.abs(output))


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    names = ("mobilenet_v2", "shufflenet")
    arguments = [str(tmp_path), "--only", ",".join(names), "--size", "36"]
    subprocess.run([sys.executable, str(TOOLS / "make_models.py"), *arguments], check=True, capture_output=True)
    for name in names:
        data_ = (tmp_path / f"{name}.onnx").read_bytes()
        assert data_ == make(name, 36).SerializeToString(deterministic=True)
        assert data_ != make(name, 36, seed=1).SerializeToString(deterministic=True)


def test_every_network_is_listed_and_tested() -> None:
    arguments = [sys.executable, str(TOOLS / "make_models.py"), "--list"]
    listed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.split()
    assert listed == list(NETWORKS) == list(SMALL)
    assert len(listed) == len(BUILT) + len(light.FILES) == 16


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("alexnet", 32, "alexnet cannot be built for 32 x 32: "),
        ("vgg19", 16, "vgg19 cannot be built for 16 x 16: "),
        ("unet", 40, "unet cannot be built for 40 x 40: four poolings need a multiple of 16"),
        ("resnet18", 0, "resnet18 cannot be built for 0 x 0: "),
        ("unet", (48, 40), "unet cannot be built for 48 x 40: four poolings need a multiple of 16"),
        ("vgg16", (64, 16), "vgg16 cannot be built for 64 x 16: "),
        ("lenet6", 32, "there is no network 'lenet6'; there are resnet18, vgg16, "),
    ],
)
def test_impossible_networks_are_refused(name: str, size: Size, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(name, size)


@pytest.mark.parametrize("name", ["unet", "mobilenet_v3_large", "inception_v1"])
def test_an_image_need_not_be_square(name: str) -> None:
    model = make(name, (64, 96))
    (source,) = model.graph.input
    assert [dim.dim_value for dim in source.type.tensor_type.shape.dim] == [0, 3, 64, 96]
    x = np.random.default_rng(9).standard_normal((1, 3, 64, 96), np.float32)
    (output,) = run(model, {source.name: x})
    assert output.shape == ((1, 2, 64, 96) if name == "unet" else (1, 1000))


def test_make_models_writes_nothing_where_a_name_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "make_models.py"), str(tmp_path), "--only", "squeezenet,lenet6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "there is no network 'lenet6'" in done.stderr


# ---- the tool that checks at full size ------------------------------------------------------------------------------


def test_check_networks_writes_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, rows = tmp_path / "table.md", tmp_path / "rows.json"
    options = ["--only", "squeezenet,alexnet", "--size", "32", "--batches", "2", "--numpy"]
    files = ["--markdown", str(table), "--json", str(rows)]
    monkeypatch.setattr(sys, "argv", ["check_networks.py", *options, *files])
    assert check_networks.main() == 1  # 32 pixels are too few for AlexNet
    good, bad = json.loads(rows.read_text())
    assert good["reason"] == ""
    assert 0 < good["differences"]["2"] <= TOLERANCE
    assert 0 < good["numpy_difference"] <= TOLERANCE
    assert good["nodes"] == 66 > good["kernels"] > 0
    one_pixel = 2 * (48 * 192 + 64 * 256)  # of filters of 3 x 3, whose other eight taps meet padding alone
    assert good["library_bytes"] > (1_235_496 - 8 * one_pixel) * 4
    assert good["arena_bytes"] > 2 * 64 * 15 * 15 * 4  # the first convolution's output
    assert min(good["cold_seconds"], good["cached_seconds"]) > 0
    assert "alexnet cannot be built for 32 x 32" in bad["reason"]
    head, _, first, second, *_ = table.read_text().removeprefix(check_networks.PAGE).splitlines()
    assert "| difference, batch 2 | to NumPy |" in head
    assert first.startswith("| squeezenet | 2x3x32x32 | 66 → ")
    assert second.startswith("| alexnet | ") and bad["reason"] in second
    assert "alexnet: FAILED: " in capsys.readouterr().out


def test_check_networks_reports_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Runner.run

    def off(self: Runner, names: Any, feeds: dict[str, Array]) -> list[Array]:
        first, *rest = answer(self, names, feeds)
        first.flat[7] += 2 * TOLERANCE * np.max(np.abs(first))
        return [first, *rest]

    monkeypatch.setattr(Runner, "run", off)
    row = check("squeezenet", 32, (1,), tmp_path)
    assert row.reason.startswith("it differs from onnxruntime at batch 1 by 2.0e-04 of the largest output; allowed is ")
    assert "| squeezenet | it differs from onnxruntime" in markdown([row], (1,))


def test_difference_is_relative_and_sees_what_is_not_finite() -> None:
    wanted = [np.array([1.0, -8.0]), np.array([0.5])]
    assert difference([np.array([1.0, -7.0]), np.array([0.5])], wanted) == 1 / 8
    assert difference([np.array([1.0, -8.0]), np.array([0.25])], wanted) == 1 / 2
    assert difference([np.array([np.nan, -8.0]), np.array([0.5])], wanted) == np.inf


def test_check_networks_names_one_unsupported_node_and_counts_the_others() -> None:
    found = check_networks.one_sentence(UnsupportedError("m.onnx", ["node 'a' (X): no", "node 'b' (Y): no"]))
    assert found == "node 'a' (X): no (and 1 more nodes)"


# ---- photographs ----------------------------------------------------------------------------------------------------

# Photographs that scikit-image's wheel holds, and the ImageNet class of each (ILSVRC 2012, in the order of the model
# zoo). Of the three classes of house cats, 281 "tabby", 282 "tiger cat" and 285 "Egyptian cat", onnxruntime gives
# Chelsea the last (0.58, all three 0.99), the espresso 0.99 and the photographer's tripod 0.92.
PHOTOGRAPHS = {
    "chelsea": (285, "Egyptian cat"),
    "coffee": (967, "espresso"),
    "camera": (872, "tripod"),
}
MEAN_BGR = (104, 117, 123)  # of ImageNet, as Caffe subtracts it


@pytest.fixture(scope="module")
def squeezenet(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    path = tmp_path_factory.mktemp("squeezenet") / "squeezenet.so"
    tvmcnn.compile(test_data / "models" / "squeezenet-fp32-cast" / "model.onnx", output=path, verify=False)
    return tvmcnn.load(path)


def preprocessed(photograph: Array) -> Array:
    """The centre of 224 x 224 of a photograph whose shorter side becomes 224, blue first, minus the mean."""
    image = Image.fromarray(photograph).convert("RGB")
    scale = 224 / min(image.size)
    width, height = (round(extent * scale) for extent in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    pixels = np.asarray(image, np.float32)[..., ::-1] - np.array(MEAN_BGR, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photograph_is_named(name: str, squeezenet: Runner) -> None:
    wanted, label = PHOTOGRAPHS[name]
    scores = squeezenet(preprocessed(getattr(data, name)())).ravel()
    assert scores.shape == (1000,)
    assert int(np.argmax(scores)) == wanted, label
    assert scores[wanted] > 0.5
