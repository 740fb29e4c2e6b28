"""What replay saves: a pretrained folder goes on with prose and shares of its first data, and is held against both.

    python docs/benchmarks/continued_pretraining.py [--work DIR] [--replay 0 0.1 0.25] [--plot FILE.svg]

The steps are those of examples/continued_pretraining.yaml: texts of this Python, a base by examples/demo.yaml of fewer
steps, its export, and a run for each share of replay. A run without replay has the source as a part that no stage reaches,
so that its held-out loss is told. What is there in DIR is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "continued_pretraining.yaml"
BASE_STEPS = 250
NEVER = 10**12
"""Tokens after which a part is read that is only to be validated."""
Curve = dict[str, list[tuple[int, float]]]
"""By part the held-out loss after so many steps."""


def command(*words: object) -> None:
    """Run `cktrain` with these words; its output is this program's."""
    subprocess.run([sys.executable, "-m", "cktrain", *map(str, words)], check=True)


def train(file: Path, settings: dict[str, object]) -> None:
    """`cktrain train` with settings."""
    command("train", file, *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")])


def prepare(work: Path, threads: int) -> None:
    """Texts, base and data of the example, in `work`."""
    if not (work / "texts").exists():
        texts = ROOT / "examples" / "continued_pretraining_texts.py"
        subprocess.run([sys.executable, texts, work / "texts"], check=True)
    command("data", "prepare", work / "texts/source", work / "data/source", "--vocab-size", 2048, "--reuse")
    if not (work / "models/base").exists():
        settings = {"data.path": work / "data/source", "run.dir": work / "runs/base", "run.steps": BASE_STEPS}
        train(ROOT / "examples/demo.yaml", settings | {"launch.threads": threads})
        command("export", work / "runs/base", work / "models/base")
    tokenizer = ("--tokenizer", work / "models/base")
    command("data", "prepare", work / "texts/prose", work / "data/prose", *tokenizer, "--reuse")


def run(work: Path, replay: float, threads: int) -> Curve:
    """The held-out losses of a run with this share of the base's data."""
    folder = work / f"runs/replay-{replay:g}"
    parts = [{"path": str(work / f"data/{name}")} for name in ("prose", "source")]
    stages = [{"weights": {"prose": 1.0 - replay, "source": replay}}]
    if not replay:
        stages = [
            {"until_tokens": NEVER, "weights": {"prose": 1.0}},
            {"weights": {"prose": 1.0, "source": 1.0}},
        ]
    settings = {
        "run.dir": folder,
        "model.from_pretrained": work / "models/base",
        "data.mixture": json.dumps(parts),
        "data.stages": json.dumps(stages),
        "launch.threads": threads,
    }
    train(EXAMPLE, settings)  # goes on where one was stopped, and has nothing to do where one is done
    found: Curve = {"prose": [], "source": []}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, loss in record.get("val_loss_of_parts", {}).items():
            found[name].append((record["step"], loss))
    return found


def plot(curves: dict[str, Curve], file: Path) -> None:
    """Two panels, prose and source, a line for each share of replay."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, part, title in zip(
        figure.subplots(1, 2),
        ("prose", "source"),
        ("what it goes on with: prose", "what it was trained on: source"),
        strict=True,
    ):
        for replay, curve in curves.items():
            axes.plot(
                *zip(*curve[part], strict=True), "o-", markersize=3, label=f"replay {float(replay):.0%}"
            )
        axes.set(title=title, xlabel="step", ylabel="held-out loss, nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file)


def main() -> None:
    """Make what is missing, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("continued"))
    parser.add_argument("--replay", type=float, nargs="*", default=[0.0, 0.1, 0.25])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    work = options.work.resolve()
    prepare(work, options.threads)
    curves = {f"{replay:g}": run(work, replay, options.threads) for replay in options.replay}
    print("| replay | prose, before | after | source, before | after |\n|---|---|---|---|---|")
    for replay, curve in curves.items():
        cells = [
            f"{point[1]:.3f}" for part in ("prose", "source") for point in (curve[part][0], curve[part][-1])
        ]
        print(f"| {float(replay):.0%} | " + " | ".join(cells) + " |")
    if options.plot:
        plot(curves, options.plot)


if __name__ == "__main__":
    main()
