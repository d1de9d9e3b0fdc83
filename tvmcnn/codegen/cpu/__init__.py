"""Code for CPUs: object code by LLVM, and the C that chains it."""
