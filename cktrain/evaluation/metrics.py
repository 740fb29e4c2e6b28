"""How well an answer agrees with the one that a row has: a number from 0 to 1.

exact_match   1 where both are the same, but for white space around them
rouge_l       F-measure of the longest common subsequence of words (Lin 2004), by the package rouge-score; words are runs
              of letters and digits in lower case, of any script, which in ASCII are those of the package itself
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"[^\W_]+")


def exact_match(answer: str, reference: str) -> float:
    """1 or 0."""
    return float(answer.strip() == reference.strip())


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L's F-measure. Raises ValueError where rouge-score is not installed."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


METRICS: dict[str, Callable[[str, str], float]] = {"exact_match": exact_match, "rouge_l": rouge_l}


def check_metrics(names: list[str]) -> None:
    """Raises ValueError for one that is unknown, or needs what is not installed."""
    for name in names:
        if name not in METRICS:
            raise ValueError(f"[evaluate] metric {name!r}: give some of {', '.join(METRICS)}.")
        METRICS[name]("a", "a")


@lru_cache(maxsize=1)
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError(
            "[evaluate] rouge_l needs the package rouge-score: pip install 'cktrain[eval]'."
        ) from None
    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())
