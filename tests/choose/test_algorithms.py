"""The tables that know algorithms and rules know the same ones, and choosing takes no other."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from data import LENET5
from models import make

from tvmcnn import ops
from tvmcnn.algorithms import ALGORITHMS
from tvmcnn.choose.records import load_records
from tvmcnn.configs import CONFIGS
from tvmcnn.fuse import fuse
from tvmcnn.fuse.passes import simplified
from tvmcnn.importer import import_model
from tvmcnn.network import Choice
from tvmcnn.ops import unfused
from tvmcnn.platforms import platform_of
from tvmcnn.report.plots import COLOURS
from tvmcnn.schedule import cuda, x86
from tvmcnn.targets import resolve_several


def test_every_algorithm_has_an_expression() -> None:
    assert set(ops.EXPRESSIONS) == {name for name, how in ALGORITHMS.items() if how.cpu or how.cuda}


def test_every_rule_has_an_algorithm() -> None:
    on_cpus = {rule for how in ALGORITHMS.values() for rule in how.cpu}
    on_gpus = {rule for how in ALGORITHMS.values() for rule in how.cuda}
    assert set(x86.RULES) == on_cpus | {"fallback"}
    assert set(cuda.RULES) == on_gpus | {"fallback"}
    assert set(CONFIGS) <= on_cpus | on_gpus


def test_every_packed_weight_can_be_read_back() -> None:
    """An algorithm that packs a weight has the inverse, by which open variants read it; GPUs have no open variants.

    Nor has "recurrent", with which nothing fuses.
    """
    packed = {name for name, how in ALGORITHMS.items() if how.cpu and how.weight is not None} - {"recurrent"}
    assert packed == {*unfused.TAPS, "dense", "dense_bf16", "dense_images"}


def test_colours_are_of_algorithms() -> None:
    assert set(COLOURS) <= set(ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "x86-64-v4-bf16", "cuda:sm_80"])
@pytest.mark.parametrize("name", ["lenet5", "mobilenet_v3_large", "densenet121", "unet"])
def test_choices_are_in_the_table(name: str, target: str, tmp_path: Path) -> None:
    path = LENET5
    if name != "lenet5":
        path = tmp_path / "network.onnx"
        onnx.save(make(name, 64), path)
    network = simplified(import_model(path))
    (machine,) = resolve_several(target)
    precision = "bf16" if target.endswith("bf16") else "fp32"
    for exact in (False, True):
        choices = platform_of([machine]).choose(
            network, fuse(network), machine, load_records(machine, own=False), precision, exact=exact
        )
        assert [choice.name for choice in choices if not fits(choice, target)] == []
        assert not exact or all(ALGORITHMS[choice.algorithm].exact for choice in choices)


def fits(choice: Choice, target: str) -> bool:
    how = ALGORITHMS[choice.algorithm]
    rules = how.cuda if target.startswith("cuda") else tuple(how.cpu)
    return choice.is_view or choice.rule in (*rules, "fallback")
