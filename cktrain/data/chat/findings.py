"""What is worth knowing of rows before they are trained on: bad ones, twins, leaks into validation, lengths, shares."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cktrain.data.shards import Split

NAMED_ROWS = 20
"""So many bad rows are named."""
_NO_LETTER = re.compile(r"\W+")


class BadRows:
    """Rows that cannot be used, by reason."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.remedies: dict[str, str] = {}
        self.first: list[str] = []

    def add(self, place: str, why: str, remedy: str) -> None:
        """Count one."""
        self.count += 1
        self.reasons[why] += 1
        self.remedies.setdefault(why, remedy)
        if len(self.first) < NAMED_ROWS:
            self.first.append(f"{place}: {why}")

    def lines(self) -> list[str]:
        """Reasons with their counts, the most frequent first, then the first rows."""
        by_reason = [f"{count:,} x {why}. {self.remedies[why]}" for why, count in self.reasons.most_common()]
        more = [f"and {self.count - len(self.first):,} more"] if self.count > len(self.first) else []
        return [*by_reason, *self.first, *more]


class Twins:
    """Rows that are the same as an earlier one, and rows of validation that training has too.

    Near is a row with the same letters and digits: without case, punctuation and white space.
    """

    def __init__(self) -> None:
        self.duplicates = 0
        self.first_duplicate = ""
        self._exact: dict[bytes, str] = {}
        self._splits: dict[bool, dict[Split, Counter[bytes]]] = {
            near: {"train": Counter(), "validation": Counter()} for near in (False, True)
        }
        self._places: dict[bytes, str] = {}

    def add(self, texts: Sequence[str], split: Split, place: str) -> None:
        """Compare a row's texts with those of the rows before."""
        exact = _digest(texts)
        if exact in self._exact:
            self.duplicates += 1
            self.first_duplicate = self.first_duplicate or f"{place} is {self._exact[exact]}"
        else:
            self._exact[exact] = place
        near = _digest([_NO_LETTER.sub("", text.casefold()) for text in texts])
        for kind, digest in ((False, exact), (True, near)):
            self._splits[kind][split][digest] += 1
        if split == "validation":
            self._places.setdefault(exact, place)
            self._places.setdefault(near, place)

    def leaks(self, near: bool) -> tuple[int, str]:
        """How many rows of validation are in training too, and the place of the first; near ones include exact ones."""
        found = self._splits[near]
        both = [digest for digest in found["validation"] if digest in found["train"]]
        return sum(found["validation"][digest] for digest in both), self._places[both[0]] if both else ""


def length_summary(lengths: Sequence[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum of rows' tokens."""
    if not lengths:
        return {"p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(np.asarray(lengths), (50, 95), method="inverted_cdf")
    return {"p50": int(p50), "p95": int(p95), "max": max(lengths)}


def share(part: int, whole: int) -> float:
    """A share, rounded to what one looks at; 0 of nothing."""
    return round(part / whole, 4) if whole else 0.0


def described(found: dict[str, Any]) -> list[str]:
    """The summary of chat data, in sentences."""
    length = found["length"]
    lines = [
        f"{found['rows']:,} {'pairs' if 'pairs' in found else 'rows'} "
        f"({', '.join(f'{n:,} {shape}' for shape, n in found['shapes'].items())}) in "
        f"{found['sequences']:,} sequences of {found['sequence_length']:,} tokens: {found['packing_efficiency']:.1%} filled",
        f"length p50 {length['p50']:,}, p95 {length['p95']:,}, max {length['max']:,} tokens; "
        f"{found['trained_tokens']:,} of {found['row_tokens']:,} tokens are trained ({found['trained_share']:.1%})",
    ]
    if found["masks"]:
        lines.append(
            "trained are the answers, found by "
            + ", ".join(f"{how} ({count:,} rows)" for how, count in found["masks"].items())
        )
    return lines


def _digest(texts: Sequence[str]) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode()
        made.update(len(data).to_bytes(8, "little") + data)
    return made.digest()
