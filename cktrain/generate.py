"""Generates tokens one after another, with a key/value cache.

Shapes: logits (V,); cached keys and values (1, P, K, D) per layer, for P positions. The prompt goes through
the model in chunks, each token after it alone; a chunk's queries see the cached keys of all tokens before
them.
"""

from __future__ import annotations

import math
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
    """A model reading one sequence token by token."""

    def __init__(self, model: Transformer, capacity: int) -> None:
        assert model.head is not None, "a whole model"
        self.model = model
        self.head = model.head
        self.cache = KeyValueCache(capacity)
        self._slots: dict[int, Slot] = {}

    def feed(self, ids: Sequence[int]) -> np.ndarray:
        """Read the next tokens, at least one; returns the logits (V,) for the token after them."""
        assert ids
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
        if length not in self._slots:
            with self.model.num.dry():
                plan = plan_slot(1, length, self._dry_run)
            self._slots[length] = plan.allocate()[0]
            self._slots[length].cache = self.cache
        return self._slots[length]


class Sampler:
    """Chooses the next token: the most likely one at temperature 0, else by chance among the likely ones."""

    def __init__(self, temperature: float, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> None:
        """`top_k` 0 keeps all tokens; `top_p` the fewest of this probability (Holtzman et al. 2020)."""
        if not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1 or seed < 0:
            raise ValueError(
                f"[generate] temperature {temperature}, top_k {top_k}, top_p {top_p}, seed {seed}: "
                "temperature, top_k and seed are at least 0, top_p is above 0 and at most 1. Correct them."
            )
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self._rng = np.random.Generator(np.random.Philox(seed))

    def choose(self, logits: np.ndarray) -> int:
        """An index into logits (V,). Raises ValueError when they are NaN or infinite."""
        wide = logits.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError(
                "[generate] the model's logits are NaN or infinite. Use weights from before it diverged."
            )
        if self.temperature == 0:
            return int(wide.argmax())
        order = np.argsort(-wide, kind="stable")[: self.top_k or None]
        weights = np.exp((wide[order] - wide[order[0]]) / self.temperature)
        sums = np.cumsum(weights / weights.sum())
        kept = int(np.searchsorted(sums, self.top_p)) + 1 if self.top_p < 1 else order.size
        sums = sums[:kept]
        return int(
            order[min(np.searchsorted(sums, self._rng.random() * sums[-1], side="right"), sums.size - 1)]
        )


def generate(
    model: Transformer,
    prompt: Sequence[int],
    max_tokens: int,
    choose: Callable[[np.ndarray], int],
    positions: int,
    stop_ids: frozenset[int] = frozenset(),
) -> Iterator[int]:
    """Yield the tokens that follow the prompt: `max_tokens`, or fewer: positions or a stop id end it.

    `positions` is the number of positions that the model was built with. Raises ValueError at once for an
    empty prompt, one longer than the positions, or ids beyond the vocabulary.
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
    count = min(max_tokens, positions - len(prompt) + 1)  # the last token is not read again
    return _generate(Decoder(model, len(prompt) + count - 1), prompt, count, choose, stop_ids)


def _generate(
    decoder: Decoder,
    prompt: Sequence[int],
    count: int,
    choose: Callable[[np.ndarray], int],
    stop_ids: frozenset[int],
) -> Iterator[int]:
    unread = prompt
    for _ in range(count):
        token = choose(decoder.feed(unread))
        if token in stop_ids:
            return
        yield token
        unread = [token]
