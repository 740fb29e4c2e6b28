"""What one rank meets becomes the same error on all: how a rank whose data or memory fails between two steps ends the run.

A rank that meets trouble where the others do not wait for it keeps a `Trouble`, takes part in the next vector that all
reduce (`parallel/step_reduction.py`) with its flag up, and then all call `agree`: they know each rank's words, and can
do together what is left to do. An error that is no AgreedError is known to its rank alone, which therefore says it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from cktrain.comm.group import Group


class AgreedError(Exception):
    """All ranks raise it, with the same text."""


class AgreedInputError(AgreedError, ValueError):
    """The user's data are wrong on some rank."""


class AgreedFault(AgreedError, RuntimeError):
    """Something else went wrong on some rank."""


@dataclass(frozen=True)
class Trouble:
    """What one rank has met."""

    text: str
    is_input: bool
    """Whether the user can mend it."""

    @classmethod
    def of(cls, error: Exception) -> Trouble:
        """What an exception says; a ValueError is the user's, unless it only comes by way of another rank."""
        if isinstance(error, ValueError):
            return cls(str(error), True)
        return cls(f"{type(error).__name__}: {error}".rstrip(": "), False)


def agree(group: Group, trouble: Trouble | None) -> AgreedError | None:
    """What all ranks then raise; None where no rank has any trouble. Collective."""
    mine = b"" if trouble is None else json.dumps([trouble.text, trouble.is_input]).encode()
    told = [json.loads(text) if text else None for text in group.all_gather_bytes(mine)]
    found: dict[str, list[int]] = {}
    for rank, trouble_of_rank in enumerate(told):
        if trouble_of_rank is not None:
            found.setdefault(trouble_of_rank[0], []).append(rank)
    if not found:
        return None
    words = "\n".join(f"{text}{_who(ranks, group.size)}" for text, ranks in sorted(found.items()))
    is_input = all(entry[1] for entry in told if entry is not None)
    return AgreedInputError(words) if is_input else AgreedFault(words)


def _who(ranks: Sequence[int], size: int) -> str:
    return "" if len(ranks) == size else f" (rank {', '.join(map(str, ranks))})"
