"""GGUF architectures that are computed here: their model type and their tensors' names, both ways.

    model.layers.3.self_attn.q_proj.weight     blk.3.attn_q.weight

llama.cpp pairs neighbouring numbers of a head in the rotary embedding of `llama`, and the two halves in the others', as
Hugging Face does everywhere. So for `llama`, `granite` and `smollm3` each head's rows of the query and key projections
stand in another order: Hugging Face's row h·D + p·D/2 + i (p is 0 or 1) is row h·D + 2i + p there.

Gemma's norms multiply by 1 + weight; there the sum is stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_SHARED = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PRE_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_AROUND_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


@dataclass(frozen=True)
class Architecture:
    """One value of general.architecture."""

    name: str
    modules: Mapping[str, str]
    """Of a block: Hugging Face's module and theirs."""
    permuted: bool = False
    """Whether the rows of the query and key projections stand in llama.cpp's order."""
    untied: bool = False
    """Whether llama.cpp needs a head of its own, so that a tied one is written twice."""
    biases: frozenset[str] = frozenset()
    """Hugging Face's modules that may have one; llama.cpp would ignore others."""
    rope_kinds: tuple[str, ...] = ("linear",)
    """The rotary scalings that are written for it (`rope_keys.py`)."""
    windows: bool = False
    """Whether it has sliding windows, in the layers that a list of its keys names."""
    norms_hold_sum: bool = False
    """Whether norms store 1 + weight."""

    def theirs(self, name: str) -> str:
        """Hugging Face's name of a tensor to GGUF's. KeyError for one that the architecture has not."""
        module, _, part = name.rpartition(".")
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        return (
            f"{_OUTSIDE[module]}.{part}"
            if match is None
            else f"blk.{match[1]}.{self.modules[match[2]]}.{part}"
        )

    def ours(self, name: str) -> str:
        """The way back. KeyError for what is no weight or bias of the architecture."""
        module, _, part = name.rpartition(".")
        if part not in ("weight", "bias"):
            raise KeyError(name)
        match = re.fullmatch(r"blk\.(\d{1,6})\.(\w+)", module)
        if match is None:
            return f"{_inverse(_OUTSIDE)[module]}.{part}"
        return f"model.layers.{int(match[1])}.{_inverse(self.modules)[match[2]]}.{part}"

    def added(self, name: str) -> float:
        """What stands in GGUF beyond the values of Hugging Face's tensor."""
        return 1.0 if self.norms_hold_sum and name.rpartition(".")[0].endswith("norm") else 0.0

    def permutes(self, name: str) -> bool:
        """Whether the rows of Hugging Face's tensor stand in another order in GGUF."""
        return self.permuted and name.rpartition(".")[0].endswith(("q_proj", "k_proj"))


_ATTENTION_IN = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "llama",
            _SHARED | _PRE_NORMS,
            permuted=True,
            biases=frozenset(_SHARED),
            rope_kinds=("linear", "llama3", "yarn"),
        ),
        Architecture("qwen2", _SHARED | _PRE_NORMS, biases=_ATTENTION_IN, rope_kinds=("linear", "yarn")),
        Architecture(
            "qwen3", _SHARED | _PRE_NORMS | _QK_NORMS, biases=_ATTENTION_IN, rope_kinds=("linear", "yarn")
        ),
        Architecture(
            "olmo2",
            _SHARED | _POST_NORMS | _QK_NORMS,
            untied=True,
            biases=_ATTENTION_IN,
            windows=True,
            rope_kinds=("linear", "yarn"),
        ),
        Architecture("phi3", _FUSED | _PRE_NORMS, rope_kinds=("longrope",)),
        Architecture("smollm3", _SHARED | _PRE_NORMS, permuted=True, biases=_ATTENTION_IN),
        Architecture("granite", _SHARED | _PRE_NORMS, permuted=True, biases=frozenset(_SHARED)),
        Architecture("gemma3", _SHARED | _AROUND_NORMS | _QK_NORMS, windows=True, norms_hold_sum=True),
        Architecture("gemma2", _SHARED | _AROUND_NORMS, windows=True, norms_hold_sum=True),
    )
}
BY_MODEL_TYPE = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "smollm3": "smollm3",
    "granite": "granite",
    "phi3": "phi3",
    "gemma3_text": "gemma3",
    "gemma2": "gemma2",
}
"""config.json's model_type to general.architecture."""


def to_neighbours(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of whole heads (heads x head_dim, …) from Hugging Face's order into llama.cpp's, as a new array."""
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def to_halves(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """The way back."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}
