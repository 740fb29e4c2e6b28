"""Small models with drawn weights, and folders of them, without transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cktrain import cython_kernels
from cktrain.hf.folder import save_folder
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.models.family import ModelConfig
from cktrain.nn.numerics import Numerics

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 20,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
    "initializer_range": 0.2,
}


@pytest.fixture
def small_params() -> Callable[[ModelConfig], ParamStore]:
    """`small_params(config)`: the model's parameters with drawn weights."""

    def make(config: ModelConfig) -> ParamStore:
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(config, numerics, 24).params(), numerics)
        params.initialize(seed=3)
        return params

    return make


@pytest.fixture
def saved(tmp_path: Path, small_params: Any) -> Callable[..., tuple[Path, ParamStore]]:
    """`saved(max_shard_bytes=…, **model keys)` -> a saved folder and the parameters in it."""

    def make(max_shard_bytes: int = 10**9, **keys: Any) -> tuple[Path, ParamStore]:
        config = parse_model({**SMALL, **keys})
        params = small_params(config)
        folder = tmp_path / f"saved{len(list(tmp_path.iterdir()))}"
        save_folder(folder, config, params, max_shard_bytes=max_shard_bytes)
        return folder, params

    return make
