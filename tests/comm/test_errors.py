"""Errors carry their facts and say [where] who, what with numbers, and one thing to do."""

from __future__ import annotations

import re

import pytest

from cktrain.comm.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    CommError,
    PeerLostError,
    RendezvousError,
    TransportUnavailableError,
)

ERRORS = [
    (
        PeerLostError("comm.tcp", 5, "node7", "all_reduce of 4,194,304 bytes", "connection closed", 3),
        {"rank": 5, "host": "node7", "how": "connection closed", "seen_by": 3},
        ["rank 3", "rank 5 on node7", "4,194,304 bytes"],
    ),
    (
        CollectiveTimeoutError("comm.mpi", 2, "barrier on group data", 60, missing=[1, 4]),
        {"rank": 2, "operation": "barrier on group data", "timeout_s": 60, "missing": (1, 4)},
        ["rank 2", "60 s", "1, 4"],
    ),
    (
        CollectiveMismatchError("comm.mpi", 0, "all_reduce(float32[5])", {1: "barrier"}),
        {"rank": 0, "mine": "all_reduce(float32[5])", "theirs": {1: "barrier"}},
        ["rank 0 called all_reduce(float32[5])", "rank 1 called barrier"],
    ),
    (
        RendezvousError("comm", "rank 3 of size 2", "Start anew"),
        {"problem": "rank 3 of size 2"},
        ["Start anew"],
    ),
    (
        TransportUnavailableError("comm", "mpi", {0: "no mpi4py", 3: "no libmpi"}, "Install it"),
        {"transport": "mpi", "reasons": {0: "no mpi4py", 3: "no libmpi"}},
        ["rank 0: no mpi4py", "rank 3: no libmpi"],
    ),
]


@pytest.mark.parametrize("error, fields, words", ERRORS, ids=lambda x: type(x).__name__)
def test_fields_and_sentence(error, fields, words):
    assert isinstance(error, CommError) and isinstance(error, RuntimeError)
    assert {name: getattr(error, name) for name in fields} == fields
    message = str(error)
    assert all(word in message for word in words), message
    assert re.fullmatch(r"\[comm(\.\w+)?\] .+\. [A-Z].+\.", message), message
