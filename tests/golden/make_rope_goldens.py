"""Writes rope_tables.npz: the tables of transformers' rotary embedding, for users who have no transformers.

    python tests/golden/make_rope_goldens.py

Per setting below, the cosines and sines (positions, D/2) at POSITIONS, in fp32.
"""

from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent

POSITIONS = np.array([0, 1, 2, 3, 17, 255, 1000, 4095, 8191])
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192}
LONGROPE = {
    "rope_type": "longrope",
    "factor": 2.0,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0 + 0.01 * i for i in range(48)],
    "long_factor": [1.0 + 0.5 * i for i in range(48)],
}
# name -> head size, theta, scaling
SETTINGS: dict[str, tuple[int, float, dict[str, Any] | None]] = {
    "llama2": (128, 10_000.0, None),
    "llama3": (128, 500_000.0, None),
    "llama31": (128, 500_000.0, LLAMA3),
    "llama32": (64, 500_000.0, LLAMA3 | {"factor": 32.0}),
    "qwen": (64, 1_000_000.0, None),
    "linear": (80, 10_000.0, {"rope_type": "linear", "factor": 4.0}),
    "yarn": (128, 500_000.0, YARN | {"attention_factor": 1.2079}),
    "yarn_by_factor": (64, 10_000.0, YARN | {"beta_fast": 24.0, "beta_slow": 2.0, "truncate": False}),
    "longrope": (96, 10_000.0, LONGROPE),
    "short_context": (20, 10_000.0, LLAMA3 | {"original_max_position_embeddings": 64}),
}


def transformers_tables(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin (positions, D/2) of the setting `name` at POSITIONS, from transformers."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    head_dim, theta, scaling = SETTINGS[name]
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=int(POSITIONS.max()) + 1,
    )
    # transformers 5 reads rope_parameters, 4 reads rope_theta and rope_scaling.
    config.rope_parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    if not hasattr(config, "standardize_rope_params"):
        config.rope_theta, config.rope_scaling = theta, scaling
    rotary = LlamaRotaryEmbedding(config)
    cos, sin = rotary(torch.zeros(1), torch.from_numpy(POSITIONS)[None])
    return cos[0, :, : head_dim // 2].numpy(), sin[0, :, : head_dim // 2].numpy()


def main() -> None:
    arrays: dict[str, Any] = {}
    for name in SETTINGS:
        arrays[f"{name}/cos"], arrays[f"{name}/sin"] = transformers_tables(name)
    path = HERE / "rope_tables.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
