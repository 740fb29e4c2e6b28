"""The gate on performance: which tag it compares with, what it calls slower, and its process of ops."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from bench_gate import arguments, is_slower, last_tag, slower_twice
from op_times import OpProcess, in_turns
from sides import ROOT, CommandFailed, Side
from step_time import Speed


def speed(case: str, ratio: float, spread: float = 0.01) -> Speed:
    return Speed(case, 10.0, 10.0 * ratio, ratio, spread, 15)


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_the_last_tag_is_the_newest_before_what_is_there(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    assert last_tag(tmp_path) is None
    git(tmp_path, "tag", "v1")
    assert last_tag(tmp_path) is None  # a tag is not compared with itself
    (tmp_path / "file").write_text("2")
    assert last_tag(tmp_path) == "v1"
    git(tmp_path, "commit", "-qam", "two")
    assert last_tag(tmp_path) == "v1"
    git(tmp_path, "tag", "v2")
    assert last_tag(tmp_path) == "v1"


def test_what_is_slower_by_more_than_old_from_old_twice_is_named() -> None:
    assert is_slower(speed("a", 1.011)) and not is_slower(speed("a", 1.009))
    again = {"chance": speed("chance", 1.0), "really": speed("really", 1.2)}
    asked: list[str] = []

    def measure(case: Speed) -> Speed:
        asked.append(case.case)
        return again[case.case]

    found = [speed("same", 1.0), speed("chance", 1.05), speed("faster", 0.5), speed("really", 1.1)]
    assert [first.case for first, _ in slower_twice(found, measure)] == ["really"]
    assert asked == ["chance", "really"]


def test_who_begins_rotates() -> None:
    order: list[int] = []

    def turn(number: int) -> float:
        order.append(number)
        return float(number)

    assert in_turns(3, [lambda: turn(0), lambda: turn(1), lambda: turn(2)]) == [
        [0.0] * 3,
        [1.0] * 3,
        [2.0] * 3,
    ]
    assert order == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_a_process_times_the_ops_that_it_lists(tmp_path: Path) -> None:
    side = Side("new", "here", ROOT, tmp_path, tmp_path)
    process = OpProcess(side, 0, 1)
    try:
        names = process.ask("list")
        assert len(names) == len(set(names)) > 40
        for name in ("forward short-up fp32", "weight gradient narrow-qkv bf16", "forward narrow-up fp32"):
            assert name in names and process.ask(f"take {name}")
            assert 0 < process.ask("time 2") < 10
        assert not process.ask("take nothing of the kind")
        with pytest.raises(CommandFailed, match="take an op first"):
            process.ask("time 1")
    finally:
        process.close()


def test_the_command_line() -> None:
    assert arguments([]).commit is None and arguments(["abc", "--only", "ops"]).only == ["ops"]
    with pytest.raises(SystemExit) as error:
        arguments(["--only", "nothing"])
    assert error.value.code == 2
