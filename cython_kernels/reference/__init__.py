"""Every op of docs/kernels.md in plain numpy: the specification that the compiled kernels are compared with.

`cktrain.cython_kernels.load("reference")` returns them as a kernel set. One file per theme.

Arrays are fp32, fp64 or bf16. In fp32 and fp64 the arithmetic is done in the arrays' own type; bf16 arrays
are widened to fp32, computed, and rounded once, when the result is stored. Long sums over rows are carried in
fp64, so that the reference is the more exact side of every comparison.
"""
