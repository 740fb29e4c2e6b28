"""Why ranks cannot use a transport: what each of them says, who decides, and how it reads.

Every rank probes for itself, before anything is built, and the reasons travel with the first meeting of the ranks
(`cktrain.comm.bootstrap`). All ranks then hold the same list and take the same transport from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cktrain.comm.errors import TransportUnavailableError, in_words

# What a rank may say at most; longer ones are cut, so that a meeting's messages stay within their limit.
_MAX_CHARACTERS = 600


class Reason(NamedTuple):
    """Why a rank cannot use a transport, and the one thing to do about it."""

    reason: str
    remedy: str


Reasons = dict[str, Reason]
"""By transport, those that a rank cannot use."""


class Passed(NamedTuple):
    """A transport that was passed over: the reason of each rank that has one."""

    transport: str
    reasons: dict[int, Reason]


def choose(order: Sequence[str], of_ranks: Mapping[int, Reasons]) -> tuple[str | None, list[Passed]]:
    """The first transport of `order` that no rank has a reason against, or None; and those that were passed over."""
    passed: list[Passed] = []
    for transport in order:
        against = {rank: said[transport] for rank, said in of_ranks.items() if transport in said}
        if not against:
            return transport, passed
        passed.append(Passed(transport, against))
    return None, passed


def describe_choice(chosen: str, passed: Sequence[Passed], size: int, why: str = "") -> str:
    """The line that says what carries the bytes, and why others do not."""
    words = f"transport: {chosen}" + (f" ({why})" if why else "")
    if passed:
        each = [
            f"{transport}: {in_words({r: x.reason for r, x in reasons.items()}, size)}"
            for transport, reasons in passed
        ]
        words += f"; not used: {'; '.join(each)}"
    return words


def unavailable(asked: str, passed: Sequence[Passed]) -> TransportUnavailableError:
    """The error when `asked` ("auto", or the one transport that was forced) leaves none; `passed` is not empty."""
    said: dict[int, list[str]] = {}
    for transport, reasons in passed:
        for rank, why in reasons.items():
            said.setdefault(rank, []).append(f"{transport}: {why.reason}" if asked == "auto" else why.reason)
    every = [why.remedy for each in passed[-2:] for _, why in sorted(each.reasons.items())]
    return TransportUnavailableError(
        "comm",
        asked,
        {rank: "; ".join(words) for rank, words in said.items()},
        "; or ".join(dict.fromkeys(every)),
    )


def as_message(reasons: Reasons) -> dict[str, list[str]]:
    """The reasons as JSON can hold them."""
    return {
        transport: [reason[:_MAX_CHARACTERS], remedy[:_MAX_CHARACTERS]]
        for transport, (reason, remedy) in reasons.items()
    }


def from_message(message: Any) -> Reasons:
    """The inverse of as_message.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(message, dict) or not all(
        isinstance(each, list) and len(each) == 2 and all(isinstance(text, str) for text in each)
        for each in message.values()
    ):
        raise ValueError("reasons of an unknown form")
    return {
        str(transport): Reason(reason[:_MAX_CHARACTERS], remedy[:_MAX_CHARACTERS])
        for transport, (reason, remedy) in message.items()
    }
