"""Tiny runs: a few thousand parameters, random tokens with some structure, on any kernel set."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.compose import Run, compose
from cktrain.config import Config
from cktrain.host import process

sys.path.insert(0, str(Path(__file__).parent))  # for tokenizers_made_here

VOCAB = 61


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    """A raw uint16 file in which each id mostly follows from the one before, so that there is something to learn."""
    rng = np.random.default_rng(7)
    ids = np.zeros(6000, np.uint16)
    for i in range(1, ids.size):
        ids[i] = (ids[i - 1] * 3 + 1) % VOCAB if rng.random() < 0.8 else rng.integers(VOCAB)
    path = tmp_path / "tokens.bin"
    ids.tofile(path)
    return path


@pytest.fixture
def tiny(tokens_file: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    """`tiny(**{"block.key": value})` -> a Config of a tiny Llama on the tokens."""

    def make(**overrides: Any) -> Config:
        values: dict[str, dict[str, Any]] = {
            "run": {"dir": str(tmp_path / "run"), "steps": 20, "seed": 3},
            "model": {
                "family": "llama",
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 40,
                "vocab_size": VOCAB,
                "tie_word_embeddings": False,
            },
            "data": {"path": str(tokens_file), "sequence_length": 16},
            "batch": {"micro_batch_size": 2, "global_batch_size": 8},
            "optimizer": {"lr": 1e-2},
            "schedule": {"warmup_steps": 3},
            "checkpoint": {"every": 0},
        }
        top: dict[str, Any] = {}
        for key, value in overrides.items():
            block, dot, name = key.partition(".")
            if dot:
                values.setdefault(block, {})[name] = value
            else:
                top[key] = value
        if values["model"]["family"] == "gpt2":
            del values["model"]["num_key_value_heads"]
        return Config.model_validate({**values, **top})

    return make


@pytest.fixture
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binding is for a process of its own: here nothing is pinned, and nothing is remembered."""
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(process, "_bound", [])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """`composed(config, isa, group=None)` -> a Run on that kernel set; closed when the test ends."""
    from cktrain.comm.solo_group import SoloGroup

    runs: list[Run] = []

    def make(config: Config, isa: str | None = "reference", group: Any = None) -> Run:
        if isa is not None:
            monkeypatch.setenv("CKTRAIN_ISA", isa)
        runs.append(compose(config, group or SoloGroup(), threads=1))
        return runs[-1]

    yield make
    for run in runs:
        run.close()
    monkeypatch.delenv("CKTRAIN_ISA", raising=False)
    cython_kernels.load()
