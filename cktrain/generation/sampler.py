"""The choice of the next token: penalty, temperature and filters are those of transformers' logits processors, in its order.

    repetition penalty   logits of tokens that stand in the text already are divided by it, negative ones multiplied
    temperature          logits are divided by it
    top-k                only the k largest stay, and what equals the smallest of them
    top-p                of these the fewest whose probability is p (Holtzman et al. 2020)
    min-p                of these the ones whose probability is at least so much of the largest one's (Nguyen et al. 2024)

Shapes: logits (V,), computed in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class Sampler:
    """Chooses the next token: the most likely one at temperature 0, else by chance among those that the filters leave."""

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        """`top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 change nothing. ValueError: one is out of range."""
        numbers = (temperature, top_p, min_p, repetition_penalty)
        in_range = temperature >= 0 and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1 and seed >= 0
        if not (all(map(math.isfinite, numbers)) and in_range and repetition_penalty > 0):
            raise ValueError(
                f"[generate] temperature {temperature}, top_k {top_k}, top_p {top_p}, min_p {min_p}, repetition_penalty "
                f"{repetition_penalty}, seed {seed}: temperature, top_k, min_p and seed are at least 0, top_p and "
                "repetition_penalty above 0, top_p and min_p at most 1. Correct them."
            )
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self._rng = np.random.Generator(np.random.Philox(seed))

    def choose(self, logits: npt.NDArray[np.floating], text: Sequence[int] = ()) -> int:
        """An index into logits (V,), after the ids of `text`. Raises ValueError when logits are NaN or infinite."""
        wide = logits.astype(np.float64)
        if not np.isfinite(wide).all():
            raise ValueError(
                "[generate] the model's logits are NaN or infinite. Use weights from before it diverged."
            )
        self._penalise(wide, text)
        if self.temperature == 0:
            return int(wide.argmax())
        kept, weights = self._filtered(wide)
        sums = np.cumsum(weights / weights.sum())
        drawn = np.searchsorted(sums, self._rng.random() * sums[-1], side="right")
        return int(kept[min(drawn, sums.size - 1)])

    def probabilities(
        self, logits: npt.NDArray[np.floating], text: Sequence[int] = ()
    ) -> npt.NDArray[np.float64]:
        """With which probability each id (V,) would be chosen, at a temperature above 0."""
        wide = logits.astype(np.float64)
        self._penalise(wide, text)
        kept, weights = self._filtered(wide)
        found = np.zeros(wide.shape)
        found[kept] = weights / weights.sum()
        return found

    def _penalise(self, logits: npt.NDArray[np.float64], text: Sequence[int]) -> None:
        if self.repetition_penalty == 1 or not len(text):
            return
        seen = np.unique(np.asarray(text))
        there = logits[seen]
        logits[seen] = np.where(there < 0, there * self.repetition_penalty, there / self.repetition_penalty)

    def _filtered(
        self, logits: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The ids that may be chosen, the likeliest first, and their probabilities times one number."""
        if 0 < self.top_k < logits.size:
            smallest = np.partition(logits, -self.top_k)[-self.top_k]
            ids = np.flatnonzero(logits >= smallest)
        else:
            ids = np.arange(logits.size)
        order = ids[np.argsort(-logits[ids], kind="stable")]
        weights = np.exp((logits[order] - logits[order[0]]) / self.temperature)
        kept = order.size
        if self.top_p < 1:
            kept = int(np.searchsorted(np.cumsum(weights / weights.sum()), self.top_p)) + 1
        if self.min_p > 0:
            kept = min(kept, int(np.sum(weights >= self.min_p)))  # the largest weight is 1
        return order[:kept], weights[:kept]
