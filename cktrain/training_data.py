"""The tokens of a run as its configuration says, of one data set or a mixture: trained on, held out, and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cktrain.config import Config, DataConfig
from cktrain.data.loader import BatchLoader, windows_in
from cktrain.data.mixed_loader import MixedLoader, check_alike
from cktrain.data.mixture import Mixture, Stage
from cktrain.data.shards import Split, TokenSource, open_source

Sources = dict[str, TokenSource]
"""By the name of the part; of one data set the name is its path."""


@dataclass(frozen=True)
class PartRead:
    """What a run will have read of a part of its mixture."""

    name: str
    share: float
    """Of the run's sequences."""
    sequences: int
    has: int
    """Sequences of the part, read once."""
    epochs: float
    """How often each of its sequences is read, on average."""


def open_training(data: DataConfig, vocab_size: int | None) -> Sources:
    """The training tokens of each part. Raises ValueError for what cannot be read."""
    return {
        name: open_source(path, "train", vocab_size, data.dtype, data.eos_id)
        for name, path in data.parts.items()
    }


def open_validation(config: Config) -> Sources:
    """The tokens that a run holds out, of a configuration whose model is resolved: of each part of a mixture its own, or
    those of data.validation.path. ValueError where there are none."""
    data = config.data
    held_out, split = data.parts, "validation"
    if data.validation.path is not None:
        held_out, split = {data.validation.path: data.validation.path}, "train"
    names: Split = "train" if split == "train" else "validation"
    found = {
        name: open_source(path, names, config.model.vocab_size, data.dtype, data.eos_id)
        for name, path in held_out.items()
    }
    if len(found) > 1:
        check_alike(found)
    return found


def mixture_of(data: DataConfig) -> Mixture | None:
    """The mixture of a configuration, whose stages end with the sequence that reaches their tokens; None of one data set."""
    if data.mixture is None:
        return None
    length = data.sequence_length
    return Mixture(
        [
            Stage(tuple(weights), None if until is None else -(-until // length))
            for until, weights in data.shares_of_stages
        ]
    )


def make_loader(config: Config, sources: Sources, **ranks: Any) -> BatchLoader:
    """The training batches of this rank; `ranks` are BatchLoader's data_rank and data_ranks. ValueError as that."""
    batch, data = config.batch, config.data
    sizes = (data.sequence_length, batch.resolved_micro_batch_size, batch.resolved_global_batch_size)
    options = {
        "shuffle": data.shuffle,
        "document_mask": data.document_mask,
        "vocab_size": config.model.vocab_size,
        **ranks,
    }
    mixture = mixture_of(data)
    if mixture is None:
        (source,) = sources.values()
        return BatchLoader(source, *sizes, config.run.seed, **options)
    return MixedLoader(sources, mixture, *sizes, config.run.seed, **options)


def parts_read(config: Config, sources: Sources) -> list[PartRead]:
    """What a run of a mixture reads of each part up to its last step; empty for one data set. Its steps are known."""
    mixture = mixture_of(config.data)
    if mixture is None:
        return []
    examples = config.run.total_steps * config.batch.resolved_global_batch_size
    found = []
    for (name, source), count in zip(sources.items(), mixture.counts(examples), strict=True):
        has = windows_in(source, config.data.sequence_length)
        found.append(PartRead(name, count / examples, count, has, count / max(has, 1)))
    return found


def part_in_words(part: PartRead) -> str:
    """The line that says before the training how often a part will be read."""
    return (
        f"mixture: {part.name}: {part.share:.1%}, {part.sequences:,} sequences, of which it has {part.has:,}: "
        f"{part.epochs:.2f} epochs"
    )


def shares_in_words(shares: dict[str, float]) -> str:
    """The line that says what was read, when the run ends."""
    return "mixture: read were " + ", ".join(f"{share:.1%} of {name}" for name, share in shares.items())
