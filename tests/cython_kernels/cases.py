"""One row per op of docs/kernels.md: how to draw a call, make it on any kernel set, and judge what it wrote.

    case = CASES["rms_norm"]
    shape = data.draw(case.shapes)                      # hypothesis; or one of case.examples
    inputs = case.draw(np.random.default_rng(seed), shape, np.float32)
    got = case.run(load("avx2"), inputs)                # {"y": ..., "rstd": ..., "dx": ..., "dw": ...}
    want = case.run(load("reference"), convert(inputs, np.float64))
    for name in want:
        assert case.error(name, got[name], want[name], inputs) <= case.tolerance(name, np.float32)

Conventions of the dictionaries:

- An input has its name in the signature; "dy" is the cotangent of the output "y".
- "dw_before" is what the output "dw" holds before the call, for outputs that are added to. Outputs that are
  overwritten hold NaN before the call.
- `run` never changes its inputs: where an op may work in place (`in_place`), it does so on a copy.
- A strided argument is drawn as a view of a wider array, and its output or gradient is written into one.

Sizes are drawn from 1, primes and numbers around the vector widths; rows may be zero. Letters as in
docs/kernels.md: N rows, C, I, O features, B sequences, S queries, T keys, H and K heads, D head size,
V vocabulary.
"""

from __future__ import annotations

from case import SEEDS, Case, Inputs, Outputs, Shape, convert, f32_of, relative_error
from cases_attention import Attention
from cases_attention_cached import AttentionCached
from cases_attention_options import AttentionMerge, AttentionOptions
from cases_layers import Embedding, LayerNorm, Linear, Matmul, RmsNorm, Rope, SymmetricProduct
from cases_pointwise import Add, Cast, Dropout, Geglu, Gelu, Softcap, Swiglu
from cases_quantized import Quantized
from cases_training import AdamW, AdamW8bit, CappedCrossEntropy, CrossEntropy, Sgd, SumOfSquares

__all__ = ["CASES", "SEEDS", "Case", "Inputs", "Outputs", "Shape", "convert", "f32_of", "relative_error"]

_TABLE = (
    Linear(),
    Matmul(),
    SymmetricProduct(),
    Quantized(),
    Embedding(),
    RmsNorm(),
    LayerNorm(),
    Rope(),
    Attention(),
    AttentionOptions(),
    AttentionMerge(),
    AttentionCached(),
    Swiglu(),
    Geglu(),
    Gelu(),
    Add(),
    Softcap(),
    Dropout(),
    CrossEntropy(),
    CappedCrossEntropy(),
    AdamW(),
    AdamW8bit(),
    Sgd(),
    SumOfSquares(),
    Cast(),
)
CASES: dict[str, Case] = {case.name: case for case in _TABLE}
