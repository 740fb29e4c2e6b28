"""What a whole run will take: of its data rows, tokens and steps, then hours, disk, energy and money, and what else fits.

A plan (`plan.py`) is of one step; this is of all of them. What needs data that is not there yet, or a step's time that
was not measured, is None.
"""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cktrain.config import Config
from cktrain.data.loader import windows_in
from cktrain.data.shards import DATASET_FILE, is_there, open_source, read_dataset
from cktrain.memory.arena import planning
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank
from cktrain.plan.plan import Plan, gib, node_bytes
from cktrain.run_length import count_steps
from cktrain.training.metrics import format_seconds
from cktrain.training_data import PartRead, open_training, part_in_words, parts_read

LONGEST = 2**20
"""Tokens of a sequence, where the model names no limit."""


@dataclass(frozen=True)
class Forecast:
    """A whole run."""

    sequences: int | None
    """Of the training data."""
    rows: int | None
    """Documents or conversations of the training data."""
    row_tokens: int | None
    trained_share: float | None
    """Of the rows' tokens, those with a label."""
    steps: int | None
    seconds: float | None
    """Of all steps, without validation and saves."""
    spread: float | None
    """By which the time may be off either way, as a share of it: that of the machine's own speed while it was measured."""
    checkpoint_bytes: int
    disk_bytes: int
    """Of all checkpoints that are there at a time, one that is being written among them."""
    kwh: float | None
    price: float | None
    longest_sequence: int
    """About the most tokens of a sequence, in doublings, with which the run fits; 0: it does not fit as it is."""
    most_layers: int | None
    """About the most layers of this shape that fit; None: the weights of a folder have as many as they have."""
    mixture: list[PartRead] | None = None
    """Of a mixture what the run reads of each part; None of one data set, or where a part is not there yet."""


def forecast(
    config: Config, plan: Plan, watts: float | None = None, price_per_hour: float | None = None
) -> Forecast:
    """The whole run of which `plan` is a step, on machines that draw `watts` and cost `price_per_hour` in all.

    `config.model` is resolved. Raises ValueError for data that is there and cannot be read.
    """
    dataset, sequences = _data(config)
    steps, mixture = config.run.steps, None
    if sequences is not None and steps is None:
        steps = count_steps(config, sequences).run.total_steps
    if sequences is not None and config.data.mixture is not None:
        counted = count_steps(config, sequences)
        mixture = parts_read(counted, open_training(config.data, config.model.vocab_size))
    seconds = None if plan.step is None or steps is None else plan.step.step * steps
    if seconds is not None and plan.step is not None and sequences is not None and not plan.step.beside:
        seconds += plan.step.reference * sequences / config.batch.resolved_global_batch_size
    if seconds is not None and config.run.max_seconds is not None:
        seconds = min(seconds, config.run.max_seconds)
    chat = {} if dataset is None else dataset.get("chat") or {}
    each = checkpoint_bytes(config)
    kept = config.checkpoint
    return Forecast(
        sequences=sequences,
        rows=None if dataset is None else dataset["splits"]["train"].get("documents"),
        row_tokens=chat.get("row_tokens"),
        trained_share=chat.get("trained_share"),
        mixture=mixture,
        steps=steps,
        seconds=seconds,
        spread=plan.spread,
        checkpoint_bytes=each,
        disk_bytes=each * (kept.keep + 1 + kept.save_best),
        kwh=None if seconds is None or watts is None else watts * seconds / 3.6e6,
        price=None if seconds is None or price_per_hour is None else price_per_hour * seconds / 3600,
        longest_sequence=_longest_sequence(config, plan),
        most_layers=_most_layers(config, plan),
    )


def sequences_of(dataset: dict[str, Any], split: str, length: int) -> int:
    """Those of `length` tokens that an epoch of a prepared folder has; of text, whose tokens are one stream, whole ones."""
    found = dataset["splits"].get(split, {"shards": []})
    if "sequences" in found:
        return int(found["sequences"])
    return int((sum(shard["tokens"] for shard in found["shards"]) - 1) // length)


def checkpoint_bytes(config: Config) -> int:
    """The trained weights and the optimizer's moments of one, whatever the layout."""
    params = plan_rank(config, Mesh(1, 1, 1), 0, "fp32").part.params
    with planning():
        optimizer = OPTIMIZERS[config.optimizer.name](params, config.optimizer)
    return sum(4 * param.size * (1 + len(optimizer.moments_for(param))) for param in params.trainable)


def forecast_text(found: Forecast, config: Config, now: datetime.datetime) -> str:
    """Some lines; `now` is when the run would begin."""
    lines = []
    if found.sequences is not None:
        rows = "" if found.rows is None else f"{found.rows:,} rows in "
        tokens = ""
        if found.row_tokens is not None and found.trained_share is not None:
            tokens = f"; of the rows' {found.row_tokens:,} tokens {found.trained_share:.1%} are trained"
        length = config.data.sequence_length
        lines.append(f"data: {rows}{found.sequences:,} sequences of {length:,} tokens{tokens}")
    lines += [part_in_words(part) for part in found.mixture or []]
    if found.steps is None:
        lines.append(f"run: how many steps it has is not known, since {_missing(config)} is not there yet")
    else:
        lines.append(f"run: {found.steps:,} steps{_time_in_words(found, config, now)}")
    lines.append(
        f"disk: checkpoints of {_bytes(found.checkpoint_bytes)}, {_bytes(found.disk_bytes)} at most at a time "
        f"(checkpoint.keep {config.checkpoint.keep})"
    )
    if found.kwh is not None:
        lines.append(f"energy: {found.kwh:,.3g} kWh")
    if found.price is not None:
        lines.append(f"price: {found.price:,.2f}")
    if found.longest_sequence:
        layers = "" if found.most_layers is None else f", or about {found.most_layers:,} layers of this shape"
        lines.append(f"this memory would hold sequences of about {found.longest_sequence:,} tokens{layers}")
    return "\n".join(lines)


def _time_in_words(found: Forecast, config: Config, now: datetime.datetime) -> str:
    if found.seconds is None:
        return ""
    spread = "" if found.spread is None else f" ± {100 * found.spread:.0f} %"
    ends = now + datetime.timedelta(seconds=found.seconds)
    ended = " (run.max_time)" if found.seconds == config.run.max_seconds else ""
    return f", {format_seconds(found.seconds)}{ended}{spread} and validation: done at {ends:%Y-%m-%d %H:%M} if it began now"


def _bytes(count: int) -> str:
    return gib(count) if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _missing(config: Config) -> str:
    return ", ".join(path for path in config.data.parts.values() if not is_there(Path(path)))


def _data(config: Config) -> tuple[dict[str, Any] | None, int | None]:
    """What the prepared folder says of itself, and the sequences of the training data; None where there is none."""
    if _missing(config):
        return None, None
    length = config.data.sequence_length
    if config.data.mixture is not None:
        sources = open_training(config.data, config.model.vocab_size).values()
        return None, sum(windows_in(source, length) for source in sources)
    path = Path(config.data.resolved_path)
    if (path / DATASET_FILE).exists():
        dataset = read_dataset(path)
        return dataset, sequences_of(dataset, "train", length)
    source = open_source(path, "train", config.model.vocab_size, config.data.dtype, config.data.eos_id)
    return None, (len(source) - 1) // length


def _bytes_of(config: Config, plan: Plan) -> int:
    return node_bytes(config, plan.mesh, plan.precision, plan.machine)


def _longest_sequence(config: Config, plan: Plan) -> int:
    """Memory grows with each token by the same: what one and two lengths need says how many doublings fit."""
    length, room = config.data.sequence_length, plan.machine.node_bytes - plan.node_bytes
    if room < 0:
        return 0
    most = config.model.max_position_embeddings or LONGEST
    if 2 * length > most:
        return length
    data = config.data.model_copy(update={"sequence_length": 2 * length})
    each = (_bytes_of(config.model_copy(update={"data": data}), plan) - plan.node_bytes) / length
    fitting = min(length + room / each, most)
    return int(length * 2 ** math.floor(math.log2(fitting / length)))


def _most_layers(config: Config, plan: Plan) -> int | None:
    """Each layer takes the same: what one and two depths need says how many fit."""
    if config.model.from_pretrained is not None or isinstance(config.parallel.cut, list):
        return None
    have, room = config.model.num_hidden_layers or 0, plan.machine.node_bytes - plan.node_bytes
    if room < 0:
        return 0
    model = config.model.model_copy(update={"num_hidden_layers": 2 * have})
    each = (_bytes_of(config.model_copy(update={"model": model}), plan) - plan.node_bytes) / have
    return have + int(room / each)
