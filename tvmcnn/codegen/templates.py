"""Templates: the C and CUDA C++ around the kernels, as files of native/ with $names for what a network decides."""

from __future__ import annotations

import string
from pathlib import Path

NATIVE = Path(__file__).parent / "native"


def filled(file: str, **words: object) -> str:
    """The text of a template with its names replaced. Raises ValueError where they are not those of the template."""
    template = string.Template((NATIVE / file).read_text())
    if (wanted := set(template.get_identifiers())) != set(words):
        raise ValueError(f"{file} names {', '.join(sorted(wanted ^ set(words)))}: either alone has them")
    return template.substitute(words)
