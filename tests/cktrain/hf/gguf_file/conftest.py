"""Small models of each family with a tokenizer, and GGUF files and folders of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.hf.folder import save_folder
from cktrain.hf.gguf_file.export import Kind, export_gguf
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

sys.path.insert(0, str(Path(__file__).parent))

from gguf_made_here import FAMILIES, SIZES, Made, byte_level, side_files


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Made]:
    """`made(case, **keys)`: a small model with drawn weights and norms, and its side files."""

    def make(case: str = "llama", **keys: Any) -> Made:
        config = parse_model({**SIZES, **FAMILIES[case], **keys})
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(config, numerics, 64).params(), numerics)
        params.initialize(seed=7)
        draw = np.random.default_rng(11)
        for param in params.params:
            if param.data.ndim == 1:  # norms and biases are drawn too, so that none can be lost unseen
                param.data += draw.normal(0, 0.2, param.data.shape).astype(np.float32)
        return Made(config, params, side_files(tmp_path / f"side-{case}", byte_level()))

    return make


@pytest.fixture
def gguf(tmp_path: Path, made: Callable[..., Made]) -> Callable[..., Path]:
    """`gguf(case, kind)`: a file of such a model."""

    def make(case: str = "llama", kind: Kind = "f32", **keys: Any) -> Path:
        model = made(case, **keys)
        path = tmp_path / f"{case}-{kind}.gguf"
        export_gguf(path, model.config, model.params, model.side, kind)
        return path

    return make


@pytest.fixture
def folder(tmp_path: Path, made: Callable[..., Made]) -> Callable[..., Path]:
    """`folder(case)`: a Hugging Face folder of such a model."""

    def make(case: str = "llama", **keys: Any) -> Path:
        model = made(case, **keys)
        path = tmp_path / f"hf-{case}"
        save_folder(path, model.config, model.params, model.side)
        return path

    return make
