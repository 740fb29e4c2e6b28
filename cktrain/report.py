"""What a run has learned: its loss curve, and its bits per byte beside n-gram models of the same tokens.

Everything here reads only: a run that goes on meanwhile, or lies where nobody may write, is reported like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from cktrain.config import Config, NonNegative
from cktrain.data.loader import ValidationBatches
from cktrain.data.mixed_loader import mixed_fingerprint
from cktrain.data.ngram import bits_per_byte
from cktrain.data.shards import TokenSource
from cktrain.foreign_file import shorten
from cktrain.models.transformer import Transformer
from cktrain.training.validation import ValidationResult, combined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"


class State(BaseModel):
    """What of a checkpoint's state.json a report is about."""

    step: NonNegative
    precision: Literal["fp32", "bf16", "fp64"]


@dataclass(frozen=True)
class Curve:
    """The losses that a run has recorded, (step, nats per token) in ascending steps, the last of equal steps."""

    training: list[tuple[int, float]]
    validation: list[tuple[int, float]]
    measured_on: dict[int, str] = field(default_factory=dict)
    """By step the fingerprint of the tokens that were validated, where it was recorded."""
    unread: list[int] = field(default_factory=list)
    """Numbers, from 1, of the lines that are no record: a half line at the end is being written, or was by a killed run."""

    def comparable_validation(self) -> list[tuple[int, float]]:
        """The validations of the same tokens as the last one: a run that goes on may hold out others than before."""
        if not self.validation:
            return []
        last = self.measured_on.get(self.validation[-1][0])
        return [point for point in self.validation if self.measured_on.get(point[0]) == last]

    def text(self) -> str:
        """A line per kind of loss, and what could not be read."""
        rows = []
        for label, points in (("training", self.training), ("validation", self.validation)):
            if points:
                best = min(points, key=lambda point: point[1])
                told = [("step", points[0]), ("best, step", best), ("step", points[-1])]
                rows.append(
                    f"  {label:<12}" + "  ".join(f"{word} {step}: {loss:.4f}" for word, (step, loss) in told)
                )
        rows = rows or ["  none recorded"]
        if len(comparable := self.comparable_validation()) < len(self.validation):
            rows.append(f"  the validations before step {comparable[0][0]} were of other tokens")
        if self.unread:
            shown = ", ".join(map(str, self.unread[:3])) + (", …" if len(self.unread) > 3 else "")
            rows.append(
                f"  left out: {len(self.unread)} line(s) of {METRICS_FILE} that are no record ({shown})"
            )
        return "\n".join(["losses, nats per token", *rows])


def read_curve(file: Path) -> Curve:
    """The losses in a metrics.jsonl; lines that are no record are counted. Raises ValueError when it cannot be read."""
    found: dict[str, dict[int, float]] = {"loss": {}, "val_loss": {}}
    measured_on: dict[int, str] = {}
    unread = []
    try:
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                record = _record(line)
                if record is None:
                    unread.append(number)
                    continue
                for key, points in found.items():
                    value = record.get(key)
                    if (
                        isinstance(value, int | float)
                        and not isinstance(value, bool)
                        and math.isfinite(value)
                    ):
                        points[record["step"]] = value
                        if key == "val_loss":
                            measured_on[record["step"]] = str(record.get("val_data", ""))
    except OSError as error:
        raise ValueError(f"[report] {file}: it cannot be read: {error.strerror or error}") from None
    return Curve(sorted(found["loss"].items()), sorted(found["val_loss"].items()), measured_on, unread)


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's values, if it has a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53 else None


def measure(
    model: Transformer, config: Config, sources: Mapping[str, TokenSource], batches: int | None = None
) -> ValidationResult:
    """Mean loss of a whole model over so many global batches of each split, or all of it, in the run's windows."""
    found = {name: _measure(model, config, source, batches) for name, source in sources.items()}
    return combined(found, config, mixed_fingerprint(sources))


def _measure(
    model: Transformer, config: Config, source: TokenSource, batches: int | None
) -> ValidationResult:
    batch, length = config.batch.resolved_micro_batch_size, config.data.sequence_length
    slot = model.plan(batch, length, train=False).allocate()[0]
    loss_sum, count = 0.0, 0
    for each in ValidationBatches(
        source,
        length,
        batch,
        config.batch.resolved_global_batch_size,
        batches,
        document_mask=config.data.document_mask,
        vocab_size=config.model.vocab_size,
    ):
        slot.describe(each.positions, each.first)
        loss, valid = model.forward_loss(each.ids, each.labels, slot, train=False)
        loss_sum += loss
        count += valid
    loss = loss_sum / max(count, 1)
    bits = None
    if source.text_bytes and not source.has_loss_mask:
        bits = loss / math.log(2) * (len(source) - 1) / source.text_bytes
    return ValidationResult(loss, count, bits)


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


def draw_losses(curve: Curve, title: str) -> Figure:
    """The curve as a figure, which no window shows. Raises ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("[report] a picture needs matplotlib: pip install 'cktrain[plots]'.") from None

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for points, label, style in ((curve.training, "training", "-"), (curve.validation, "validation", "o--")):
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
            axes.legend()
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.secondary_yaxis("right", functions=(_bits, _nats)).set_ylabel("bits per token")
    axes.set_title(shorten(title)[1:-1].replace("$", r"\$"))
    axes.grid(alpha=0.3)
    return figure


def plot_losses(curve: Curve, title: str, file: Path) -> Path:
    """Draw the curve into `file`, whose suffix says how, or into `file`.png; returns where it is.

    Raises ValueError when it cannot be written.
    """
    if not file.suffix:
        file = file.with_name(f"{file.name}.png")
    figure = draw_losses(curve, title)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ValueError(
            f"[report] --plot {file}: {reason}. Give a file that can be written, as loss.png."
        ) from None
    return file


def _bits(nats: Any) -> Any:
    return nats / math.log(2)


def _nats(bits: Any) -> Any:
    return bits * math.log(2)
