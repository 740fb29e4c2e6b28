"""What can go wrong between ranks, as exceptions that carry their facts.

Every sentence has the form `[where] who, what with numbers. One thing to do.` Errors of the caller's own
making (wrong dtype, wrong length) are `ValueError`; these are the world's. After any of them the group is not
to be used again: the rank that sees one ends its run with exit status 1 (`cktrain.comm.bootstrap.abort`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CommError(RuntimeError):
    """Base of all communication errors. `where` is the part of comm that speaks, e.g. "comm.mpi"."""

    def __init__(self, where: str, sentence: str, remedy: str):
        self.where = where
        self.sentence = sentence
        self.remedy = remedy
        super().__init__(f"[{where}] {sentence}. {remedy}.")


class PeerLostError(CommError):
    """Rank `rank` on `host` is gone; `operation` is what this rank (`seen_by`) was doing with it."""

    def __init__(self, where: str, rank: int, host: str, operation: str, how: str, seen_by: int):
        self.rank = rank
        self.host = host
        self.operation = operation
        self.how = how
        self.seen_by = seen_by
        super().__init__(
            where,
            f"rank {seen_by}: lost rank {rank} on {host} ({how}) during {operation}",
            f"Read the log of rank {rank}, then resume from the last checkpoint",
        )


class CollectiveTimeoutError(CommError):
    """`operation` on rank `rank` was not complete after `timeout_s` seconds.

    `missing` names the ranks that did not take part, where the transport can tell.
    """

    def __init__(self, where: str, rank: int, operation: str, timeout_s: float, missing: Sequence[int] = ()):
        self.rank = rank
        self.operation = operation
        self.timeout_s = timeout_s
        self.missing = tuple(missing)
        if self.missing:
            names = ", ".join(str(r) for r in self.missing)
            absent, remedy = f"; ranks not heard from: {names}", f"Check that ranks {names} are alive"
        else:
            absent, remedy = "", "Check that every rank is alive and makes the same calls in the same order"
        super().__init__(
            where,
            f"rank {rank}: {operation} not complete after {timeout_s:g} s{absent}",
            f"{remedy}, or raise comm.timeout_s",
        )


class CollectiveMismatchError(CommError):
    """Ranks called different things: `mine` on `rank`, `theirs` maps each differing rank to its call.

    `theirs` is empty where the difference does not say who called what; `unnamed` then tells what is known of it.
    """

    def __init__(
        self,
        where: str,
        rank: int,
        mine: str,
        theirs: Mapping[int, str],
        remedy: str = "Make every rank of the group call the same operation with the same dtype and length",
        unnamed: str = "a peer sent more than that",
    ):
        self.rank = rank
        self.mine = mine
        self.theirs = dict(theirs)
        others = "; ".join(f"rank {r} called {call}" for r, call in sorted(self.theirs.items()))
        others = others or unnamed
        super().__init__(
            where,
            f"rank {rank} called {mine}, but {others}",
            remedy,
        )


class RendezvousError(CommError):
    """The ranks of a job did not find each other, or do not agree who they are."""

    def __init__(self, where: str, problem: str, remedy: str):
        self.problem = problem
        super().__init__(where, problem, remedy)


class TransportUnavailableError(CommError):
    """`transport` cannot be used; `reasons` maps each rank that said why to its reason; equal ones are told once."""

    def __init__(self, where: str, transport: str, reasons: Mapping[int, str], remedy: str):
        self.transport = transport
        self.reasons = dict(reasons)
        super().__init__(where, f"transport {transport} is not available ({in_words(self.reasons)})", remedy)


def in_words(reasons: Mapping[int, str], size: int | None = None) -> str:
    """Each distinct reason with the ranks that have it; without ranks where all `size` of them have the same."""
    ranks_of: dict[str, list[int]] = {}
    for rank, reason in sorted(reasons.items()):
        ranks_of.setdefault(reason, []).append(rank)
    if len(ranks_of) == 1 and len(reasons) == size:
        return next(iter(ranks_of))
    return "; ".join(f"{name_ranks(ranks)}: {reason}" for reason, ranks in ranks_of.items())


def name_ranks(ranks: Sequence[int]) -> str:
    """Write ranks, ascending, as "rank 3" or "ranks 0-2, 7"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"
