"""What a step saves where few rows have a label: the head gathers the labelled rows before any product.

    python docs/benchmarks/labelled_rows.py [--share 0.3] [--rounds 7] [--page FILE]

A Llama of 268M parameters, 168M of them a tied embedding of 262,144 words (18 layers of 640), takes whole steps (forward,
backward, AdamW) on one sequence of 512 tokens, in turns: all rows labelled, and only a share of them, drawn at random. A
head that computes every row takes as long for the second as for the first, so that the ratio is what gathering saves. Two
series of the first, in the same turns, give the spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.checkpoint import Progress
from cktrain.comm.solo_group import SoloGroup
from cktrain.config import Config
from cktrain.data.loader import Batch
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.model_shard import ModelShard
from cktrain.parallel.ranks import divide_world
from cktrain.training.trainer import Trainer

WORDS, TOKENS = 262_144, 512
CONFIG: dict[str, Any] = {
    "run": {"dir": "unused", "steps": 1000},
    "model": {
        "family": "llama",
        "hidden_size": 640,
        "num_hidden_layers": 18,
        "num_attention_heads": 10,
        "num_key_value_heads": 5,
        "intermediate_size": 2048,
        "vocab_size": WORDS,
        "tie_word_embeddings": True,
    },
    "data": {"path": "unused", "sequence_length": TOKENS},
    "batch": {"micro_batch_size": 1, "global_batch_size": 1},
    "optimizer": {"name": "adamw", "lr": 1e-5},
}


class OneBatch:
    """The loader's interface with a batch that is exchanged between steps."""

    wait_seconds = 0.0

    def __init__(self) -> None:
        self.current: list[Batch] = []

    def batch(self, consumed: int) -> list[Batch]:
        """The same until another is put in its place."""
        return self.current


def main() -> None:
    """Print the medians and the ratio; write them to a page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--share", type=float, default=0.3, help="of the rows, labelled")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    kernels = cython_kernels.load()
    kernels.set_num_threads(len(os.sched_getaffinity(0)))
    config, numerics, loader = Config.model_validate(CONFIG), Numerics(kernels, "fp32"), OneBatch()
    model = build_model(config.model, numerics, TOKENS, False)
    part = ModelShard(config, model, divide_world(SoloGroup(), Mesh(data=1, pipeline=1, tensor=1)))
    part.params.initialize(1)
    optimizer = OPTIMIZERS["adamw"](part.params, config.optimizer)
    any_loader: Any = loader
    trainer = Trainer(config, part, optimizer, any_loader, Progress(0, 0, 0, "fp32"))

    rng = np.random.default_rng(1)
    ids = rng.integers(0, WORDS, (1, TOKENS + 1), dtype=np.int32)
    labels = np.ascontiguousarray(ids[:, 1:])
    few = np.where(rng.random(labels.shape) < options.share, labels, -100).astype(np.int32)
    inputs = np.ascontiguousarray(ids[:, :-1])
    turns = {
        "all rows labelled": labels,
        f"{100 * (few >= 0).mean():.0f} % labelled": few,
        "all, again": labels,
    }
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for round_ in range(options.rounds + 1):  # the first warms up
        for name, chosen in turns.items():
            loader.current = [Batch(inputs, chosen)]
            began = time.perf_counter()
            trainer.step()
            if round_:
                seconds[name].append(time.perf_counter() - began)
    every, some, again = seconds.values()
    gains = [a / b for a, b in zip(every, some, strict=True)]
    spreads = [a / b for a, b in zip(every, again, strict=True)]
    lines = ["| rows | seconds a step, median |", "|---|---|"]
    lines += [f"| {name} | {statistics.median(values):.2f} |" for name, values in seconds.items()]
    text = "\n".join(lines) + (
        f"\n\nall / {list(turns)[1]}: {statistics.median(gains):.2f} (of {options.rounds} rounds {min(gains):.2f} to "
        f"{max(gains):.2f}); all / all again: {min(spreads):.2f} to {max(spreads):.2f}. "
        f"{numerics.kernels.isa}, {kernels.num_threads()} threads, fp32, {TOKENS} tokens.\n"
    )
    print(text)
    if options.page:
        options.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
