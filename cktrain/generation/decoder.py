"""A model that reads token by token with a key/value cache, and tokens one after another.

Shapes: B sequences, logits (V,) of one of them or (B, V). A prompt goes through the model in chunks, whose queries see the
cached keys of all tokens before them; each token after it alone, all sequences in one step (`recorded_step.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from cktrain.generation.cache import KeyValueCache
from cktrain.generation.recorded_step import RecordedStep
from cktrain.memory.slot import Slot, plan_slot
from cktrain.models.transformer import Transformer

PROMPT_CHUNK = 256


class Decoder:
    """A model reading sequences token by token.

    An interrupt leaves it whole: what it knows of the first sequence are the first `cache.length` ids that it has begun to
    read.
    """

    def __init__(
        self, model: Transformer, capacity: int, batch: int = 1, kv_dtype: np.dtype | None = None
    ) -> None:
        """`batch` sequences of up to `capacity` tokens; keys and values are held in `kv_dtype`, None: as computed."""
        assert model.head is not None, "a whole model"
        self.model = model
        self.head = model.head
        self.cache = KeyValueCache(capacity, batch, kv_dtype)
        self._begun: list[int] = []
        self._next = 0
        self._slots: dict[int, Slot] = {}
        self._step: RecordedStep | None = None

    def known(self, ids: Sequence[int]) -> int:
        """How many of the first ids it has read already, less the last one, whose logits are to be computed."""
        have = self._begun[: self.cache.length]
        same = (i for i, (a, b) in enumerate(zip(have, ids, strict=False)) if a != b)
        count = min(next(same, min(len(have), len(ids))), len(ids) - 1)
        return count if self.cache.keeps(count) else 0

    def follow(self, ids: Sequence[int]) -> np.ndarray:
        """The logits (V,) after these ids, at least one; those that it knows at their beginning are not read again."""
        assert ids
        self.cache.length = self.known(ids)
        return self.feed(ids[self.cache.length :])

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Read the next tokens of the only sequence, at least one; returns the logits (V,) for the token after them."""
        assert ids and len(self.cache.lengths) == 1
        self._begun[self.cache.length :] = ids
        return self._read(ids)

    def read(self, sequence: int, ids: Sequence[int]) -> np.ndarray:
        """Begin a sequence anew with these ids, at least one; returns the logits (V,) for the token after them."""
        self.forget(sequence)
        self._begun = list(ids)
        return self._read(ids)

    def step(self, ids: np.ndarray, going_on: np.ndarray | None = None) -> np.ndarray:
        """One more token of each sequence, ids (B,); returns the logits (B, V) for the tokens after them.

        Where `going_on` (B,) is False, a sequence stays as it is, and its logits mean nothing; of one that is full, and so
        has ended, the last row is used up. None: all go on.
        """
        if self._step is None:
            self._step = RecordedStep(self.model, self._plan(len(self.cache.lengths), 1), self.cache)
        lengths = self.cache.lengths
        full = 0 if going_on is None else (lengths == self.cache.capacity) & ~going_on
        lengths -= full
        self.cache.begin_step()
        logits = self._step.logits(ids)
        lengths += full + (1 if going_on is None else going_on)
        return logits

    def forget(self, sequence: int) -> None:
        """The sequence is empty."""
        self.cache.sequence = sequence
        self.cache.length = 0

    def put(self, token: int) -> None:
        """The only sequence goes on with this token, when its logits are asked for."""
        self._next = token

    def logits(self) -> np.ndarray:
        """The logits (V,) after the token that was put."""
        return self.feed([self._next])

    @property
    def recorded_step(self) -> RecordedStep | None:
        """What makes the steps, once there was one."""
        return self._step

    def _read(self, ids: Sequence[int]) -> np.ndarray:
        if len(ids) == 1 and len(self.cache.lengths) == 1:
            return self.step(np.array(ids, np.int32))[0]
        for start in range(0, len(ids), PROMPT_CHUNK):
            chunk = np.array(ids[start : start + PROMPT_CHUNK], np.int32)
            slot = self._slot(chunk.size)
            first = self.cache.length
            slot.describe(np.arange(first, first + chunk.size, dtype=np.int32), None)
            self.cache.begin(chunk.size)
            stream = self._run(chunk, slot)
            self.cache.advance(chunk.size)
        return self.head.logits(stream[-1:])[0]

    def _run(self, ids: np.ndarray, slot: Slot) -> np.ndarray:
        """The stream (S, C) after the last block. No backward follows, so one block's arrays serve all blocks."""
        with slot.recomputing():
            return self.model.hidden(ids, slot)

    def _dry_run(self, slot: Slot) -> None:
        self._run(np.zeros(slot.rows, np.int32), slot)

    def _slot(self, length: int) -> Slot:
        """For a piece of a prompt: that of the last length is kept."""
        if length not in self._slots:
            self._slots = {}
            self._slots[length] = self._plan(1, length)
        return self._slots[length]

    def _plan(self, batch: int, length: int) -> Slot:
        with self.model.num.dry():
            plan = plan_slot(batch, length, self._dry_run)
        slot = plan.allocate()[0]
        slot.cache = self.cache
        return slot


class Reader(Protocol):
    """What reads a text for `generate`: a decoder of one sequence, or a place in a batch."""

    def follow(self, ids: Sequence[int]) -> np.ndarray:
        """The logits (V,) after these ids, at least one."""

    def put(self, token: int) -> None:
        """The text goes on with this token."""

    def logits(self) -> np.ndarray:
        """The logits (V,) after the token that was put."""


Choose = Callable[[np.ndarray, Sequence[int]], int]
"""The next token, by the logits (V,) and the text before it."""


def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_tokens: int,
    choose: Choose,
    positions: int,
    stop_ids: frozenset[int] = frozenset(),
    decoder: Reader | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow the prompt: `max_tokens`, or fewer: positions or a stop id end it.

    `positions` is the number of positions that the model was built with. A `decoder` of the model that knows the prompt's
    beginning need not read it again. Raises ValueError at once for an empty prompt, one longer than the positions, or ids
    beyond the vocabulary.
    """
    if not prompt or max_tokens < 1:
        raise ValueError(
            f"[generate] {len(prompt)} tokens of prompt and {max_tokens} to generate: both are at least 1. "
            "Ask for more."
        )
    assert model.head is not None, "a whole model"
    if max(prompt) >= model.head.vocab_size:
        raise ValueError(
            f"[generate] the prompt has token id {max(prompt)} and the model's vocabulary "
            f"{model.head.vocab_size} ids. "
            "Use the tokenizer that it was trained with."
        )
    if len(prompt) > positions:
        raise ValueError(
            f"[generate] the prompt has {len(prompt):,} tokens and the model {positions:,} positions. "
            "Shorten the prompt."
        )
    count = most_tokens(len(prompt), max_tokens, positions)
    if decoder is None:
        decoder = Decoder(model, len(prompt) + count - 1)
    return _generate(decoder, prompt, count, choose, stop_ids)


def most_tokens(prompt: int, max_tokens: int, positions: int) -> int:
    """How many tokens may follow a prompt of so many: the last one is not read again."""
    return min(max_tokens, positions - prompt + 1)


def _generate(
    reader: Reader, prompt: Sequence[int], count: int, choose: Choose, stop_ids: frozenset[int]
) -> Iterator[int]:
    text = list(prompt)
    logits = reader.follow(text)
    for made in range(count):
        token = choose(logits, text)
        if token in stop_ids:
            return
        if made + 1 < count:
            text.append(token)
            reader.put(token)
        yield token
        if made + 1 < count:
            logits = reader.logits()
