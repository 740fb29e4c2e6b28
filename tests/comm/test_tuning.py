"""Measured tables of algorithms: borders from times, the file, and that all ranks take the same entry of it."""

from __future__ import annotations

import json
import math

import job
import pytest

from cktrain.comm.algorithms import DEFAULT, choose
from cktrain.comm.tuning import CANONICAL, Tables, crossovers, read_tables

TABLE = {
    "all_reduce": [(4096, "doubling"), (math.inf, "ring")],
    CANONICAL: [(1024, "doubling"), (math.inf, "direct")],
    "broadcast": [(math.inf, "binomial")],
}


def test_borders_lie_where_another_algorithm_becomes_the_fastest():
    sizes = [256, 1024, 4096, 16384]
    times = {"a": [1, 2, 9, 30], "b": [3, 3, 4, 20], "c": [9, 9, 9, 10]}
    assert crossovers(sizes, times) == [(1024, "a"), (4096, "b"), (math.inf, "c")]
    assert crossovers(sizes, {"a": [1, 1, 1, 1], "b": [2, 2, 2, 2]}) == [(math.inf, "a")]


def test_a_gain_within_the_noise_makes_no_border():
    assert crossovers([1, 2, 3], {"a": [1, 1.02, 1], "b": [2, 1, 2]}) == [(math.inf, "a")]


def test_tables_survive_the_file(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(Tables().with_entry("tcp", 2, 4, TABLE).text)
    tables = read_tables(file)
    assert tables.pick("tcp", 2, 4) == {**DEFAULT, **TABLE}
    assert tables.pick("tcp", 1, 4) == DEFAULT and tables.pick("rdma", 2, 4) == DEFAULT
    replaced = tables.with_entry("tcp", 2, 4, {"broadcast": [(math.inf, "chain")]})
    assert replaced.pick("tcp", 2, 4)["broadcast"] == [(math.inf, "chain")]
    assert replaced.digest() != tables.digest()


def test_the_nearest_number_of_ranks_is_taken():
    tables = Tables().with_entry("tcp", 2, 2, {"broadcast": [(math.inf, "direct")]})
    tables = tables.with_entry("tcp", 2, 16, {"broadcast": [(math.inf, "chain")]})
    assert tables.pick("tcp", 2, 4)["broadcast"] == [(math.inf, "direct")]
    assert tables.pick("tcp", 2, 8)["broadcast"] == [(math.inf, "chain")]


def test_what_must_be_canonical_takes_the_canonical_entry():
    assert choose("all_reduce", 1 << 20, TABLE) == "ring"
    assert choose("all_reduce", 1 << 20, TABLE, canonical=True) == "direct"
    assert choose("all_reduce", 1 << 20, TABLE, "halving_doubling") == "halving_doubling"


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "cannot be used"),
        ('{"version": 2, "entries": []}', "version 2, this cktrain reads 1"),
        ('{"version": 1, "entries": [{"transport": "tcp"}]}', "cannot be used"),
        (("all_reduce", [[None, "pigeon"]]), "'pigeon' is not one of"),
        (("all_reduce", [[1024, "direct"]]), "the last be null"),
        (("all_reduce", [[4096, "direct"], [1024, "direct"], [None, "direct"]]), "must ascend"),
        (("all_reduce", [[None, "ring"]]), "all_reduce_canonical is missing"),
        (("all_reduce_canonical", [[None, "ring"]]), "'ring' is not one of"),
        (("barrier", [[None, "direct"]]), "no operation that has algorithms"),
        ("\n", r"table\.json: the table of algorithms cannot be used"),
        ("[]", r"table\.json: the table of algorithms cannot be used"),
        ("null", "cannot be used"),
        ("[" * 99999, "cannot be used"),
        ('{"version": 1}', "it has no 'entries'"),
        ('{"version": 1, "entries": {"a": 1}}', "cannot be used"),
        (
            '{"version": 1, "entries": [{"transport": "tcp", "nodes": 1, "ranks": 1e999, "table": {}}]}',
            "entry",
        ),
        (
            '{"version": 1, "entries": [{"transport": "tcp", "nodes": true, "ranks": 2, "table": {}}]}',
            "entry",
        ),
        ('{"version": 1, "entries": [{"transport": "tcp", "nodes": "1", "ranks": 2, "table": {}}]}', "entry"),
        (
            '{"version": 1, "entries": [{"transport": "tcp", "nodes": 1, "ranks": 2, "table": []}]}',
            "cannot be used",
        ),
        (("all_reduce", 5), "cannot be used"),
        (("all_reduce", [["x", "direct"], [None, "direct"]]), "cannot be used"),
        (b"\xff\xfe{", "it is not UTF-8 text"),
        (b" " * 300_000, "more than the 262,144 bytes"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, words):
    if isinstance(text, tuple):
        entry = {"transport": "tcp", "nodes": 1, "ranks": 2, "table": {text[0]: text[1]}}
        text = json.dumps({"version": 1, "entries": [entry]})
    (tmp_path / "table.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        read_tables(tmp_path / "table.json")
    with pytest.raises(ValueError, match=r"comm\.table: .*missing"):
        read_tables(tmp_path / "missing.json")
    for odd in (tmp_path, "/dev/zero", f"{tmp_path}/nul\0"):
        with pytest.raises(ValueError, match=r"^\[comm\] comm\.table: "):
            read_tables(odd)


def test_an_empty_file_is_no_table(tmp_path):
    """A run that began without one keeps that."""
    (tmp_path / "collectives.json").write_text("")
    assert read_tables(tmp_path / "collectives.json") == Tables()


def test_ranks_tune_and_then_use_the_table(tmp_path):
    """Rank 0 alone reads the file; all ranks then have its text, and the groups their entries."""
    file = tmp_path / "table.json"
    with job.start(
        4,
        "rank_program.py",
        "tune_briefly",
        str(file),
        CKTRAIN_TEST_TRANSPORT="auto",
        CKTRAIN_TEST_NODES="2,2",
    ) as started:
        ends = started.ends(60)
    assert [end.status for end in ends] == [0] * 4, [end.output for end in ends]
    entries = json.loads(file.read_text())["entries"]
    assert [(e["transport"], e["nodes"], e["ranks"]) for e in entries] == [("tcp", 2, 2), ("tcp", 2, 4)]
    assert all(set(e["table"]) == {"all_reduce", CANONICAL, "all_gather", "broadcast"} for e in entries)
    with job.start(
        4,
        "rank_program.py",
        "show_tables",
        CKTRAIN_TEST_TRANSPORT="auto",
        CKTRAIN_TEST_NODES="2,2",
        CKTRAIN_TEST_TABLE=str(file),
    ) as started:
        ends = started.ends(30)
    assert [end.status for end in ends] == [0] * 4, [end.output for end in ends]
    assert len({end.output for end in ends}) == 1
    assert ends[0].output.strip() == f"tables: {Tables(file.read_text()).digest().hex()}"


def test_a_table_that_rank_0_cannot_read_is_told_to_all(tmp_path):
    file = tmp_path / "table.json"
    file.write_text("{")
    with job.start(
        2, "rank_program.py", "show_tables", CKTRAIN_TEST_TRANSPORT="auto", CKTRAIN_TEST_TABLE=str(file)
    ) as started:
        ends = started.ends(30)
    for end in ends:
        assert end.status == 1 and f"{file}: the table of algorithms cannot be used" in end.output, end.output
