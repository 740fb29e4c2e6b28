"""Chooses the demo's recipe: candidates train with the same arithmetic, and the best bits per byte of text wins.

    python docs/benchmarks/demo_recipe.py --data data/demo [--tflop 17.4] [--seeds 1234 1 2] [--only WORD] [--page FILE]

A candidate is examples/demo.yaml with settings. Each has as many steps as its budget of floating-point operations
allows: those of the model per token, and of the optimizer's matrix products per update (`cktrain plan` counts both).
Warm-up is a tenth of the steps. The figure is the last validation on all held-out tokens. Runs are one after the other,
each in a folder under runs/recipe/, and one that is there and done is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

from cktrain.config_file import load_config
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank

DEMO = Path("examples/demo.yaml")
ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 2e-3, "optimizer.muon_lr": None}
MUON = {"optimizer.name": "muon", "optimizer.lr": 4e-3, "optimizer.muon_lr": 0.005}
SMALL_STEPS = {"batch.micro_batch_size": 8, "batch.global_batch_size": 8}
LARGE_STEPS = {"batch.micro_batch_size": 8, "batch.global_batch_size": 16}
SHORT = {"data.sequence_length": 128, "batch.micro_batch_size": 16}

CANDIDATES: dict[str, dict[str, object]] = {
    "adamw, the demo before": ADAMW | LARGE_STEPS,
    "adamw, 8 sequences a step": ADAMW | SMALL_STEPS,
    "muon": MUON | LARGE_STEPS,
    "muon, 8 sequences a step": MUON | SMALL_STEPS,
    "muon 0.0025, 8 sequences a step": MUON | SMALL_STEPS | {"optimizer.muon_lr": 0.0025},
    "muon 0.01, 8 sequences a step": MUON | SMALL_STEPS | {"optimizer.muon_lr": 0.01},
    "muon, decay 0.01, 8 sequences a step": MUON | SMALL_STEPS | {"optimizer.weight_decay": 0.01},
    "muon, 16 of 128 tokens a step": MUON | LARGE_STEPS | SHORT,
    "muon, 3 layers of 160": MUON
    | SMALL_STEPS
    | {
        "model.hidden_size": 160,
        "model.num_hidden_layers": 3,
        "model.num_attention_heads": 5,
        "model.num_key_value_heads": 1,
        "model.intermediate_size": 448,
    },
    "muon, 6 layers of 96": MUON
    | SMALL_STEPS
    | {
        "model.hidden_size": 96,
        "model.num_hidden_layers": 6,
        "model.num_attention_heads": 3,
        "model.num_key_value_heads": 1,
        "model.intermediate_size": 288,
    },
    "muon, to a rate of zero": MUON | SMALL_STEPS | {"schedule.min_lr_ratio": 0.0},
}


def steps_of(settings: dict[str, object], tflop: float) -> int:
    """Steps that the budget allows."""
    config = load_config(DEMO, settings)
    rank = plan_rank(config, Mesh(1, 1, 1), 0, "fp32")
    tokens = config.batch.resolved_global_batch_size * config.data.sequence_length
    return int(1e12 * tflop / (tokens * rank.part.flops_per_token + rank.update_flops))


def run(name: str, settings: dict[str, object], seed: int, data: Path) -> float:
    """Train, and return the bits per byte of the last validation."""
    folder = Path("runs/recipe") / f"{name.replace(', ', '-').replace(' ', '_')}-{seed}"
    metrics = folder / "metrics.jsonl"
    all_of_it = {"data.validation.every": settings["run.steps"], "data.validation.batches": 100_000}
    fixed = {"run.dir": folder, "run.seed": seed, "data.path": data, "checkpoint.every": 0, **all_of_it}
    if not (result := _last(metrics)):
        texts = {key: "null" if value is None else value for key, value in (settings | fixed).items()}
        words = [w for key, value in texts.items() for w in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "cktrain.launch.cli", "train", str(DEMO), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        result = _last(metrics)
    assert result is not None, metrics
    return result


def _last(metrics: Path) -> float | None:
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    found = [record["bits_per_byte"] for line in lines if "bits_per_byte" in (record := json.loads(line))]
    return found[-1] if found else None


def main() -> None:
    """Run what is asked for and print the table, the best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/demo"))
    parser.add_argument("--tflop", type=float, default=17.4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1234, 1, 2])
    parser.add_argument("--only", default="", help="candidates whose name has this word")
    parser.add_argument("--page", type=Path, help="write the table there")
    options = parser.parse_args()
    rows = []
    for name, settings in CANDIDATES.items():
        if options.only not in name:
            continue
        steps = steps_of(settings, options.tflop)
        planned = settings | {"run.steps": steps, "schedule.warmup_steps": steps // 10}
        found = [run(name, planned, seed, options.data) for seed in options.seeds]
        rows.append((mean(found), name, steps, found))
        print(f"{name}: {steps} steps, {' '.join(f'{bits:.4f}' for bits in found)}", flush=True)
    lines = ["| recipe | steps | bits per byte, mean | by seed |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {steps} | {average:.4f} | {', '.join(f'{bits:.4f}' for bits in found)} |"
        for average, name, steps, found in sorted(rows)
    ]
    print("\n".join(lines))
    if options.page:
        options.page.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
