"""Every op of docs/kernels.md in plain numpy: the specification that the compiled kernels are compared with.

The package is itself a kernel set: `cktrain.cython_kernels.load("reference")` returns it. One file per theme.

Arrays are fp32, fp64 or bf16. In fp32 and fp64 the arithmetic is done in the arrays' own type; bf16 arrays
are widened to fp32, computed, and rounded once, when the result is stored. Long sums over rows are carried in
fp64, so that the reference is the more exact side of every comparison.
"""

from .activation import add, gelu_backward, gelu_forward, swiglu_backward, swiglu_forward
from .attention import attention_backward, attention_forward
from .embedding import embedding_backward, embedding_forward
from .linear import linear_backward_input, linear_backward_weight, linear_forward, matmul
from .loss import cross_entropy_backward, cross_entropy_forward
from .norm import layer_norm_backward, layer_norm_forward, rms_norm_backward, rms_norm_forward
from .optimizer import adamw_step, cast, sgd_step, sum_of_squares, zero
from .rope import rope_backward, rope_forward

__all__ = [
    "adamw_step",
    "add",
    "attention_backward",
    "attention_forward",
    "cast",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "isa",
    "label",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "matmul",
    "num_threads",
    "rms_norm_backward",
    "rms_norm_forward",
    "rope_backward",
    "rope_forward",
    "set_num_threads",
    "sgd_step",
    "sum_of_squares",
    "swiglu_backward",
    "swiglu_forward",
    "why",
    "zero",
]

isa = label = "reference"
why = ""

_threads = 1


def set_num_threads(n: int) -> None:
    """Remember `n`, and change nothing: numpy's BLAS takes its number of threads from the environment."""
    global _threads
    if n < 1:
        raise ValueError(f"[kernels.set_num_threads] n is {n}, at least 1 is needed. Pass a positive number.")
    _threads = n


def num_threads() -> int:
    """Return what `set_num_threads` was given last, 1 before any call."""
    return _threads
