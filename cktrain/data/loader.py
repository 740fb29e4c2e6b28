"""Batches out of a token source: a pure function of the seed and the sequences consumed before the step.

The stream is cut in windows: window i holds the sequence_length + 1 ids from i * sequence_length on, so that
windows do not overlap but in the last target, which is the next window's first input. Packed rows are windows already: their
length is the sequence length, and the token after a window belongs to another row. Training takes the
windows of a step, which has `consumed` sequences before it, at the positions [consumed, consumed + G) of an endless
order: the windows one after the other, again and again, each round (epoch) either as they stand or in a shuffled order of
its own. Data rank r of R takes rows [r * G / R, (r + 1) * G / R) of the global batch, cut in micro-batches. There is no
other state, so a run resumes at any step, also with another G; a checkpoint keeps the sequences consumed.

Shapes: G sequences in the global batch, B sequences in a micro-batch, T = sequence_length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from cktrain.data.permutation import Permutation
from cktrain.data.prefetch import Prefetcher
from cktrain.data.sequence_keys import sequence_keys
from cktrain.data.shards import TokenSource

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Batch:
    """One micro-batch; all arrays int32 (B, T).

    `labels[b, t]` is the id that follows `ids[b, t]`, and -100 where there is nothing to predict or to learn: where the
    stream ends, and where the data's loss mask says so of the id that follows. With a document mask, `first` is the index
    in the row of the first token of the same document (what attention may see at most) and `positions` counts from it;
    both are None without. It also takes the label of a document's end, which is the next one's first token. Data of packed
    rows always have these: there a row of the data is the document.
    """

    ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32] | None = None
    first: npt.NDArray[np.int32] | None = None
    keys: npt.NDArray[np.uint64] | None = None
    """uint64 (B): what is random in a sequence (dropout) follows from its key, a hash of the seed and its number.

    None: nothing is random, as in validation.
    """
    windows: npt.NDArray[np.int64] | None = None
    """int64 (B): which of the data's windows each sequence is; -1: padding."""
    reference: npt.NDArray[np.float64] | None = None
    """fp64 (pairs, 2): of preference data, the reference's log-probabilities of chosen and rejected answers."""


def empty_batch(micro_batch_size: int, sequence_length: int) -> Batch:
    """A micro-batch in which there is nothing to predict."""
    ids = np.zeros((micro_batch_size, sequence_length), dtype=np.int32)
    return Batch(ids, np.full_like(ids, IGNORE_INDEX))


class BatchLoader:
    """Training batches.

    `batch(consumed)` prepares the batches that follow in the background; `micro_batches(consumed)` is pure.
    """

    def __init__(
        self,
        source: TokenSource,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        seed: int,
        shuffle: bool = True,
        data_rank: int = 0,
        data_ranks: int = 1,
        document_mask: bool = False,
        vocab_size: int | None = None,
        prefetch: int = 2,
    ):
        """Raises ValueError when sizes do not divide or the source is shorter than one sequence."""
        assert 0 <= data_rank < data_ranks, (data_rank, data_ranks)
        if global_batch_size % (micro_batch_size * data_ranks):
            raise ValueError(
                f"[data.loader] global_batch_size {global_batch_size} is not a multiple of micro_batch_size "
                f"{micro_batch_size} x {data_ranks} data ranks = {micro_batch_size * data_ranks}. Change "
                "one of them."
            )
        check_row_length(source, sequence_length)
        self.windows = windows_in(source, sequence_length)
        if self.windows < 1:
            raise ValueError(
                f"[data.loader] {source.shards[0].path}: {len(source):,} tokens are fewer than the "
                f"{sequence_length + 1:,} that one sequence of data.sequence_length {sequence_length:,} and "
                "its last "
                "target need. Give more data or a shorter sequence_length."
            )
        check_document_mask(source, document_mask)
        self.source = source
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.data_rank = data_rank
        self.data_ranks = data_ranks
        self.document_mask = document_mask
        self.vocab_size = vocab_size
        self._prefetch = prefetch
        self._prefetcher: Prefetcher[list[Batch]] | None = None

    def rows(self, consumed: int) -> npt.NDArray[np.int64]:
        """The window of each sequence of the global batch that follows `consumed` sequences: int64 (G)."""
        assert consumed >= 0, consumed
        order = np.arange(consumed, consumed + self.global_batch_size, dtype=np.int64)
        return windows_of(order, self.windows, self.seed, self.shuffle)

    def micro_batches(self, consumed: int) -> list[Batch]:
        """This data rank's micro-batches of the global batch that follows `consumed` sequences, in order.

        Raises ValueError on an id beyond the vocabulary.
        """
        share = self.global_batch_size // self.data_ranks
        first = self.data_rank * share
        chosen = self.sequences(consumed)[first : first + share]
        keys = sequence_keys(self.seed, consumed + first, share)
        size = self.micro_batch_size
        parts = [slice(begin, begin + size) for begin in range(0, share, size)]
        return [
            replace(
                self._micro_batch(chosen[part]),
                keys=keys[part],
                windows=np.array([window for _, window in chosen[part]], np.int64),
            )
            for part in parts
        ]

    def sequences(self, consumed: int) -> list[tuple[TokenSource, int]]:
        """Source and window of each sequence of the global batch that follows `consumed` sequences."""
        return [(self.source, window) for window in self.rows(consumed).tolist()]

    def shares(self, consumed: int) -> dict[str, float] | None:
        """Of a mixture the share that each part has of the first `consumed` sequences; None of one data set."""
        return None

    def named(self, consumed: int) -> list[str]:
        """The sequences of the global batch that follows, for messages, each once."""
        return list(map(str, sorted(set(self.rows(consumed).tolist()))))

    def batch(self, consumed: int) -> list[Batch]:
        """The same as `micro_batches(consumed)`, prepared in the background when batches are asked in order."""
        if self._prefetcher is None:
            self._prefetcher = Prefetcher(self.micro_batches, self._prefetch, self.global_batch_size)
        return self._prefetcher.get(consumed)

    @property
    def wait_seconds(self) -> float:
        """Seconds that the caller has waited in `batch` since the loader was made."""
        return 0.0 if self._prefetcher is None else self._prefetcher.wait_seconds

    def close(self) -> None:
        """Stop and join the background thread."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _micro_batch(self, sequences: Sequence[tuple[TokenSource, int]]) -> Batch:
        return _read_windows(
            self.source,
            sequences,
            self.sequence_length,
            len(sequences),
            self.document_mask,
            self.vocab_size,
        )


class ValidationBatches:
    """The first `batches` * global_batch_size windows in order; None = the whole split.

    The windows are the same whatever the ranks: micro-batches are dealt to the data ranks in turn. Every
    micro-batch has the full shape and every rank gets as many: what lies beyond the windows or the stream is
    padding with labels -100. So the labels of the whole split are every token but the stream's first, once
    each. Raises ValueError when the source has fewer than two tokens.
    """

    def __init__(
        self,
        source: TokenSource,
        sequence_length: int,
        micro_batch_size: int,
        global_batch_size: int,
        batches: int | None = None,
        data_rank: int = 0,
        data_ranks: int = 1,
        document_mask: bool = False,
        vocab_size: int | None = None,
    ):
        check_row_length(source, sequence_length)
        if len(source) < 2:
            raise ValueError(
                f"[data.loader] {source.shards[0].path}: {len(source)} token gives nothing to predict. Give "
                "more data."
            )
        check_document_mask(source, document_mask)
        self.source = source
        self.sequence_length = sequence_length
        self.micro_batch_size = micro_batch_size
        self.document_mask = document_mask
        self.vocab_size = vocab_size
        self._windows = -(-(len(source) - (source.row_length is None)) // sequence_length)
        if batches is not None:
            self._windows = min(self._windows, batches * global_batch_size)
        count = -(-self._windows // micro_batch_size)
        self._mine = range(data_rank, -(-count // data_ranks) * data_ranks, data_ranks)

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        """This rank's micro-batch `index`. Raises ValueError on an id beyond the vocabulary, IndexError at the end."""
        begin = self._mine[index] * self.micro_batch_size
        chosen = range(begin, min(begin + self.micro_batch_size, self._windows))
        batch = _read_windows(
            self.source,
            [(self.source, window) for window in chosen],
            self.sequence_length,
            self.micro_batch_size,
            self.document_mask,
            self.vocab_size,
        )
        windows = np.full(self.micro_batch_size, -1, np.int64)
        windows[: len(chosen)] = chosen
        return replace(batch, windows=windows)


def windows_in(source: TokenSource, sequence_length: int) -> int:
    """How many a source has, whole ones. A stream's last window needs one token more, as its last target."""
    return (len(source) - (source.row_length is None)) // sequence_length


def check_row_length(source: TokenSource, sequence_length: int) -> None:
    """ValueError for rows that were packed for another length."""
    if source.row_length is not None and source.row_length != sequence_length:
        raise ValueError(
            f"[data.loader] {source.shards[0].path}: its rows were packed for sequences of {source.row_length:,} tokens, "
            f"and data.sequence_length is {sequence_length:,}. Set it to {source.row_length}, or prepare the data with "
            f"--sequence-length {sequence_length}."
        )


def check_document_mask(source: TokenSource, document_mask: bool) -> None:
    """ValueError for a mask of documents whose ends nothing says."""
    if document_mask and source.row_length is None and source.eos_id is None and not source.has_documents:
        raise ValueError(
            f"[data.loader] {source.shards[0].path}: a document mask needs to know where documents end, and this "
            "data does not say it. Name the id that ends them in data.eos_id, prepare the data with `cktrain data prepare`, "
            "or turn the mask off."
        )


def windows_of(order: npt.NDArray[np.int64], windows: int, seed: int, shuffle: bool) -> npt.NDArray[np.int64]:
    """The windows at these places of the endless order of a source's `windows`: int64 as `order`."""
    epochs, rows = np.divmod(order, windows)
    if shuffle:
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = Permutation(windows, seed, int(epoch))(rows[here])
    return rows


def _read_windows(
    like: TokenSource,
    sequences: Sequence[tuple[TokenSource, int]],
    sequence_length: int,
    micro_batch_size: int,
    document_mask: bool,
    vocab_size: int | None,
) -> Batch:
    """The given windows as one micro-batch; missing windows and what lies beyond a stream are padding.

    Their sources are of the kind of `like`: all streams with the same end of documents, or all packed rows.
    """
    if like.row_length is not None:
        return _read_packed(sequences, sequence_length, micro_batch_size, vocab_size)
    ids = np.zeros((micro_batch_size, sequence_length), dtype=np.int32)
    labels = np.full((micro_batch_size, sequence_length), IGNORE_INDEX, dtype=np.int32)
    for row, (source, window) in enumerate(sequences):
        start = window * sequence_length
        count = min(sequence_length + 1, len(source) - start)
        read = source.read(start, count)
        if vocab_size is not None:
            source.check_ids(read, start, vocab_size)
        ids[row, : count - 1] = read[:-1]
        labels[row, : count - 1] = read[1:]
        if source.has_loss_mask:
            labels[row, : count - 1][~source.learned(start + 1, count - 1)] = IGNORE_INDEX
    if not document_mask:
        return Batch(ids, labels)
    if like.eos_id is not None and not any(source.has_documents for source, _ in sequences):
        first, positions = document_bounds(ids, like.eos_id)
        labels[ids == like.eos_id] = IGNORE_INDEX
        return Batch(ids, labels, positions, first)
    begins = np.zeros((micro_batch_size, sequence_length + 1), dtype=bool)
    if like.eos_id is not None:
        begins[:, 1:] = ids == like.eos_id
    for row, (source, window) in enumerate(sequences):
        if source.has_documents:
            start = window * sequence_length
            count = min(sequence_length + 1, len(source) - start)
            begins[row, :count] = source.document_begins(start, count)
    begins[:, 0] = False
    labels[begins[:, 1:]] = IGNORE_INDEX  # what follows is another document's first token
    first, positions = _bounds(begins[:, :-1])
    return Batch(ids, labels, positions, first)


def _read_packed(
    sequences: Sequence[tuple[TokenSource, int]], length: int, micro_batch_size: int, vocab_size: int | None
) -> Batch:
    """As `_read_windows`, of packed rows: nothing crosses the border of a row of the data."""
    ids = np.zeros((micro_batch_size, length), dtype=np.int32)
    labels = np.full((micro_batch_size, length), IGNORE_INDEX, dtype=np.int32)
    begins = np.zeros((micro_batch_size, length), dtype=bool)
    for row, (source, window) in enumerate(sequences):
        start = window * length
        ids[row] = source.read(start, length)
        if vocab_size is not None:
            source.check_ids(ids[row], start, vocab_size)
        begins[row] = source.begins(start, length)
        learned = source.learned(start, length) & ~begins[row]  # the token before belongs to another row
        labels[row, :-1] = np.where(learned[1:], ids[row, 1:], IGNORE_INDEX)
    first, positions = _bounds(begins)
    return Batch(ids, labels, positions, first)


def document_bounds(
    ids: npt.NDArray[np.int32], eos_id: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """First index of each token's document in its row, and the token's position in it: two int32 (B, T).

    A document ends with its eos. The one that a row opens with counts from the row's start.
    """
    begins = np.zeros(ids.shape, dtype=bool)
    begins[:, 1:] = ids[:, :-1] == eos_id
    return _bounds(begins)


def _bounds(begins: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    columns = np.arange(begins.shape[1], dtype=np.int32)
    first = np.maximum.accumulate(np.where(begins, columns, 0), axis=1, dtype=np.int32)
    return first, columns - first
