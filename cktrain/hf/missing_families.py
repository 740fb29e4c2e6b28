"""Models that people have and that are not computed here: what is missing, and the nearest one that is.

A model_type that is in no family is refused either way (`config_json.py`); of these the refusal says why.
"""

from __future__ import annotations

_QWEN_3_5 = (
    "three of its four layers are gated DeltaNet, a recurrence over the tokens behind a short convolution",
    "Qwen3 (qwen3)",
)
_GEMMA_4 = (
    "it has embeddings for each layer, keys and values that layers share, and other heads in full layers",
    "Gemma 3 (gemma3_text)",
)
_SEES = "it reads images too, and its text part is not taken out of it"
_EXPERTS = "its MLPs are experts"

MISSING: dict[str, tuple[str, str]] = {
    "qwen3_5": _QWEN_3_5,
    "qwen3_5_text": _QWEN_3_5,
    "qwen3_next": _QWEN_3_5,
    "gemma4": _GEMMA_4,
    "gemma4_text": _GEMMA_4,
    "gemma4_unified": _GEMMA_4,
    "gemma3n": _GEMMA_4,
    "gemma": ("its norms stand before attention and MLP alone", "Gemma 2 (gemma2)"),
    "mistral3": (_SEES, "Mistral or Ministral (mistral, ministral)"),
    "ministral3": ("its queries are multiplied by a number of their position", "Ministral 8B (ministral)"),
    "qwen2_vl": (_SEES, "Qwen2.5 (qwen2)"),
    "qwen2_5_vl": (_SEES, "Qwen2.5 (qwen2)"),
    "qwen3_vl": (_SEES, "Qwen3 (qwen3)"),
    "phi4_multimodal": (_SEES, "Phi-4-mini (phi3)"),
    "mixtral": (_EXPERTS, "Mistral (mistral)"),
    "qwen2_moe": (_EXPERTS, "Qwen2.5 (qwen2)"),
    "qwen3_moe": (_EXPERTS, "Qwen3 (qwen3)"),
    "olmoe": (_EXPERTS, "OLMo-2 (olmo2)"),
    "phimoe": (_EXPERTS, "Phi-3 (phi3)"),
    "granitemoe": (_EXPERTS, "Granite 3 (granite)"),
    "gpt_oss": (_EXPERTS, "Qwen3 (qwen3)"),
    "lfm2": ("most of its layers are short convolutions", "Qwen3 (qwen3)"),
    "olmo": ("its LayerNorms have no weights", "OLMo-2 (olmo2)"),
    "phi": ("its attention and MLP stand beside each other", "Phi-3 (phi3)"),
}
"""By model_type: what is missing, and the nearest that works."""
