"""What the C of libraries for CPUs and for GPUs has in common: the header, and tensors that come through tvm-ffi."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tvmcnn.codegen.signature import Signature
from tvmcnn.network import Program, Tensor, dims
from tvmcnn.version import __version__

_DLPACK_CODES = {"i": "kDLInt", "u": "kDLUInt", "f": "kDLFloat", "b": "kDLBool"}  # by NumPy's kind


def header(programs: Sequence[Program], target: str, declarations: Callable[[Program], str]) -> str:
    """The C header of a compiled network, for programs that link the library; one section a size."""
    name = programs[0].network.name
    sections = "\n".join(map(declarations, programs))
    return f"""/* {name}: a CNN compiled by tvmcnn for {target}. */
#ifndef {name.upper()}_H_
#define {name.upper()}_H_

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

{facts_declared(name)}
{sections}
#ifdef __cplusplus
}}
#endif

#endif /* {name.upper()}_H_ */
"""


def facts_exported(name: str) -> tuple[str, ...]:
    """Symbols that `facts` defines."""
    return f"{name}_version", f"{name}_message"


def facts(name: str, target: str) -> str:
    """C of what a library says of itself and of the numbers that its calls return."""
    return f"""TVMCNN_PUBLIC const char {name}_version[] = "{name} for {target} by tvmcnn {__version__}";

TVMCNN_PUBLIC const char *{name}_message(int32_t status) {{
  return tvmcnn_message(status);
}}
"""


def facts_declared(name: str) -> str:
    """C declarations of the symbols that `facts` defines."""
    return f"""extern const char {name}_version[]; /* {name} for …, by tvmcnn {__version__} */
const char *{name}_message(int32_t status); /* what a call returned, in words */
"""


def shapes(signature: Signature) -> str:
    """Lines of a comment: each input and output with its dtype and shape."""
    words = {tensor.name: word for word, tensor in signature.tensors}

    def counted(tensor: Tensor) -> str:
        return "".join(f"; along axis {axis} the first *{words[name]} count" for axis, name in tensor.counts)

    return "\n".join(
        f" *   {word}: {tensor.dtype}, {dims(tensor.shape)}, C-contiguous{counted(tensor)}"
        for word, tensor in signature.tensors
    )


def sizes(signature: Signature) -> str:
    """The macros with the elements of each input and output."""
    upper = signature.name.upper()
    return "\n".join(
        f"#define {upper}_{word.upper()}_SIZE {tensor.size} /* elements */" for word, tensor in signature.tensors
    )


def tensors_read(signature: Signature, device: str, to: Callable[[int, str], str], where: str = "") -> list[str]:
    """Lines of C that put the data of each argument `to` its place, or raise what it must be.

    `device` is DLPack's kind, as C; `where` says it in words.
    """
    lines = []
    for position, (word, tensor) in enumerate(signature.tensors):
        shape, place = ", ".join(map(str, tensor.shape)) or "1", to(position, word)
        wanted = f"C-contiguous {tensor.dtype} {dims(tensor.shape)}{where}"
        kind = f"{_DLPACK_CODES[np.dtype(tensor.dtype).kind]}, {8 * tensor.item_bytes}"
        lines += [
            f"  static const int64_t tvmcnn_shape_{word}[] = {{{shape}}};",
            f"  {place} = tvmcnn_data(&args[{position}], {device}, {kind}, {len(tensor.shape)}, tvmcnn_shape_{word});",
            f"  if ({place} == NULL)",
            f'    return tvmcnn_raise("ValueError", "\'{word}\' must be {wanted}");',
        ]
    return lines
