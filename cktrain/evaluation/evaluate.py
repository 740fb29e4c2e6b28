"""Evaluates a model on held-out rows, alone or beside another one on the same rows.

Losses are of all rows; answers, which take longer, of as many rows as are asked for. One model is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cktrain.config_file import load_config
from cktrain.data.chat.template_tokens import TemplateTokens
from cktrain.data.same_tokenizer import other_tokenizer_error, tokenizer_differences
from cktrain.evaluation.answers import Answered, answer_rows, evenly
from cktrain.evaluation.bootstrap import interval, resampled_ratios
from cktrain.evaluation.losses import bits_per_byte, row_losses
from cktrain.evaluation.metrics import METRICS, check_metrics
from cktrain.evaluation.rows import EvaluationRow, RowOptions, read_rows
from cktrain.foreign_file import read_text
from cktrain.loaded_model import Model

BASE = "base"
"""In the place of the model to compare with: what a run started from."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Figure:
    """A number, and the ends of its interval of 95 %; None where one row alone says nothing of the spread."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """What came out for one model."""

    path: str
    figures: dict[str, Figure]
    """loss (nats per learned token), perplexity, the metrics, ended (share of answers), general_bits_per_byte."""
    answers: list[Answered]
    row_losses: npt.NDArray[np.float64]
    """Sum of each row, in nats."""


@dataclass(frozen=True)
class Evaluation:
    """What came out, and of what rows."""

    data: str
    rows: Sequence[EvaluationRow]
    model: ModelResult
    compared: ModelResult | None = None
    compared_name: str = "other"
    """How the report calls it: base, or other."""
    differences: dict[str, Figure] = field(default_factory=dict)
    """The model's figures less the compared one's, with intervals of the difference."""
    notes: list[str] = field(default_factory=list)

    def worst(self, count: int) -> list[tuple[EvaluationRow, float]]:
        """The rows with the highest loss per token, and that loss."""
        counts = np.array([sum(row.learned) for row in self.rows])
        mean = self.model.row_losses / counts
        return [(self.rows[index], float(mean[index])) for index in np.argsort(-mean, kind="stable")[:count]]


@dataclass(frozen=True)
class EvaluationOptions:
    """What is computed."""

    metrics: Sequence[str] = ()
    answers: int = 50
    """Rows that are answered."""
    max_tokens: int = 256
    """Of an answer."""
    general: str | Path | None = None
    """A text that the model was not tuned to: what it needs for it shows what was forgotten."""
    rows: RowOptions = field(default_factory=RowOptions)


def evaluate_model(
    open_model: Callable[[str | Path | None], Model],
    compare: str | Path | None,
    data: str | Path,
    options: EvaluationOptions,
    say: Say = lambda text: None,
) -> Evaluation:
    """`open_model` opens the model itself for None, and the one to compare with for its path.

    `say` hears what is going on. Raises ValueError for what the user can mend.
    """
    check_metrics(list(options.metrics))
    text = None
    if options.general is not None:
        text = read_text(options.general, area="evaluate", remedy="Give a text in UTF-8.")
    notes: list[str] = []
    model = open_model(None)
    side = model.side
    other = None if compare is None else base_of(model) if compare == BASE else compare
    rows = read_rows(data, side, model.max_positions, options.rows, notes.append)
    asked = [row for row in rows if row.answer is not None]
    if options.metrics and not asked:
        raise ValueError(
            f"[evaluate] {data}: its rows are texts without a question, so metrics have no answers."
        )
    chosen = [asked[index] for index in evenly(len(asked), options.answers)]
    if len(chosen) < len(rows):
        notes.append(
            f"answers: to {len(chosen):,} of {len(rows):,} rows, evenly spread"
            + (f"; {len(rows) - len(asked):,} are texts without a question" if len(asked) < len(rows) else "")
        )
    ends = TemplateTokens(side).ends
    result = _result(model, rows, chosen, ends, text, options, say)
    if other is None:
        return Evaluation(str(data), rows, result, notes=notes)
    del model  # before there is another one
    second = open_model(other)
    if differences := tokenizer_differences(second.side, side):
        raise other_tokenizer_error(
            f"the tokenizer of {other}",
            f"that of {result.path}",
            differences,
            "Compare with a model that has the same.",
        )
    if rows and second.max_positions < max(len(row.ids) for row in rows):
        raise ValueError(
            f"[evaluate] {other} has {second.max_positions:,} positions, and the longest row "
            f"{max(len(row.ids) for row in rows):,} tokens. Give shorter rows."
        )
    compared = _result(second, rows, chosen, ends, text, options, say)
    name = BASE if compare == BASE else "other"
    differences_of = _differences(rows, result, compared, options)
    return Evaluation(str(data), rows, result, compared, name, differences_of, notes)


def base_of(model: Model) -> Path:
    """What the model of a run or of an adapter started from. Raises ValueError where there is none, or it is gone."""
    if model.adapter_path is not None:
        return model.path
    file = model.path / "config.yaml"
    base = load_config(file).model.from_pretrained if file.is_file() else None
    if base is None or not Path(base).exists():
        what = "nothing that it started from" if base is None else f"{base}, which is not there"
        raise ValueError(
            f"[evaluate] {model.path} names {what}. Give the path of a model to compare with instead of {BASE}."
        )
    return Path(base)


def _result(
    model: Model,
    rows: Sequence[EvaluationRow],
    chosen: Sequence[EvaluationRow],
    ends: frozenset[int],
    text: str | None,
    options: EvaluationOptions,
    say: Say,
) -> ModelResult:
    say(f"{model.path}: losses of {len(rows):,} rows")
    sums, counts = row_losses(model, rows)
    if not np.isfinite(sums).all():
        raise ValueError(
            f"[evaluate] {model.path}: a loss is NaN or infinite. Use weights from before it diverged."
        )
    general = None
    if text is not None:
        say(f"{model.path}: {options.general}")
        general, _ = bits_per_byte(model, text)
    if chosen:
        say(f"{model.path}: answers to {len(chosen):,} rows")
    answers = answer_rows(model, chosen, options.max_tokens, ends)
    figures: dict[str, Figure] = {}
    for name, (numerators, denominators) in _ratios(sums, counts, answers, options.metrics).items():
        figures[name] = _figure(numerators, denominators)
    loss = figures["loss"]
    bounds = (math.exp(bound) if bound is not None else None for bound in (loss.low, loss.high))
    figures = {"loss": loss, "perplexity": Figure(math.exp(loss.value), *bounds), **figures}
    if general is not None:
        figures["general_bits_per_byte"] = Figure(general)
    return ModelResult(str(model.path), figures, answers, sums)


def _ratios(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    answers: Sequence[Answered],
    metrics: Sequence[str],
) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Of each figure over rows its numerators and denominators."""
    found: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {"loss": (sums, counts)}
    if answers:
        ones = np.ones(len(answers))
        for name in metrics:
            values = [METRICS[name](each.answer, each.reference) for each in answers]
            found[name] = np.array(values), ones
        found["ended"] = np.array([float(each.ended) for each in answers]), ones
    return found


def _figure(numerators: npt.NDArray[Any], denominators: npt.NDArray[Any]) -> Figure:
    value = float(numerators.sum() / denominators.sum())
    if len(numerators) < 2:
        return Figure(value)
    return Figure(value, *interval(resampled_ratios([(numerators, denominators)])[0]))


def _differences(
    rows: Sequence[EvaluationRow], one: ModelResult, other: ModelResult, options: EvaluationOptions
) -> dict[str, Figure]:
    counts = np.array([sum(row.learned) for row in rows])
    mine, theirs = (_ratios(each.row_losses, counts, each.answers, options.metrics) for each in (one, other))
    found: dict[str, Figure] = {}
    for name, figure in one.figures.items():
        value = figure.value - other.figures[name].value
        over_rows = "loss" if name == "perplexity" else name
        if over_rows in mine and len(mine[over_rows][0]) > 1:
            a, b = resampled_ratios([mine[over_rows], theirs[over_rows]])
            if name == "perplexity":
                a, b = np.exp(a), np.exp(b)
            found[name] = Figure(value, *interval(a - b))
        else:
            found[name] = Figure(value)
    return found
