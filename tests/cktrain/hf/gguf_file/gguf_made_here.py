"""Small models of each family, by their keys, and a byte-level tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from cktrain import cython_kernels
from cktrain.hf.gguf_file.export import export_gguf
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.models.family import ModelConfig
from cktrain.nn.numerics import Numerics
from cktrain.side_files import SideFiles, read_side_files

ROWS = 272
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 8.0, 8.0],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_tied_linear": {
        "tie_word_embeddings": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    },
    "llama3": {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 32},
    "llama_biases": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True, "tie_word_embeddings": True},
    "qwen3": {"qk_norm": True, "head_dim": 32, "rms_norm_eps": 1e-6},
    "olmo2": {"family": "olmo2"},
    "olmo2_tied": {"family": "olmo2", "tie_word_embeddings": True},
    "olmo3": {"family": "olmo2", "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "smollm3": {"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": True},
    "granite": {
        "family": "granite",
        "tie_word_embeddings": True,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.4,
        "logits_scaling": 1.6,
    },
    "llama_yarn": {"rope_scaling": YARN},
    "olmo3_yarn": {
        "family": "olmo2",
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_scaling": YARN,
    },
    # Not "phi3": by that word in the file's name llama.cpp looks for tokens of Phi-3.
    "phi_partial": {"family": "phi3", "partial_rotary_factor": 0.5},
    "phi_long": {"family": "phi3", "tie_word_embeddings": True, "rope_scaling": LONGROPE},
    "phi_short": {
        "family": "phi3",
        "rope_scaling": LONGROPE | {"original_max_position_embeddings": 256, "factor": 2.0},
        "max_position_embeddings": 512,
    },
    "gemma3": {
        "family": "gemma",
        "head_dim": 24,
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "gemma2": {
        "family": "gemma",
        "qk_norm": False,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


class Made(NamedTuple):
    config: ModelConfig
    params: ParamStore
    side: SideFiles


def byte_level(pre: Any = None, normalizer: Any = None, **model: Any) -> Backend:
    """Bytes, some merges and three special tokens, in 269 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("1", "2"),
        ("i", "n"),
        ("in", "g"),
        ("l", "l"),
        ("Ġ", "Ġ"),
    ]
    merges = [*pairs, ("1", "3"), ("12", "3")]
    tokens = [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        *alphabet,
        *(left + right for left, right in merges),
    ]
    made = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, **model))
    made.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.normalizer = normalizer
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    return made


def side_files(folder: Path, backend: Backend, **config: Any) -> SideFiles:
    """What a folder with this tokenizer has."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "chat_template": TEMPLATE,
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return read_side_files(folder)


def small_file(folder: Path) -> bytes:
    """A whole file of one layer, in Q8_0."""
    config = parse_model({**SIZES, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32})
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    params = ParamStore(build_model(config, numerics, 64).params(), numerics)
    params.initialize(seed=7)
    export_gguf(folder / "whole.gguf", config, params, side_files(folder / "side", byte_level()), "q8_0")
    return (folder / "whole.gguf").read_bytes()
