"""The reference of a preference: what another model says of the same answers, as log-probabilities of whole answers.

    AdapterOff     the model without its adapter, beside each step: one forward more, and no second model
    Precomputed    the model as the run begins, of all pairs once: a table by window, kept in RUN/reference.safetensors

The table's file has a tensor per split, `train` and perhaps `validation`: F64 (pairs, 3), a row per pair in the order of the
data: the window (sequence) that it is in, the log-probability of the chosen answer and that of the rejected one, in nats.
Its header says of which weights (`base`) and tokens (`train`, `validation`) it is, in which precision it was computed, and
with which run it began (`run`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.consistency_check import together
from cktrain.data.loader import Batch, ValidationBatches
from cktrain.data.shards import Split, TokenSource
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer
from cktrain.nn.linear import Linear
from cktrain.parallel.pipeline import Stage
from cktrain.parallel.ranks import Ranks
from cktrain.safetensors_file import read_header, read_metadata, write_safetensors
from cktrain.training.metrics import format_seconds
from cktrain.training.objective import NOTHING, LossSums, NextToken
from cktrain.training.preference import Answers, Floats

log = logging.getLogger("cktrain")

FILE = "reference.safetensors"
"""In the run's folder."""
_PROGRESS_S = 60.0


@contextlib.contextmanager
def adapters_off(model: Transformer) -> Iterator[None]:
    """Within the block, no adapter adds anything."""
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    kept = [linear.adapters for linear in linears]
    for linear in linears:
        linear.adapters = []
    try:
        yield
    finally:
        for linear, adapters in zip(linears, kept, strict=True):
            linear.adapters = adapters


class _Scores(NextToken):
    """Computes no loss: keeps the log-probabilities of a micro-batch's answers, fp64 (pairs, 2), where the head is."""

    def __init__(self) -> None:
        self.found: Floats | None = None

    def loss(self, model: Transformer, x: np.ndarray, batch: Batch, slot: Slot, train: bool) -> LossSums:
        """As `Objective.loss`."""
        head = model.head
        assert head is not None
        with slot.phase(head.role):
            logp, _ = head.score(x, batch.labels.reshape(-1), slot)
        self.found = Answers.of(batch).sums(logp).reshape(-1, 2)
        return NOTHING


class AdapterOff:
    """The model without its adapter."""

    def given(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """As `References.given`."""
        found = []
        with adapters_off(stage.model):
            for batch in batches:
                scores = _Scores()
                stage.evaluate(batch, scores)
                found.append(replace(batch, reference=scores.found))
        return found


@dataclass(frozen=True)
class Table:
    """Log-probabilities of all pairs of a split: fp64 (pairs, 3), each the window, and of chosen and rejected."""

    rows: Floats

    def of(self, windows: npt.NDArray[np.int64]) -> Floats:
        """Those of a micro-batch of these windows, in their order: (pairs, 2)."""
        first, last = (np.searchsorted(self.rows[:, 0], windows, side) for side in ("left", "right"))
        parts = [self.rows[a:z, 1:] for a, z in zip(first, last, strict=True)]
        return np.concatenate(parts)


class Precomputed:
    """Tables of what was computed before."""

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self.tables = tables

    def given(self, stage: Stage, batches: Sequence[Batch], split: Split) -> list[Batch]:
        """As `References.given`."""
        assert all(batch.windows is not None for batch in batches)
        return [replace(batch, reference=self.tables[split].of(batch.windows)) for batch in batches]  # type: ignore[arg-type]


def score_pairs(config: Config, stage: Stage, ranks: Ranks, source: TokenSource) -> Table:
    """What this model says of all pairs of a split. Collective; the same on all ranks."""
    batches = ValidationBatches(
        source,
        config.data.sequence_length,
        config.batch.resolved_micro_batch_size,
        config.batch.resolved_global_batch_size,
        data_rank=ranks.data.rank,
        data_ranks=ranks.data.size,
        vocab_size=config.model.vocab_size,
    )
    began = said = time.perf_counter()
    mine = [np.zeros((0, 3))]
    for number, batch in enumerate(batches):
        scores = _Scores()
        stage.evaluate(batch, scores)
        if ranks.reports_loss:
            assert scores.found is not None
            mine.append(np.column_stack([_windows_of(batch), scores.found]))
        now = time.perf_counter()
        if now - said > _PROGRESS_S:
            said = now
            left = (now - began) / (number + 1) * (len(batches) - number - 1)
            log.info(
                "reference: %.0f%%, about %s left", 100 * (number + 1) / len(batches), format_seconds(left)
            )
    found = b"".join(ranks.world.all_gather_bytes(np.concatenate(mine).tobytes()))
    rows = np.frombuffer(found).reshape(-1, 3)
    return Table(rows[np.argsort(rows[:, 0], kind="stable")])


def _windows_of(batch: Batch) -> npt.NDArray[np.int64]:
    """The window of each pair of a micro-batch."""
    assert batch.windows is not None
    answers = Answers.of(batch)
    first_rows = answers.rows[np.unique(answers.answer, return_index=True)[1]][0::2]
    return batch.windows[first_rows // batch.ids.shape[1]]


@dataclass(frozen=True)
class Origin:
    """Of which weights and tokens a table is."""

    base: str
    """Digest of the weights that the run began with; empty where they are gone."""
    tokens: Mapping[str, str]
    """Fingerprint of each split."""
    precision: str
    run: str
    """The first run of the lineage."""
    begins: bool
    """Whether the run begins here, with the weights that are its reference."""


def precomputed(
    config: Config,
    stage: Stage,
    ranks: Ranks,
    sources: Mapping[str, TokenSource],
    origin: Origin,
    group: Group,
) -> Precomputed:
    """The tables of a run: those that stand beside it, or computed now. Collective.

    Raises ValueError on all ranks where they are neither there nor can be computed any more, and OSError's text where they
    cannot be written.
    """
    file = Path(config.run.dir) / FILE
    told = {**origin.tokens, "base": origin.base, "precision": origin.precision, "run": origin.run}
    there = together(group, partial(_read, file, told, origin.begins) if group.rank == 0 else lambda: None)
    is_there = bool(group.broadcast_bytes(b"" if there is None else b"there"))
    if is_there:
        tables = _shared(there, list(sources), group)
        log.info("reference: %s", file)
    else:
        tables = _computed(config, stage, ranks, sources, origin, group, file)
    if origin.begins or not is_there:
        together(group, lambda: _write(file, tables, told) if group.rank == 0 else None)
    return Precomputed(tables)


def _computed(
    config: Config,
    stage: Stage,
    ranks: Ranks,
    sources: Mapping[str, TokenSource],
    origin: Origin,
    group: Group,
    file: Path,
) -> dict[str, Table]:
    adapter = config.adapter
    fresh = adapter is not None and adapter.from_pretrained is None and not adapter.modules_to_save
    if not (origin.begins or fresh):
        raise ValueError(
            f"[objective] {file} is not there, or is of other data or of another run; the reference is the model as the run "
            "began, and this one is no longer that. Put the file back, or start afresh with checkpoint.resume: none."
        )
    began = time.perf_counter()
    with contextlib.nullcontext() if origin.begins else adapters_off(stage.model):
        tables = {name: score_pairs(config, stage, ranks, source) for name, source in sources.items()}
    pairs = " and ".join(f"{len(table.rows):,} pairs of {name}" for name, table in tables.items())
    log.info("reference: %s computed in %s: %s", pairs, format_seconds(time.perf_counter() - began), file)
    return tables


def _shared(tables: dict[str, Table] | None, names: Sequence[str], group: Group) -> dict[str, Table]:
    found = {}
    for name in names:
        mine = b"" if tables is None else tables[name].rows.tobytes()
        found[name] = Table(np.frombuffer(group.broadcast_bytes(mine)).reshape(-1, 3))
    return found


def _read(file: Path, told: Mapping[str, str], begins: bool) -> dict[str, Table] | None:
    """The tables that a file has; None where it is none of this run."""
    if not file.is_file():
        return None
    stored, metadata = read_header(file), read_metadata(file)
    keys = set(told) - ({"run"} if begins else {"base", "precision"})
    if any(metadata.get(key) != told[key] for key in keys):
        return None
    return {tensor.name: Table(np.asarray(tensor[:], np.float64)) for tensor in stored}


def _write(file: Path, tables: Mapping[str, Table], told: Mapping[str, str]) -> None:
    beside = file.with_name(file.name + ".tmp")
    write_safetensors(beside, [(name, table.rows) for name, table in tables.items()], "F64", metadata=told)
    os.replace(beside, file)
