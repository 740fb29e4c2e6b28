"""Which type each tensor of a GGUF file has, as llama.cpp's quantizer chooses it (src/llama-quant.cpp).

    f32 f16 bf16 q8_0     every matrix
    q4_0                  the head (a tied embedding too) Q6_K
    q4_k                  Q4_K_M: the head Q6_K; values and down projections Q6_K in the first and last eighth of the
                          layers and in every third between them; fused queries, keys and values Q5_K
    q6_k                  every matrix
    mxfp4                 embedding and head Q8_0

Vectors are F32. A matrix whose rows are no whole number of blocks has a type of smaller blocks, or F16.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

Kind = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "mxfp4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FILE_TYPES: dict[Kind, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q8_0": 7,
    "q4_k": 15,
    "q6_k": 18,
    "bf16": 32,
    "mxfp4": 38,
}
"""general.file_type."""
_BLOCKS = {"Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "Q8_0": 32, "Q4_0": 32, "Q5_0": 32, "Q5_1": 32, "MXFP4": 32}
"""Values of a block."""
_SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type whose blocks are too large."""


def wanted_type(name: str, shape: tuple[int, ...], kind: Kind, layers: int, tied: bool) -> str:
    """The type of a tensor, by GGUF's name, where its rows are whole blocks of it."""
    if len(shape) == 1:
        return "F32"
    is_head = name == "output.weight" or (tied and name == "token_embd.weight")
    if kind == "mxfp4" and (is_head or name == "token_embd.weight"):
        return "Q8_0"
    if kind in ("q4_0", "q4_k") and is_head:
        return "Q6_K"
    if kind == "q4_k" and (match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)):
        if match[2] == "attn_qkv":
            return "Q5_K"
        if match[2] in ("attn_v", "ffn_down") and _has_more_bits(int(match[1]), layers):
            return "Q6_K"
    return kind.upper()


def fitting_type(wanted: str, width: int) -> str:
    """The wanted type, or what takes its place in rows of `width` values."""
    if width % _BLOCKS.get(wanted, 1) == 0:
        return wanted
    smaller = _SMALLER.get(wanted, "F16")
    return smaller if width % _BLOCKS.get(smaller, 1) == 0 else "F16"


def _has_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
