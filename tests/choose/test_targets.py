"""Targets: facts of instruction sets, one file each, that choosing and code generation read."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest

from tvmcnn.codegen.cpu import features
from tvmcnn.codegen.templates import NATIVE, filled
from tvmcnn.targets import TARGETS, Target, resolve_several
from tvmcnn.targets.x86_64_v3 import supports


@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_lanes_are_of_an_element_type(target: Target) -> None:
    counts = {dtype: target.lanes(dtype) for dtype in ("float64", "float32", "float16", "int8", "bool")}
    size = target.vector_bytes
    assert counts == {
        "float64": size // 8, "float32": size // 4, "float16": size // 2, "int8": size, "bool": size
    }  # fmt: skip


def test_the_best_class_is_first() -> None:
    found = resolve_several("x86-64-v3,x86-64-v4")
    assert [target.name for target in found] == ["x86-64-v4", "x86-64-v3"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=str)
def test_c_asks_for_what_cpuinfo_lists(target: Target, tmp_path: Path) -> None:
    """The library's own test of the CPU agrees with Python's, but for what no C can ask."""
    assert len(target.cpu_tests) == len(target.features)
    main = f"int main(void) {{ return {features.asked(target)}() != 0; }}"
    (tmp_path / "ask.c").write_text(f"{features.source(target)}\n{main}\n")
    subprocess.run(["cc", f"-I{NATIVE}", "-o", "ask", "ask.c"], cwd=tmp_path, check=True)
    lacks = subprocess.run([tmp_path / "ask"], check=False).returncode
    asked = [name for name, test in zip(target.features, target.cpu_tests, strict=True) if test]
    assert bool(lacks) == bool(set(asked) & set(target.missing()))


def test_the_words_that_ask_for_a_feature() -> None:
    assert supports("avx2") == '__builtin_cpu_supports("avx2")'
    assert supports(None) == ""


def test_a_feature_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of CPUs with one feature more than any has."""
    wide = TARGETS["x86-64-v4"]
    beyond = dataclasses.replace(wide, features=(*wide.features, "avx4096"), cpu_tests=(*wide.cpu_tests, "0"))
    assert beyond.missing()[-1] == "avx4096"
    assert f"!0 * {1 << len(wide.features)}u;" in features.source(beyond)


def test_templates_take_their_own_names() -> None:
    with pytest.raises(ValueError, match=r"chain\.c\.in names .*chain, .*other, "):
        filled("chain.c.in", name="net", other=1)
