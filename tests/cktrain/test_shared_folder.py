"""Ranks that do not see rank 0's folder are named before anything is trained."""

from __future__ import annotations

import threading

from cktrain.comm.solo_group import SoloGroup
from cktrain.shared_folder import check_shared_folder


class Pair(SoloGroup):
    """One of two ranks in one process; control bytes pass through a board."""

    def __init__(self, rank, board):
        super().__init__()
        self.rank, self.size, self.board, self.round = rank, 2, board, 0

    def all_gather_bytes(self, data):
        self.round += 1
        return self.board.exchange((self.round, self.rank), data, [(self.round, r) for r in range(2)])

    def broadcast_bytes(self, data, root=0):
        return self.all_gather_bytes(data)[root]


class Board:
    def __init__(self):
        self.told, self.changed = {}, threading.Condition()

    def exchange(self, key, data, wanted):
        with self.changed:
            self.told[key] = data
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: all(k in self.told for k in wanted), timeout=20)
            return [self.told[k] for k in wanted]


def check(folders, patience=5.0):
    """What each of two ranks with these folders raises."""
    board, raised = Board(), [None, None]

    def work(rank):
        try:
            check_shared_folder(folders[rank], Pair(rank, board), patience)
        except ValueError as error:
            raised[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_a_shared_folder_is_made_and_left_clean(tmp_path):
    assert check([tmp_path / "a" / "b"] * 2) == [None, None]
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_rank_with_another_folder_is_named_on_all_ranks(tmp_path):
    (tmp_path / "other").mkdir()
    mine, theirs = check([tmp_path / "one", tmp_path / "other"], patience=0.1)
    assert mine == theirs
    assert (
        "rank 1 (" in mine and "does not see in" in mine and "Put run.dir on a file system that all" in mine
    )
    assert list((tmp_path / "one").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    mine, theirs = check([tmp_path / "file" / "run"] * 2, patience=0.1)
    assert mine == theirs and "rank 0 (" in mine and "cannot write to" in mine


def test_one_rank_asks_nobody(tmp_path):
    check_shared_folder(tmp_path / "none", SoloGroup())
    assert not (tmp_path / "none").exists()


def test_a_late_file_is_waited_for(tmp_path):
    """A network file system may show another host's file some time after it was written."""
    (tmp_path / "b").mkdir()

    def arrive():
        for file in (tmp_path / "a").iterdir():
            (tmp_path / "b" / file.name).hardlink_to(file)

    timer = threading.Timer(0.3, arrive)
    timer.start()
    assert check([tmp_path / "a", tmp_path / "b"]) == [None, None]
