"""The documentation: the commands of its pages run and print what the pages say; the site builds without a warning."""

from __future__ import annotations

import re
from pathlib import Path

import build_docs
import pytest
from data import DOCS, ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", build_docs.PAGES)
def test_the_commands_of_a_page(name: str, tmp_path: Path) -> None:
    assert build_docs.check(DOCS / name, tmp_path) == []


def test_another_word_is_seen(tmp_path: Path) -> None:
    """Numbers may differ, and hashes; words may not, nor may a block fail."""
    page = tmp_path / "page.md"
    page.write_text("```sh\necho 12 ms of 0123456789abcdef01\n```\n\n```text\n34.5 ms of fedcba987654321001\n```\n")
    assert build_docs.check(page, tmp_path) == []
    page.write_text("```python\nx = 3\n```\n\n```python\nprint(x, 'right')\n```\n\n```text\n3 wrong\n```\n")
    assert [line for line in build_docs.check(page, tmp_path) if line[0] in "+-"][2:] == ["-# wrong", "+# right"]
    build_docs.update(page, tmp_path)
    assert page.read_text().endswith("```text\n3 right\n```\n")
    page.write_text("```sh\nfalse\n```\n")
    with pytest.raises(RuntimeError, match="this block fails, status 1"):
        build_docs.check(page, tmp_path)


def test_the_site(tmp_path: Path) -> None:
    build_docs.build(tmp_path / "site")
    tutorial = (tmp_path / "site" / "tutorial.html").read_text()
    assert "vfmadd231ps" in tutorial
    for name in re.findall(r"images/([\w.-]+)", (DOCS / "tutorial.md").read_text()):
        assert (tmp_path / "site" / "_images" / name).stat().st_size > 1000


def test_pages_link_to_what_there_is() -> None:
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_name_files_that_there_are() -> None:
    """Source files in backquotes, by their place in the repository, in tvmcnn/, or in docs/rules.md's own words."""
    root = ROOT
    for page in (root / "README.md", DOCS / "how-it-works.md", DOCS / "contributing.md", DOCS / "rules.md"):
        for name in re.findall(r"`([\w/-]+(?:/|\.py))`", page.read_text()):
            found = [folder for folder in (root, root / "tvmcnn", root / "tools") if (folder / name).exists()]
            found += list((root / "tvmcnn").rglob(name)) if name.endswith(".py") else []
            assert found, f"{page.name}: {name}"
