"""The table of ops: one row each. Reference, doors, C list, stub and docs/kernels.md are held against it by a test.

Where a row stands in the table, the profiler counts its FLOPs and bytes, the plan predicts its time, and
`python -m cktrain.cython_kernels.ops_text` writes it into docs/kernels.md and into the stub of a kernel set. Doors are
written by hand: they check strides and which arrays may be the same, which a table could only say as a language.

Outputs come first, then inputs, then keyword arguments. Letters are those of docs/kernels.md.
"""

from __future__ import annotations

from typing import Any

from cktrain.cython_kernels.op import REQUIRED, Array, Number, Op


def _write(name: str, shape: str, dtype: str = "real", **more: Any) -> Array:
    return Array(name, "write", shape, dtype, **more)


def _update(name: str, shape: str, dtype: str = "f32", **more: Any) -> Array:
    return Array(name, "update", shape, dtype, **more)


def _accumulate(name: str, shape: str, dtype: str = "real", **more: Any) -> Array:
    return Array(name, "accumulate", shape, dtype, **more)


def _read(name: str, shape: str, dtype: str = "real", default: Any = REQUIRED, **more: Any) -> Array:
    return Array(name, "read", shape, dtype, default=default, **more)


def _integer(name: str, default: Any = REQUIRED) -> Number:
    return Number(name, int, default)


def _number(name: str, default: Any = REQUIRED) -> Number:
    return Number(name, float, default)


def _format() -> Number:
    """How w is stored: a name of block_formats.py."""
    return Number("format", str)


def _flag(name: str, default: Any = REQUIRED) -> Number:
    return Number(name, bool, default)


_QUERY, _KEY, _ROW = "B,S,H,D", "B,T,K,D", "B,H,S"
_ATTENTION_OPTIONS = (
    _number("scale"),
    _integer("window", 0),
    _read("first", "B,S", "i32", None, packed=True),
    _read("end", "B,S", "i32", None, packed=True),
    _flag("causal", True),
    _number("softcap", 0.0),
    _read("sinks", "H", "f32", None),
    _read("bias", "B,H,S,T", "f32", None),
)
_NORMED, _STATISTIC, _WEIGHT = "N,C | N,H,D", "N | N,H", "C | D"

_TABLE = (
    Op(
        "linear_forward",
        "linear",
        "y = x · wᵀ + bias + residual; residual may be y itself; y and residual are real, or both f32",
        (
            _write("y", "N,O", "real or f32"),
            _read("x", "N,I"),
            _read("w", "O,I"),
            _read("bias", "O", "f32", None),
            _read("residual", "N,O", "real or f32", None),
        ),
        flops="2 N I O",
        kernels=("gemm", "gemm_f32"),
    ),
    Op(
        "linear_backward_input",
        "linear",
        "dx = or += dy · w",
        (_accumulate("dx", "N,I"), _read("dy", "N,O"), _read("w", "O,I"), _flag("accumulate", False)),
        flops="2 N I O",
        kernels=("gemm",),
    ),
    Op(
        "linear_backward_weight",
        "linear",
        "dw = or += dyᵀ · x; dbias, or None, = or += the sum of the rows of dy",
        (
            _accumulate("dw", "O,I", "f32"),
            _accumulate("dbias", "O", "f32", optional=True),
            _read("dy", "N,O"),
            _read("x", "N,I"),
            _flag("accumulate", True),
        ),
        flops="2 N I O",
        kernels=("gemm_f32",),
    ),
    Op(
        "matmul",
        "linear",
        "out = or += op(a) · op(b), op transposes where asked to",
        (
            _accumulate("out", "M,N"),
            _read("a", "M,K", transposed_by="transpose_a"),
            _read("b", "K,N", transposed_by="transpose_b"),
            _flag("transpose_a", False),
            _flag("transpose_b", False),
            _flag("accumulate", False),
        ),
        flops="2 M N K",
        kernels=("gemm",),
    ),
    Op(
        "symmetric_product",
        "linear",
        "out = scale · op(x) · op(x)ᵀ + shift on the diagonal (BLAS's syrk): one half is computed and mirrored",
        (
            _write("out", "M,M"),
            _read("x", "M,K", transposed_by="transpose"),
            _flag("transpose", False),
            Number("scale", float, 1.0),
            Number("shift", float, 0.0),
        ),
        flops="M M K",
    ),
    Op(
        "quantized_forward",
        "quantized",
        "linear_forward for a w in blocks of the format (block_formats.py), W bytes for the I values of a row",
        (
            _write("y", "N,O", "real or f32"),
            _read("x", "N,I"),
            _read("w", "O,W", "u8"),
            _format(),
            _read("bias", "O", "f32", None),
            _read("residual", "N,O", "real or f32", None),
        ),
        flops="2 N I O",
        kernels=("quantized_forward", "quantized_forward_f32"),
    ),
    Op(
        "quantized_forward_q8",
        "quantized",
        "quantized_forward of x rounded to 8 bits: 32 neighbours share a scale, and the largest magnitude is 127; the "
        "format's numbers must be integers",
        (
            _write("y", "N,O", "real or f32"),
            _read("x", "N,I"),
            _read("w", "O,W", "u8"),
            _format(),
            _read("bias", "O", "f32", None),
            _read("residual", "N,O", "real or f32", None),
        ),
        flops="2 N I O",
        kernels=("quantized_forward_q8", "quantized_forward_q8_f32"),
    ),
    Op(
        "quantized_backward_input",
        "quantized",
        "linear_backward_input for a w in blocks",
        (
            _accumulate("dx", "N,I"),
            _read("dy", "N,O"),
            _read("w", "O,W", "u8"),
            _format(),
            _flag("accumulate", False),
        ),
        flops="2 N I O",
    ),
    Op(
        "dequantize",
        "quantized",
        "y = the values of the rows of w that ids name; without ids, of all of them (then N = O)",
        (
            _write("y", "N,I"),
            _read("w", "O,W", "u8", moved="N,W"),
            _format(),
            _read("ids", "N", "i32", None),
        ),
    ),
    Op(
        "embedding_forward",
        "embedding",
        "y = table[ids]",
        (_write("y", "N,C"), _read("ids", "N", "i32"), _read("table", "V,C", moved="N,C")),
    ),
    Op(
        "embedding_backward",
        "embedding",
        "dtable[ids] += dy, in the order of the rows (deterministic)",
        (_update("dtable", "V,C", moved="N,C"), _read("dy", "N,C"), _read("ids", "N", "i32")),
    ),
    Op(
        "rms_norm_forward",
        "norm",
        "y = x · rstd · (w + offset) + residual, rstd = 1/sqrt(mean(x²) + eps) (Zhang & Sennrich 2019); offset 1 where "
        "weights are stored around 0 (Gemma); y may be x or the residual",
        (
            _write("y", _NORMED),
            _write("rstd", _STATISTIC, "f32", packed=True),
            _read("x", _NORMED),
            _read("w", _WEIGHT, "f32"),
            _number("eps"),
            _read("residual", _NORMED, default=None),
            _number("offset", 0.0),
        ),
    ),
    Op(
        "rms_norm_backward",
        "norm",
        "dx = or += the gradient of x, dw += that of w; dx may be dy or x",
        (
            _accumulate("dx", _NORMED),
            _update("dw", _WEIGHT),
            _read("dy", _NORMED),
            _read("x", _NORMED),
            _read("w", _WEIGHT, "f32"),
            _read("rstd", _STATISTIC, "f32", packed=True),
            _flag("accumulate", False),
            _number("offset", 0.0),
        ),
    ),
    Op(
        "layer_norm_forward",
        "norm",
        "y = (x - mean) · rstd · w + b + residual, rstd = 1/sqrt(variance(x) + eps) (Ba et al. 2016); y may be x or the "
        "residual",
        (
            _write("y", _NORMED),
            _write("mean", _STATISTIC, "f32", packed=True),
            _write("rstd", _STATISTIC, "f32", packed=True),
            _read("x", _NORMED),
            _read("w", _WEIGHT, "f32"),
            _read("b", _WEIGHT, "f32"),
            _number("eps"),
            _read("residual", _NORMED, default=None),
        ),
    ),
    Op(
        "layer_norm_backward",
        "norm",
        "dx = or += the gradient of x, dw and db += those of w and b; dx may be dy or x",
        (
            _accumulate("dx", _NORMED),
            _update("dw", _WEIGHT),
            _update("db", _WEIGHT),
            _read("dy", _NORMED),
            _read("x", _NORMED),
            _read("w", _WEIGHT, "f32"),
            _read("mean", _STATISTIC, "f32", packed=True),
            _read("rstd", _STATISTIC, "f32", packed=True),
            _flag("accumulate", False),
        ),
    ),
    Op(
        "rope_forward",
        "rope",
        "the pairs (i, i+D/2) of x, as Hugging Face pairs them, turned by the row's angle; y may be x",
        (
            _write("y", "N,H,D"),
            _read("x", "N,H,D"),
            _read("cos", "P,D/2", "f32", packed=True, moved="N,D/2"),
            _read("sin", "P,D/2", "f32", packed=True, moved="N,D/2"),
            _read("positions", "N", "i32"),
        ),
        kernels=("rope",),
    ),
    Op(
        "rope_backward",
        "rope",
        "the inverse rotation; dx may be dy",
        (
            _write("dx", "N,H,D"),
            _read("dy", "N,H,D"),
            _read("cos", "P,D/2", "f32", packed=True, moved="N,D/2"),
            _read("sin", "P,D/2", "f32", packed=True, moved="N,D/2"),
            _read("positions", "N", "i32"),
        ),
        kernels=("rope",),
    ),
    Op(
        "attention_forward",
        "attention",
        "o = softmax(softcap(scale · q kᵀ) + bias where visible) · v, lse = log-sum-exp of the scores and the head's sink; "
        "query s stands at key position p = T-S+s and sees the keys in [first, end), of these up to p if causal, and "
        "nearer than w > 0 to p with a `window` w; softcap c > 0: c · tanh(x/c); B, H, S of bias may be 1; a row that "
        "sees no key: o = 0, lse = -Inf",
        (
            _write("o", _QUERY),
            _write("lse", _ROW, "f32", packed=True),
            _read("q", _QUERY),
            _read("k", _KEY),
            _read("v", _KEY),
            *_ATTENTION_OPTIONS,
        ),
        flops="4 B H D pairs",
    ),
    Op(
        "attention_backward",
        "attention",
        "dq, dk, dv are overwritten, dsinks and dbias (of the shape of bias) added to; delta is workspace: the sum of do·o",
        (
            _write("dq", _QUERY),
            _write("dk", _KEY),
            _write("dv", _KEY),
            _write("delta", _ROW, "f32", packed=True),
            _read("do", _QUERY),
            _read("q", _QUERY),
            _read("k", _KEY),
            _read("v", _KEY),
            _read("o", _QUERY),
            _read("lse", _ROW, "f32", packed=True),
            *_ATTENTION_OPTIONS,
            _update("dsinks", "H", default=None),
            _update("dbias", "B,H,S,T", default=None),
        ),
        flops="10 B H D pairs",
    ),
    Op(
        "attention_merge",
        "attention",
        "o and lse over some keys become those over them and the keys of `part`; o is real or f32",
        (
            _update("o", _QUERY, "real or f32"),
            _update("lse", _ROW, packed=True),
            _read("part", _QUERY),
            _read("part_lse", _ROW, "f32", packed=True),
        ),
    ),
    Op(
        "attention_cached",
        "attention",
        "one new token of each sequence: k and v are put into the cache after `lengths` tokens, then "
        "o = softmax(softcap(scale · q keysᵀ)) · values over the tokens up to the new one, with a window w > 0 over the "
        "last w; token i stands in row i mod P of the cache, which is fp32 or bf16, whatever the others are",
        (
            _write("o", "B,H,D"),
            _update("keys", "B,P,K,D", "float"),
            _update("values", "B,P,K,D", "float"),
            _read("q", "B,H,D"),
            _read("k", "B,K,D"),
            _read("v", "B,K,D"),
            _read("lengths", "B", "i32", packed=True),
            _number("scale"),
            _integer("window", 0),
            _number("softcap", 0.0),
        ),
        flops="4 B H D P",
    ),
    Op(
        "swiglu_forward",
        "activation",
        "y = silu(gate) · up, gate_up = [gate, up] (Shazeer 2020)",
        (_write("y", "N,I"), _read("gate_up", "N,2I")),
    ),
    Op(
        "swiglu_backward",
        "activation",
        "dgate_up may be gate_up; when y, which may be dy, is given, it is written again (recomputed, so that it need not "
        "be saved)",
        (
            _write("dgate_up", "N,2I"),
            _read("dy", "N,I"),
            _read("gate_up", "N,2I"),
            _write("y", "N,I", default=None),
        ),
    ),
    Op(
        "geglu_forward",
        "activation",
        "y = gelu(gate) · up, gelu in its tanh form, gate_up = [gate, up] (Shazeer 2020)",
        (_write("y", "N,I"), _read("gate_up", "N,2I")),
    ),
    Op(
        "geglu_backward",
        "activation",
        "as swiglu_backward",
        (
            _write("dgate_up", "N,2I"),
            _read("dy", "N,I"),
            _read("gate_up", "N,2I"),
            _write("y", "N,I", default=None),
        ),
    ),
    Op(
        "gelu_forward",
        "activation",
        "y = x · Φ(x), tanh=True in its tanh form (Hendrycks & Gimpel 2016); y may be x",
        (_write("y", "N,C"), _read("x", "N,C"), _flag("tanh")),
    ),
    Op(
        "gelu_backward",
        "activation",
        "dx = dy · the derivative at x; dx may be dy",
        (_write("dx", "N,C"), _read("dy", "N,C"), _read("x", "N,C"), _flag("tanh")),
    ),
    Op(
        "add",
        "activation",
        "out = a + alpha · b, out may be either, a may be b",
        (_write("out", "N,C"), _read("a", "N,C"), _read("b", "N,C"), _number("alpha", 1.0)),
    ),
    Op(
        "softcap",
        "activation",
        "y = c · tanh(x / c), c > 0 (Gemma 2); y may be x. The slope is 1 - (y / c)²",
        (_write("y", "N,C"), _read("x", "N,C"), _number("c")),
    ),
    Op(
        "dropout",
        "activation",
        "out = or += x / (1 - p) where the hash of (the row's key, first_column + c) is p · 2^32 or more, else 0 "
        "(Srivastava et al. 2014); out may be x. The backward is the same call for dy",
        (
            _accumulate("out", "N,C"),
            _read("x", "N,C"),
            _read("keys", "N", "i32"),
            _number("p"),
            _integer("first_column", 0),
            _flag("accumulate", False),
        ),
    ),
    Op(
        "cross_entropy_forward",
        "cross_entropy",
        "per row: maximum, sum of exp(l - maximum), the target's logit (0 when the target is not in [vocab_start, "
        "vocab_start+V))",
        (
            _write("row_max", "N", "f32"),
            _write("row_sum", "N", "f32"),
            _write("target_logit", "N", "f32"),
            _read("logits", "N,V"),
            _read("targets", "N", "i32"),
            _integer("vocab_start", 0),
        ),
    ),
    Op(
        "cross_entropy_backward",
        "cross_entropy",
        "dlogits = softmax - onehot, rows of ignored targets zero; unnormalised; dlogits may be logits, or bf16 in the "
        "first half of each row of f32 logits; softcap c > 0: the gradient of the x of which the logits are softcap(x)",
        (
            _write("dlogits", "N,V"),
            _read("logits", "N,V", "real or f32"),
            _read("lse", "N", "f32"),
            _read("targets", "N", "i32"),
            _integer("ignore_index", -100),
            _integer("vocab_start", 0),
            _number("softcap", 0.0),
        ),
        kernels=("cross_entropy_backward", "cross_entropy_backward_from_f32"),
    ),
    Op(
        "adamw_step",
        "optimizer",
        "Loshchilov & Hutter 2019; grad is multiplied by grad_scale first; step counts from 1; `copy` receives the new "
        "param in the same pass over memory",
        (
            _update("param", "n"),
            _update("m", "n"),
            _update("v", "n"),
            _read("grad", "n", "f32"),
            _number("lr"),
            _number("beta1"),
            _number("beta2"),
            _number("eps"),
            _number("weight_decay"),
            _integer("step"),
            _number("grad_scale"),
            _write("copy", "n", "bf16", default=None),
        ),
    ),
    Op(
        "adamw_8bit_step",
        "optimizer",
        "adamw_step with moments of a byte each (dynamic_map.py), of which G blocks of 256 have a scale; they are rounded "
        "after the new param is computed",
        (
            _update("param", "n"),
            _update("m", "n", "u8"),
            _update("m_scale", "G"),
            _update("v", "n", "u8"),
            _update("v_scale", "G"),
            _read("grad", "n", "f32"),
            _number("lr"),
            _number("beta1"),
            _number("beta2"),
            _number("eps"),
            _number("weight_decay"),
            _integer("step"),
            _number("grad_scale"),
            _write("copy", "n", "bf16", default=None),
        ),
    ),
    Op(
        "sgd_step",
        "optimizer",
        "decay is coupled, as in PyTorch; momentum_buffer is zero at first",
        (
            _update("param", "n"),
            _update("momentum_buffer", "n"),
            _read("grad", "n", "f32"),
            _number("lr"),
            _number("momentum"),
            _number("weight_decay"),
            _flag("nesterov"),
            _number("grad_scale"),
        ),
    ),
    Op(
        "sum_of_squares",
        "optimizer",
        "accumulated in fp64 in a fixed order; Inf or NaN in x give Inf or NaN",
        (_read("x", "...", packed=True),),
        returns=float,
    ),
    Op(
        "cast",
        "cast",
        "dst = src, round to nearest even; the same type copies",
        (_write("dst", "...", "float", packed=True), _read("src", "...", "float", packed=True)),
        kernels=("cast_to_f32", "cast_to_bf16"),
    ),
    Op("zero", "cast", "x = 0", (_write("x", "...", "f32", packed=True),)),
)

OPS: dict[str, Op] = {op.name: op for op in _TABLE}
"""Every op by its name, in the order of docs/kernels.md."""
