"""Ranks agree on the checkpoint, its contents and the data before any of them loads."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

import cktrain.checkpoint_choice as resume
from cktrain.checkpoint_record import CheckpointError, read_checkpoint
from cktrain.comm.solo_group import SoloGroup
from cktrain.consistency_check import agree_on_data, together
from cktrain.file_identity import sha256_of_file


class Board:
    def __init__(self) -> None:
        self.told: dict[Any, bytes] = {}
        self.changed = threading.Condition()

    def exchange(self, key: Any, data: bytes, wanted: list[Any]) -> list[bytes]:
        with self.changed:
            self.told[key] = data
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: all(k in self.told for k in wanted), timeout=20)
            return [self.told[k] for k in wanted]


class Pair(SoloGroup):
    """One of two ranks in one process; control bytes pass through a board."""

    def __init__(self, rank: int, board: Board) -> None:
        super().__init__()
        self.rank, self.size, self.board, self.round = rank, 2, board, 0

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        self.round += 1
        return self.board.exchange((self.round, self.rank), data, [(self.round, r) for r in range(2)])

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        return self.all_gather_bytes(data)[root]


def both(work) -> list[Any]:
    """What each of two ranks returns or raises; rank N runs in a thread named N."""
    board, found = Board(), [None, None]

    def one(rank: int) -> None:
        try:
            found[rank] = work(Pair(rank, board))
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=one, args=(rank,), name=str(rank)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def write_checkpoint(path: Path, step: int, run: str = "r") -> Path:
    """A checkpoint as far as its record goes."""
    path.mkdir(parents=True)
    state = {"format": 3, "cktrain": "0", "step": step, "updates": step, "tokens": 1, "precision": "fp32"}
    state |= {"moments": [], "tensors": {"w": [2]}, "examples": step, "run": run, "parents": [], "data": "d"}
    (path / "state.json").write_text(json.dumps(state))
    (path / "config.yaml").write_text("")
    (path / "rank0.safetensors").write_bytes(bytes(100))
    (path / "rank1.safetensors").write_bytes(bytes(50))
    names = ("state.json", "config.yaml", "rank0.safetensors", "rank1.safetensors")
    files = {
        name: {"bytes": (path / name).stat().st_size, "sha256": sha256_of_file(path / name)} for name in names
    }
    (path / "COMPLETE").write_text(json.dumps(files))
    return path


def test_both_take_rank_0s(tmp_path):
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step-{step:08d}", step)
    found = both(lambda group: resume.agree_on_checkpoint(tmp_path, "auto", group))
    assert [checkpoint.state.step for checkpoint in found] == [2, 2]
    assert both(lambda group: resume.agree_on_checkpoint(tmp_path / "none", "auto", group)) == [None, None]


@pytest.mark.parametrize("file", ["rank0.safetensors", "rank1.safetensors"])
def test_damage_that_one_rank_finds_is_heard_by_both(tmp_path, file, said):
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step-{step:08d}", step)
    (tmp_path / "step-00000002" / file).write_bytes(bytes([1]) * (100 if "0" in file else 50))
    found = both(lambda group: resume.agree_on_checkpoint(tmp_path, "auto", group))
    assert [checkpoint.state.step for checkpoint in found] == [1, 1]
    assert sum(f"passed over step-00000002: {file} is damaged" in line for line in said) == 1
    path = str(tmp_path / "step-00000002")
    errors = both(lambda group: resume.agree_on_checkpoint(tmp_path, path, group))
    assert str(errors[0]) == str(errors[1]) and f"{file} is damaged" in str(errors[0])


def test_a_rank_that_sees_another_checkpoint_is_named_by_both(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "step-00000002", 2)
    stale = write_checkpoint(tmp_path / "stale" / "step-00000002", 2, run="older")
    monkeypatch.setattr(
        resume,
        "read_checkpoint",
        lambda path: read_checkpoint(stale if threading.current_thread().name == "1" else path),
    )
    errors = both(lambda group: resume.agree_on_checkpoint(tmp_path, "auto", group, patience=0.1))
    assert str(errors[0]) == str(errors[1])
    assert "rank 1 (" in str(errors[0]) and "it sees another COMPLETE there" in str(errors[0])


def test_a_rank_that_sees_it_late_is_waited_for(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "step-00000002", 2)
    seen = []

    def late(path: Path) -> Any:
        if threading.current_thread().name == "1" and len(seen) < 3:
            seen.append(path)
            raise CheckpointError("[checkpoint] nothing there")
        return read_checkpoint(path)

    monkeypatch.setattr(resume, "read_checkpoint", late)
    found = both(lambda group: resume.agree_on_checkpoint(tmp_path, "auto", group))
    assert [checkpoint.state.step for checkpoint in found] == [2, 2] and len(seen) == 3


def test_a_refusal_of_rank_0_is_heard_by_both(tmp_path):
    write_checkpoint(tmp_path / "step-00000002", 2)
    (tmp_path / "step-00000002" / "COMPLETE").write_text("")
    errors = both(lambda group: resume.agree_on_checkpoint(tmp_path, "auto", group))
    assert "none of the checkpoints there is whole (step-00000002: COMPLETE is damaged: it is empty" in str(
        errors[1]
    )
    errors = both(lambda group: resume.agree_on_checkpoint(tmp_path, "nowhere", group))
    assert "nowhere is not a folder" in str(errors[0]) and "nowhere is not a folder" in str(errors[1])
    whole = tmp_path / "other"
    write_checkpoint(whole, 2)
    errors = both(lambda group: resume.agree_on_checkpoint(tmp_path, str(whole / "state.json"), group))
    assert f"state.json is not a folder. Give the checkpoint that it belongs to, {whole}." in str(errors[0])


def test_two_ranks_begin_one_lineage(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    write_checkpoint(folder / "step-00000002", 2)
    shutil.copytree(folder / "step-00000002", folder / "mine")
    first = both(lambda group: resume.begin_run(folder, read_checkpoint(folder / "step-00000002"), group))
    assert first[0] == first[1] and first[0].parents[0].run == "r"
    second = both(lambda group: resume.begin_run(folder, None, group))
    assert second[0] == second[1] != first[0]
    assert sorted(path.name[:9] for path in folder.iterdir()) == ["mine", "set-aside"]


def test_ranks_with_other_data_are_named():
    errors = both(lambda group: agree_on_data("ab"[group.rank], group))
    assert str(errors[0]) == str(errors[1])
    assert "the ranks read different training tokens: fingerprint a (" in str(errors[0])
    assert both(lambda group: agree_on_data("a", group)) == [None, None]


def test_what_fails_on_one_rank_is_raised_on_both():
    def work(group: Pair) -> Any:
        def part() -> int:
            if group.rank == 1:
                raise OSError(13, "Permission denied", "shard 3")
            return 5

        return together(group, part)

    errors = both(work)
    assert str(errors[0]) == str(errors[1]) and "shard 3: Permission denied" in str(errors[0])
    assert str(errors[0]).endswith("(rank 1)")
