"""Generate: scheduled PrimFuncs become object code, and object code one shared library with a C ABI."""
