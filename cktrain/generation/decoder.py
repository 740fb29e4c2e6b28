"""A model that reads token by token with a key/value cache, and tokens one after another.

Shapes: logits (V,); cached keys and values (1, P, K, D) per layer, for P positions. The prompt goes through
the model in chunks, each token after it alone; a chunk's queries see the cached keys of all tokens before
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cktrain.memory.slot import Slot, plan_slot
from cktrain.models.transformer import Transformer

PROMPT_CHUNK = 256


class KeyValueCache:
    """The keys and values of one sequence of up to `capacity` tokens, for every attention layer."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        """Of the tokens that every layer has read; made less, what comes next overwrites the rest."""
        self._layers: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def extend(self, layer: str, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append k and v (1, S, K, D) of S new tokens; returns all T so far, (1, T, K, D), as views."""
        if layer not in self._layers:
            shape = (1, self.capacity, *k.shape[2:])
            self._layers[layer] = (np.zeros(shape, k.dtype), np.zeros(shape, v.dtype))
        end = self.length + k.shape[1]
        assert k.shape[0] == 1 and end <= self.capacity, (k.shape, end, self.capacity)
        keys, values = self._layers[layer]
        keys[:, self.length : end], values[:, self.length : end] = k, v
        return keys[:, :end], values[:, :end]

    def advance(self, count: int) -> None:
        """Every layer has been given `count` tokens."""
        self.length += count


class Decoder:
    """A model reading one sequence token by token.

    An interrupt leaves it whole: what it knows are the first `cache.length` ids that it has begun to read.
    """

    def __init__(self, model: Transformer, capacity: int) -> None:
        assert model.head is not None, "a whole model"
        self.model = model
        self.head = model.head
        self.cache = KeyValueCache(capacity)
        self._begun: list[int] = []
        self._slots: dict[int, Slot] = {}

    def known(self, ids: Sequence[int]) -> int:
        """How many of the first ids it has read already, less the last one, whose logits are to be computed."""
        have = self._begun[: self.cache.length]
        same = (i for i, (a, b) in enumerate(zip(have, ids, strict=False)) if a != b)
        return min(next(same, min(len(have), len(ids))), len(ids) - 1)

    def follow(self, ids: Sequence[int]) -> np.ndarray:
        """The logits (V,) after these ids, at least one; those that it knows at their beginning are not read again."""
        assert ids
        self.cache.length = self.known(ids)
        return self.feed(ids[self.cache.length :])

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Read the next tokens, at least one; returns the logits (V,) for the token after them."""
        assert ids
        self._begun[self.cache.length :] = ids
        for start in range(0, len(ids), PROMPT_CHUNK):
            chunk = np.array(ids[start : start + PROMPT_CHUNK], np.int32)
            slot = self._slot(chunk.size)
            first = self.cache.length
            slot.describe(np.arange(first, first + chunk.size, dtype=np.int32), None)
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
        """That of one token is kept, and of longer pieces the last one."""
        if length not in self._slots:
            for other in set(self._slots) - {1}:
                del self._slots[other]
            with self.model.num.dry():
                plan = plan_slot(1, length, self._dry_run)
            slot = plan.allocate()[0]
            slot.cache = self.cache
            self._slots[length] = slot
        return self._slots[length]


Choose = Callable[[np.ndarray, Sequence[int]], int]
"""The next token, by the logits (V,) and the text before it."""


def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_tokens: int,
    choose: Choose,
    positions: int,
    stop_ids: frozenset[int] = frozenset(),
    decoder: Decoder | None = None,
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
    decoder: Decoder, prompt: Sequence[int], count: int, choose: Choose, stop_ids: frozenset[int]
) -> Iterator[int]:
    text = list(prompt)
    logits = decoder.follow(text)
    for made in range(count):
        token = choose(logits, text)
        if token in stop_ids:
            return
        yield token
        if made + 1 < count:
            text.append(token)
            logits = decoder.feed([token])
