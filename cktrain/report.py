"""What a finished run looks like: its loss curve, and its bits per byte beside n-gram models of the same tokens."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktrain.data.ngram import bits_per_byte
from cktrain.data.shards import TokenSource


@dataclass(frozen=True)
class Comparison:
    """Bits per byte of the validation text under three models; less is better."""

    model: float
    bigram: float
    five_gram: float

    def table(self) -> str:
        """One line per model."""
        rows = [
            ("this model", self.model),
            ("5-gram (Kneser-Ney)", self.five_gram),
            ("bigram (Kneser-Ney)", self.bigram),
        ]
        return "\n".join(f"  {name:<22}{value:.4f} bits per byte" for name, value in rows)


def compare_with_ngrams(
    model_bits_per_byte: float, train: TokenSource, validation: TokenSource
) -> Comparison:
    """The model's figure beside those of a bigram and a 5-gram model of the same training tokens."""
    assert train.vocab_size is not None and validation.text_bytes is not None
    bigram, five_gram = (
        bits_per_byte(
            order,
            train.read(0, len(train)),
            validation.read(0, len(validation)),
            validation.text_bytes,
            train.vocab_size,
        )
        for order in (2, 5)
    )
    return Comparison(model_bits_per_byte, bigram, five_gram)


def plot_losses(run_dir: Path) -> Path:
    """Draw RUN/loss.png from RUN/metrics.jsonl and return its path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for key, label, style in (("loss", "training", "-"), ("val_loss", "validation", "o--")):
        points = [(line["step"], line[key]) for line in lines if isinstance(line.get(key), (int, float))]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.secondary_yaxis("right", functions=(_bits, _nats)).set_ylabel("bits per token")
    axes.set_title(run_dir.name)
    axes.grid(alpha=0.3)
    axes.legend()
    path = run_dir / "loss.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)
