"""Batches out of several sources by the shares of a mixture (`mixture.py`): a pure function of seed and sequences consumed.

Example n of the run is the m-th of its part, and that is the window that a loader of that part alone would read m-th: each
part is shuffled by its own epochs, begins again when it has been read, and knows nothing of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cktrain.data.fingerprint import fingerprint
from cktrain.data.loader import BatchLoader, check_document_mask, check_row_length, windows_in, windows_of
from cktrain.data.mixture import Mixture
from cktrain.data.sequence_keys import hash_of
from cktrain.data.shards import TokenSource


class MixedLoader(BatchLoader):
    """A `BatchLoader` over `sources`, by the names of the parts, in the order of the mixture's weights."""

    def __init__(
        self,
        sources: Mapping[str, TokenSource],
        mixture: Mixture,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int,
        **options: Any,
    ):
        """`options` are BatchLoader's. Raises ValueError as it does, and for parts that cannot be mixed (`check_alike`)."""
        self.names = list(sources)
        self.sources = list(sources.values())
        self.mixture = mixture
        assert len(self.sources) == mixture.parts, (self.names, mixture.parts)
        check_alike(sources)
        for source in self.sources:
            check_row_length(source, sequence_length)
            check_document_mask(source, options.get("document_mask", False))
        super().__init__(
            self.sources[0], sequence_length, micro_batch_size, global_batch_size, seed, **options
        )
        self.windows_of_parts = [windows_in(source, sequence_length) for source in self.sources]
        for name, source, windows in zip(self.names, self.sources, self.windows_of_parts, strict=True):
            if windows < 1:
                raise ValueError(
                    f"[data.mixture] {name}: {len(source):,} tokens are no sequence of data.sequence_length "
                    f"{sequence_length:,}. Give it more data, or leave it out."
                )
        self.windows = sum(self.windows_of_parts)

    def sequences(self, consumed: int) -> list[tuple[TokenSource, int]]:
        """Source and window of each sequence of the global batch that follows `consumed` sequences."""
        return [(self.sources[part], window) for part, window in self._windows(consumed)]

    def named(self, consumed: int) -> list[str]:
        """The sequences of the global batch that follows, each as part:window."""
        return [f"{self.names[part]}:{window}" for part, window in sorted(set(self._windows(consumed)))]

    def shares(self, consumed: int) -> dict[str, float]:
        """By part its share of the first `consumed` sequences."""
        counts = self.mixture.counts(consumed)
        return {name: count / max(consumed, 1) for name, count in zip(self.names, counts, strict=True)}

    def _windows(self, consumed: int) -> list[tuple[int, int]]:
        """(part, window) of each sequence of the global batch."""
        places = self.mixture.places(consumed, self.global_batch_size)
        found = [(0, 0)] * len(places)
        for part in {part for part, _ in places}:
            rows = [row for row, place in enumerate(places) if place[0] == part]
            order = np.array([places[row][1] for row in rows], dtype=np.int64)
            seed = hash_of(f"seed {self.seed} part {part}")
            windows = windows_of(order, self.windows_of_parts[part], seed, self.shuffle)
            for row, window in zip(rows, windows.tolist(), strict=True):
                found[row] = (part, window)
        return found


def check_alike(sources: Mapping[str, TokenSource]) -> None:
    """Raise ValueError where two parts cannot stand in one batch: other borders of documents or rows, or the same tokens."""
    (first, one), *others = sources.items()
    for name, source in others:
        if source.row_length != one.row_length:
            kinds = [
                "one stream" if length is None else f"packed rows of {length:,} tokens"
                for length in (source.row_length, one.row_length)
            ]
            raise ValueError(
                f"[data.mixture] {name} is {kinds[0]}, and {first} is {kinds[1]}. Prepare both alike: beside chats text "
                "with --sequence-length, too."
            )
        if source.eos_id != one.eos_id and None not in (source.eos_id, one.eos_id):
            raise ValueError(
                f"[data.mixture] documents of {name} end with id {source.eos_id}, and those of {first} with {one.eos_id}. "
                "Prepare both with one --eos-token."
            )
    seen: dict[str, str] = {}
    for name, source in sources.items():
        if (other := seen.setdefault(fingerprint(source), name)) != name:
            raise ValueError(
                f"[data.mixture] {other} and {name} hold the same tokens. Leave one out, and give the other both weights."
            )


def mixed_fingerprint(sources: Mapping[str, TokenSource]) -> str:
    """That of one source, or of all parts in their order."""
    found = [fingerprint(source) for source in sources.values()]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]
