"""Features: C that asks the CPU for the instructions that a library uses, the same for every network of a target.

uint32_t tvmcnn_missing_v3(void)    0 where nothing is missing, else bit i: the CPU lacks Target.features[i]
"""

from __future__ import annotations

from tvmcnn.targets import Target


def asked(target: Target) -> str:
    """The name of the C function that `source` defines."""
    return f"tvmcnn_missing_{target.short}"


def source(target: Target) -> str:
    """A C file of one function: which features the CPU lacks, or the system keeps no registers for."""
    included = f'#include "{target.c_header}"\n' if target.c_header else ""
    bits = [f"!{test} * {1 << bit}u" for bit, test in enumerate(target.cpu_tests) if test]
    missing = " |\n         ".join(bits)
    return f"""#include <stdint.h>
{included}
uint32_t {asked(target)}(void) {{
  {target.cpu_init}
  return {missing};
}}
"""
