"""A GGUF's keys about the architecture to the values of a config.json, and back.

Rotary scaling is in `rope_keys.py`; what the architectures have of their own (windows, caps, multipliers) in `own_keys.py`.
"""

from __future__ import annotations

from typing import Any

from cktrain.hf.gguf_file.architectures import ARCHITECTURES, Architecture
from cktrain.hf.gguf_file.own_keys import (
    COMPUTED,
    MODEL_TYPES,
    read_own,
    read_windows,
    write_own,
    write_windows,
)
from cktrain.hf.gguf_file.reader import GGUFFile, decimal
from cktrain.hf.gguf_file.rope_keys import Divisors, read_rope, write_rope
from cktrain.models.family import RotaryConfig

_UNUSED = {
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Keys that change results and are not computed, with the values that mean "not used"."""


def architecture_of(file: GGUFFile) -> Architecture:
    """The file's architecture. Raises ValueError for one that is not computed here."""
    name = file.need("general.architecture", str)
    if name not in ARCHITECTURES:
        raise file.error(
            f"its architecture is {name[:80]!r}, and {', '.join(ARCHITECTURES)} are read. Give a model of one of these."
        )
    return ARCHITECTURES[name]


def read_hyperparameters(file: GGUFFile, divisors: Divisors) -> dict[str, Any]:
    """The keys of config.json. `divisors` are those of the rotary frequencies that the file has.

    Raises ValueError for what is missing or not computed.
    """
    architecture = architecture_of(file)
    name = architecture.name

    def size(key: str) -> int:
        value: int = file.need(f"{name}.{key}", int)
        if value <= 0:
            raise file.error(f"{name}.{key} is {value}, and a size is needed. Convert the model again.")
        return value

    for key, unused in _UNUSED.items():
        value = file.keys.get(f"{name}.{key}")
        if value is not None and value not in unused and key not in COMPUTED.get(name, ()):
            raise file.error(f"{name}.{key} is {value}, which is not computed here. Give another model.")
    hidden, heads = size("embedding_length"), size("attention.head_count")
    kv_heads = file.get(f"{name}.attention.head_count_kv", int, heads)
    head_dim = file.get(f"{name}.attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        found = file.get(f"{name}.{key}", int, head_dim)
        if found != head_dim and not (name == "phi3" and key == "rope.dimension_count"):
            raise file.error(
                f"{name}.{key} is {found} and a head has {head_dim}, which is not computed here. Give another model."
            )
    values: dict[str, Any] = {
        "model_type": MODEL_TYPES.get(name, name),
        "hidden_size": hidden,
        "intermediate_size": size("feed_forward_length"),
        "num_hidden_layers": size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": size("context_length"),
        "vocab_size": _vocab_size(file),
        "rms_norm_eps": decimal(file.need(f"{name}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": decimal(file.get(f"{name}.rope.freq_base", float, 10000.0)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "initializer_range": 0.02,
    }
    _check_sizes(file, architecture, values)
    if name in ("llama", "qwen3", "olmo2", "smollm3", "granite"):
        values["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if name in ("llama", "granite"):
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in file.tensors
    values |= read_windows(file, architecture, values)
    values |= read_own(file, name, values)
    if "hidden_activation" not in values:
        values["hidden_act"] = "silu"
    return values | read_rope(file, name, values, divisors)


def write_hyperparameters(config: RotaryConfig, architecture: Architecture) -> dict[str, Any]:
    """The keys of an architecture, without their prefix. `config` needs max_position_embeddings.

    Raises ValueError for what llama.cpp does not compute for this architecture.
    """
    assert config.max_position_embeddings is not None
    found: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.resolved_head_dim,
        "attention.value_length": config.resolved_head_dim,
        "rope.dimension_count": config.resolved_head_dim,
        "vocab_size": config.vocab_size,
        "rope.freq_base": config.rope_theta,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    found |= write_rope(config, architecture)
    return found | write_windows(config, architecture) | write_own(config, architecture.name)


def _vocab_size(file: GGUFFile) -> int:
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise file.error("it has no matrix token_embd.weight. It holds no whole model: give one that does.")
    return table.shape[0]


def _check_sizes(file: GGUFFile, architecture: Architecture, values: dict[str, Any]) -> None:
    """The keys' sizes are those of the tensors, before a model of these sizes is made."""
    head_dim, hidden, inner = values["head_dim"], values["hidden_size"], values["intermediate_size"]
    q, k = values["num_attention_heads"] * head_dim, values["num_key_value_heads"] * head_dim
    fused = "attn_qkv" in architecture.modules.values()
    rows = (
        {"attn_qkv": q + 2 * k, "ffn_up": 2 * inner} if fused else {"attn_q": q, "attn_k": k, "ffn_up": inner}
    )
    shapes = {"token_embd": (values["vocab_size"], hidden)} | {
        f"blk.0.{module}": (number, hidden) for module, number in rows.items()
    }
    for module, shape in shapes.items():
        tensor = file.tensors.get(f"{module}.weight")
        if tensor is None or tensor.shape != shape:
            have = "missing" if tensor is None else f"{tensor.shape}"
            raise file.error(f"{module}.weight is {have}, and {shape} by the keys. Fetch the file again.")
    blocks = {tensor.split(".")[1] for tensor in file.tensors if tensor.startswith("blk.")}
    if len(blocks) != values["num_hidden_layers"]:
        raise file.error(
            f"it has tensors of {len(blocks):,} blocks, and the keys say {values['num_hidden_layers']:,}. "
            "Fetch the file again."
        )
