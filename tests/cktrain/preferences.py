"""Tiny models and preference rows, for tests of preference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from chat_models import write_rows, write_weights

from cktrain.config import Config
from cktrain.data.chat.prepare import ChatOptions, prepare_chat


def pairs(count: int, seed: int = 2) -> list[dict[str, Any]]:
    """Rows of several shapes and lengths."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = ["".join(rng.choice(list("abcdefg"), rng.integers(1, 12))) for _ in range(3)]
        if number % 3 == 0:
            rows.append({"prompt": words[0], "chosen": words[1] + "!", "rejected": words[2]})
            continue
        asked = [{"role": "user", "content": words[0]}]
        answers = [[{"role": "assistant", "content": word}] for word in (words[1] + "!", words[2])]
        if number % 3 == 1:
            rows.append({"prompt": asked, "chosen": answers[0], "rejected": answers[1]})
        else:
            rows.append({"chosen": asked + answers[0], "rejected": asked + answers[1]})
    return rows


def prepared(folder: Path, count: int = 24, validation: float = 0.25, length: int = 128) -> tuple[Path, Path]:
    """(a model's folder, prepared pairs) in a folder."""
    model = write_weights(folder / "model", positions=length)
    rows = write_rows(folder / "pairs.jsonl", pairs(count))
    options = ChatOptions(preference=True, sequence_length=length, validation_fraction=validation)
    prepare_chat(rows, folder / "data", tokenizer=model, options=options, progress=False)
    return model, folder / "data"


def preference_config(folder: Path, model: Path, rows: Path, **blocks: Any) -> Config:
    """A run of some steps; blocks replace or add, of `run` its keys."""
    values: dict[str, Any] = {
        "run": {"dir": str(folder / "run"), "steps": 4, "seed": 3},
        "model": {"from_pretrained": str(model)},
        "adapter": {"r": 3},
        "data": {"path": str(rows), "sequence_length": 128, "validation": {"every": 2, "batches": None}},
        "batch": {"micro_batch_size": 1, "global_batch_size": 2},
        "objective": {"name": "dpo"},
        "optimizer": {"lr": 1e-2},
        "precision": "fp64",
        "checkpoint": {"every": 0},
    }
    blocks = {**blocks, "run": {**values["run"], **blocks.get("run", {})}}
    return Config.model_validate({**values, **blocks})
