"""Which transport is taken when ranks have something against some, and what they are told; alone and as processes."""

from __future__ import annotations

import re
from pathlib import Path

import job
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.comm.errors import in_words, name_ranks
from cktrain.comm.reasons import (
    Passed,
    Reason,
    as_message,
    choose,
    describe_choice,
    from_message,
    unavailable,
)

NO_DEVICE = Reason("no RDMA device", "modprobe rdma_rxe")
NO_GID = Reason("no RoCEv2 GID", "ip address add")


def test_the_first_that_nobody_has_anything_against():
    of_ranks = {0: {"rdma": NO_DEVICE}, 1: {}, 2: {"rdma": NO_GID, "tcp": NO_GID}}
    assert choose(("rdma", "mpi", "tcp"), of_ranks) == ("mpi", [Passed("rdma", {0: NO_DEVICE, 2: NO_GID})])
    assert choose(("rdma", "tcp"), of_ranks)[0] is None
    assert choose(("mpi",), of_ranks) == ("mpi", [])


@pytest.mark.parametrize(
    "ranks, words",
    [([3], "rank 3"), ([0, 1, 2, 7], "ranks 0-2, 7"), ([0, 2, 4], "ranks 0, 2, 4"), ([1, 2], "ranks 1-2")],
)
def test_ranks_are_named_in_runs(ranks, words):
    assert name_ranks(ranks) == words


def test_equal_reasons_are_told_once():
    reasons = dict.fromkeys(range(64), "no device") | {5: "no GID"}
    assert in_words(reasons) == "ranks 0-4, 6-63: no device; rank 5: no GID"
    assert in_words(dict.fromkeys(range(4), "no device"), 4) == "no device"
    assert in_words(dict.fromkeys(range(3), "no device"), 4) == "ranks 0-2: no device"


def test_the_line_of_rank_0_names_ranks_only_where_they_differ():
    passed = [
        Passed("shm", dict.fromkeys(range(3), Reason("several nodes", ""))),
        Passed("rdma", {0: NO_DEVICE, 1: NO_DEVICE, 2: NO_GID}),
        Passed("mpi", {2: Reason("not installed", "")}),
    ]
    assert describe_choice("tcp", passed, 3) == (
        "transport: tcp; not used: shm: several nodes; rdma: ranks 0-1: no RDMA device; rank 2: no RoCEv2 GID; "
        "mpi: rank 2: not installed"
    )
    assert describe_choice("shm", [], 2, "asked for") == "transport: shm (asked for)"


def test_a_forced_transport_that_is_missing_is_an_error_of_all_ranks():
    error = unavailable("rdma", [Passed("rdma", {0: NO_DEVICE, 1: NO_DEVICE, 3: NO_GID})])
    assert error.reasons == {0: "no RDMA device", 1: "no RDMA device", 3: "no RoCEv2 GID"}
    assert str(error) == (
        "[comm] transport rdma is not available (ranks 0-1: no RDMA device; rank 3: no RoCEv2 GID). "
        "modprobe rdma_rxe; or ip address add."
    )


def test_when_nothing_is_left_every_transport_is_accounted_for():
    error = unavailable("auto", [Passed("mpi", {0: NO_DEVICE}), Passed("tcp", {0: NO_GID, 1: NO_GID})])
    assert error.reasons == {0: "mpi: no RDMA device; tcp: no RoCEv2 GID", 1: "tcp: no RoCEv2 GID"}


@given(st.dictionaries(st.text(), st.tuples(st.text(max_size=600), st.text(max_size=600))))
def test_reasons_travel_whole(reasons):
    reasons = {transport: Reason(*each) for transport, each in reasons.items()}
    assert from_message(as_message(reasons)) == reasons


@pytest.mark.parametrize("message", [None, [], {"tcp": "no"}, {"tcp": ["a"]}, {"tcp": ["a", 1]}])
def test_what_is_no_message_of_reasons(message):
    with pytest.raises(ValueError, match="unknown form"):
        from_message(message)


# ------------------------------------------------------------------------------------------------- as processes


def without_mpi4py(folder: Path) -> str:
    """A PYTHONPATH with an mpi4py that does not load."""
    (folder / "mpi4py.py").write_text('raise ImportError("libmpi.so.12: cannot open shared object file")\n')
    return str(folder)


def test_one_rank_without_mpi_is_told_by_all(tmp_path):
    """mpi is forced and one rank of three cannot load it: nobody waits in MPI, all say which rank and why."""
    openmpi = {
        "CKTRAIN_TEST_TRANSPORT": "mpi",
        "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "3",
    }
    places = [{"OMPI_COMM_WORLD_RANK": str(r), "OMPI_COMM_WORLD_LOCAL_RANK": str(r)} for r in range(3)]
    places[1]["PYTHONPATH"] = without_mpi4py(tmp_path)
    with job.start(3, "rank_program.py", "exit_with", "0", each=places, **openmpi) as ranks:
        ends = ranks.ends(20)
    for end in ends:
        assert end.status == 1, end.output
        assert "TransportUnavailableError: [comm] transport mpi is not available (" in end.output
        assert "rank 1: mpi4py does not load: ImportError: libmpi.so.12" in end.output, end.output
        assert 'pip install "cktrain[mpi]"' in end.output


def test_one_rank_without_the_interface_is_told_by_all():
    """The ranks meet over sockets: the rank that lacks comm.interface comes all the same, to say so."""
    lo = {"CKTRAIN_TEST_INTERFACE": "lo", "CKTRAIN_TEST_TRANSPORT": "tcp"}
    with job.start(
        3, "rank_program.py", "exit_with", "0", each=[lo, lo, lo | {"CKTRAIN_TEST_INTERFACE": "ib7"}]
    ) as ranks:
        ends = ranks.ends(20)
    for end in ends:
        assert end.status == 1, end.output
        assert (
            "transport tcp is not available (rank 2: comm.interface: 'ib7' has no IPv4 address" in end.output
        )


@pytest.mark.parametrize("missing", [[0, 1], [1]])
def test_rank_0_logs_why_transports_were_passed_over(missing, tmp_path):
    """Ranks on two nodes, as the launcher says, with a secret: MPI is passed over where a rank lacks it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 32)
    secret.chmod(0o600)
    common = {
        "CKTRAIN_TEST_TRANSPORT": "auto",
        "CKTRAIN_SECRET_FILE": str(secret),
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "CKTRAIN_TEST_LOG": "INFO",
    }
    places = [{"OMPI_COMM_WORLD_RANK": str(r)} for r in range(2)]
    for rank in missing:
        places[rank]["PYTHONPATH"] = without_mpi4py(tmp_path)
    with job.start(2, "rank_program.py", "exit_with", "0", each=places, **common) as ranks:
        ends = ranks.ends(20)
    assert [end.status for end in ends] == [0, 0], ends
    began = "transport: tcp; not used: shm: the ranks are on several nodes: 1 of 2 are on this one; rdma: "
    assert began in ends[0].output, ends[0].output
    who = r"; mpi: " if len(missing) == 2 else r"; mpi: .*rank 1: "
    assert re.search(who + "mpi4py does not load: ImportError: libmpi", ends[0].output), ends[0].output
    assert "transport:" not in ends[1].output


def test_mpi_is_not_loaded_where_ranks_share_a_node():
    with job.start(2, "rank_program.py", "loaded_modules", CKTRAIN_TEST_TRANSPORT="auto") as ranks:
        ends = ranks.ends(20)
    assert [end.status for end in ends] == [0, 0], ends
    assert all("mpi4py: False" in end.output for end in ends)
