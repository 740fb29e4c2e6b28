"""TcpGroup: the conformance checks with every algorithm, many operations back to back, messages that do not fit."""

from __future__ import annotations

import signal

import job
import numpy as np
import pytest

from cktrain.comm.algorithms import DEFAULT, KNOWN, check_override, choose, even_parts, plan
from cktrain.comm.tcp_group import sockets_per_pair


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_conformance(ranks):
    with job.start(ranks, "rank_program.py", "run_conformance", CKTRAIN_TEST_TRANSPORT="tcp") as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * ranks, ends
    assert "checks run: 20" in ends[0].output


@pytest.mark.parametrize("algorithm", ["doubling", "direct", "ring", "halving_doubling", "binomial", "chain"])
def test_every_algorithm_gives_the_same_numbers(algorithm):
    """Canonical ones to the bit; the others within rounding, and to the bit on all ranks and in a second run."""
    with job.start(
        3, "rank_program.py", "compare_algorithms", algorithm, CKTRAIN_TEST_TRANSPORT="tcp"
    ) as started:
        ends = started.ends(60)
    assert [end.status for end in ends] == [0] * 3, ends
    assert "compared" in ends[0].output


@pytest.mark.parametrize("sockets, steps", [("1", "500"), ("3", "300")])
def test_many_operations_back_to_back(sockets, steps):
    """Also over several connections per pair, which carry one stream in turns."""
    with job.start(
        3,
        "rank_program.py",
        "stress",
        steps,
        "2",
        CKTRAIN_TEST_TRANSPORT="tcp",
        CKTRAIN_TEST_SOCKETS=sockets,
    ) as started:
        ends = started.ends(150)
    assert [end.status for end in ends] == [0] * 3, ends


def test_rank_0_says_how_many_connections_there_are():
    inside, between = {"address": "127.0.0.1"}, {"address": "192.0.2.7"}
    assert sockets_per_pair([inside | {"sockets": 0}, inside | {"sockets": 4}]) == 1
    assert sockets_per_pair([between | {"sockets": 0}, inside | {"sockets": 4}]) == 2
    assert sockets_per_pair([between | {"sockets": 5}, between | {"sockets": 4}]) == 5


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("sent, expected", [(3, 5), (5, 3), (100_000, 99_999), (0, 1)])
def test_message_of_another_length(transport, sent, expected):
    arguments = ["receive_another_length", str(sent), str(expected)]
    with job.start(2, "rank_program.py", *arguments, CKTRAIN_TEST_TRANSPORT=transport) as started:
        ends = started.ends(20)
    assert [end.status for end in ends] == [1, 1], ends
    assert f"[comm.{transport}] rank 1 called recv(float32[{expected:,}], source=0)" in ends[1].output
    assert f"send(float32[{sent:,}])" in ends[1].output


@pytest.mark.parametrize("algorithm", ["ring", "halving_doubling"])
def test_killed_in_an_algorithm_of_several_hops(algorithm):
    """Ranks that exchange nothing with the lost one name it as well."""
    how = {"CKTRAIN_TEST_TRANSPORT": "tcp", "CKTRAIN_TEST_ALGORITHM": algorithm}
    with job.start(4, "rank_program.py", "repeat", "large", **how) as ranks:
        for rank in range(4):
            ranks.wait_for("running", rank)
        since = ranks.signal(2, signal.SIGKILL)
        ends = ranks.ends(20)
    job.assert_lost(ends, 2, since)


def test_late_by_more_than_a_dead_link_takes():
    """The others' buffers are full for longer than a link may be silent: that is no loss."""
    how = {"CKTRAIN_TEST_TRANSPORT": "tcp", "CKTRAIN_TEST_TIMEOUT": "60"}
    with job.start(3, "rank_program.py", "late_for", "7", **how) as ranks:
        ends = ranks.ends(30)
    assert [end.status for end in ends] == [0, 0, 0], ends


# ---------------------------------------------------------------------------------------------- the table


def test_the_default_table_is_canonical_and_complete():
    for kind, entries in DEFAULT.items():
        assert [limit for limit, _ in entries] == sorted(limit for limit, _ in entries)
        assert entries[-1][0] == float("inf")
        assert all(name in KNOWN[kind] for _, name in entries)
    assert not {"ring", "halving_doubling"} & {name for _, name in DEFAULT["all_reduce"]}


def test_an_override_is_taken_where_it_is_possible():
    assert choose("all_reduce", 100) == "doubling"
    assert choose("all_reduce", 1 << 20) == "direct"
    assert choose("all_reduce", 100, override="ring") == "ring"
    assert choose("all_reduce", 100, override="ring", canonical=True) == "doubling"
    assert choose("broadcast", 100, override="ring") == "binomial"
    with pytest.raises(ValueError, match=r"'nope'.*halving_doubling"):
        check_override("nope")


@pytest.mark.parametrize("size", [1, 2, 3, 17])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 1000])
def test_even_parts_cover_the_array(size, count):
    begins = even_parts(count, size, 4)
    assert begins[0] == 0 and begins[-1] == count and list(begins) == sorted(begins)
    assert all(b % 16 == 0 or b == count for b in begins)


def test_rows_of_a_plan():
    steps, sources, scratch, partners = plan("all_reduce", "doubling", 1, 3, 5, None, -1, 4)
    assert steps.dtype == sources.dtype == np.int64 and steps.shape[1] == 8 and sources.shape[1] == 2
    assert scratch == 15 and partners == b"\x03\0\x03"
    assert list(steps[:, 0]) == sorted(steps[:, 0])
