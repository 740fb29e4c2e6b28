"""What DoRA costs: its step beside LoRA's, on the layers of micro_batch.py.

    python docs/benchmarks/dora.py [--length 512] [--rounds 7]

Steps of one micro-batch of one sequence, in turns: LoRA, DoRA, and LoRA once more, whose ratio to the first is the spread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from micro_batch import LORA, trainer_of, write_model

from cktrain import cython_kernels
from cktrain.nn.numerics import Numerics


def main() -> None:
    """Print the medians of each and of the ratios of a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    kernels = cython_kernels.load()
    kernels.set_num_threads(len(os.sched_getaffinity(0)))
    numerics, length = Numerics(kernels, "fp32"), options.length
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        write_model(folder, numerics)
        kinds = {"LoRA": LORA, "DoRA": {**LORA, "use_dora": True}, "LoRA, again": LORA}
        trainers = {
            name: trainer_of(folder, length, 1, length, adapter, numerics) for name, adapter in kinds.items()
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(options.rounds + 1):
            for name, trainer in trainers.items():
                began = time.perf_counter()
                trainer.step()
                if number:
                    times[name].append(time.perf_counter() - began)
    for name, found in times.items():
        ratios = sorted(mine / lora for mine, lora in zip(found, times["LoRA"], strict=True))
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        print(
            f"| {name} | {1e3 * statistics.median(found):,.0f} ms | {statistics.median(ratios):.2f} ({spread}) |"
        )


if __name__ == "__main__":
    main()
