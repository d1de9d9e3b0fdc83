"""Generate: the steps of programs become code, and code one shared library with a C ABI.

`cpu/` and `cuda/` generate for their machines; what both need is here and in jobs.py, signature.py and entries.py.
"""
