"""How many tokens a micro-batch needs: what `micro_batch_size: auto` is bound by (cktrain/plan/batch_sizes.py).

    python docs/benchmarks/micro_batch.py --length 512 [--full] [--rounds 5]

A Llama of SmolLM2-135M's layers (576 wide, 9 heads of which 3 have keys and values, 1536 between), three of the thirty,
takes whole steps on as many tokens each: with an adapter of rank 16 beside weights in bf16, or with all weights trained.
One step has them in micro-batches of few sequences, the next in larger ones, in turns. It has few words, because the head
computes its rows in pieces of its own, however large the micro-batch is. What counts is the CPU time of one thread, which
other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cktrain import cython_kernels
from cktrain.bench.step import RandomLoader, _part
from cktrain.checkpoint import Progress
from cktrain.config import Config
from cktrain.hf.folder import resolve_model, save_folder
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.optim.table import OPTIMIZERS
from cktrain.training.trainer import Trainer

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 3,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}


LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32}


def write_model(folder: Path, numerics: Numerics) -> None:
    """A folder with fresh weights of the shape, in bf16."""
    config = parse_model(SHAPE)
    params = ParamStore(build_model(config, numerics, 1).params(), numerics)
    params.initialize(1)
    save_folder(folder, config, params, dtype="bfloat16")


def trainer_of(
    folder: Path, length: int, micro: int, tokens: int, adapter: dict[str, Any] | None, numerics: Numerics
) -> Trainer:
    """One that takes steps of `tokens` tokens, `micro` sequences at once; `adapter` None: all weights are trained."""
    values: dict[str, Any] = {
        "run": {"dir": "unused", "steps": 1000},
        "model": {"from_pretrained": str(folder)},
        "data": {"path": "unused", "sequence_length": length},
        "batch": {"micro_batch_size": micro, "global_batch_size": tokens // length},
    }
    if adapter is not None:
        values["adapter"] = adapter
    config = Config.model_validate(values)
    config = config.model_copy(update={"model": resolve_model(config.model)[0]})
    part = _part(config, numerics)
    optimizer = OPTIMIZERS["adamw"](part.params, config.optimizer)
    loader: Any = RandomLoader(config, SHAPE["vocab_size"])
    return Trainer(config, part, optimizer, loader, Progress(0, 0, 0, numerics.precision))


def main() -> None:
    """Print tokens per second of CPU, and how much faster than one sequence at once by the round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--length", type=int, default=512, help="of a sequence")
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--full", action="store_true", help="train all weights")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    kernels = cython_kernels.load()
    kernels.set_num_threads(1)
    numerics = Numerics(kernels, "fp32")
    sizes, size = [], 1
    while size * options.length <= options.tokens:
        sizes.append(size)
        size *= 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write_model(folder, numerics)
        adapter = None if options.full else LORA
        trainers = [
            trainer_of(folder, options.length, size, options.tokens, adapter, numerics) for size in sizes
        ]
        for trainer in trainers:
            trainer.step()
        times: dict[int, list[float]] = {size: [] for size in sizes}
        for _ in range(options.rounds):
            for size, trainer in zip(sizes, trainers, strict=True):
                began = time.process_time()
                trainer.step()
                times[size].append(time.process_time() - began)
    for size in sizes:
        rate = statistics.median(options.tokens / seconds for seconds in times[size])
        ratios = sorted(one / other for one, other in zip(times[1], times[size], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(
            f"| {size * options.length:,} | {size} | {rate:,.0f} | {statistics.median(ratios):.2f} ({spread}) |"
        )


if __name__ == "__main__":
    main()
