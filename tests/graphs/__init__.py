"""Random graphs: hypothesis draws valid ONNX models of all operators and types, and each is compiled and compared.

`draft` is a model in the making, `elementwise`, `moves`, `windows` and `sums` say how each operator may be added to it,
`models` draws whole ones, `worker` compiles and runs one in a process that may die, `judge` compares, `explore` repeats
that and shrinks what fails, and `plants` are the faults that must be found.
"""
