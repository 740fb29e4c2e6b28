"""The lock of a folder: one owner, a second refused by name, stale ones taken over with a word."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cktrain import folder_lock
from cktrain.folder_lock import LOCK_FILE, FolderInUse, lock_folder, refuse_if_taken_over

HOLD = "import sys, time; from cktrain.folder_lock import lock_folder; lock_folder(sys.argv[1], 'cktrain train'); "


@pytest.fixture
def holder(tmp_path):
    """`holder(folder)` -> a process that has locked the folder and sleeps."""
    started = []

    def start(folder: Path) -> subprocess.Popen:
        code = HOLD + "print('held', flush=True); time.sleep(60)"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def written(folder: Path, **changes) -> Path:
    """A lock file of a process like this one, but for `changes`."""
    with lock_folder(folder, "cktrain train") as lock:
        values = json.loads(lock.path.read_text())
    path = folder / LOCK_FILE
    path.write_text(json.dumps({**values, **changes}))
    return path


def test_a_second_is_refused_by_name_and_a_killed_one_taken_over(tmp_path, holder):
    process = holder(tmp_path)
    with pytest.raises(
        FolderInUse, match=rf"in use by cktrain train, pid {process.pid} on \S+ since \d{{4}}-.* UTC"
    ):
        lock_folder(tmp_path, "cktrain data prepare")
    (tmp_path / "alias").symlink_to(tmp_path)
    with pytest.raises(FolderInUse, match="Wait until it has ended or stop it"):
        lock_folder(tmp_path / "alias", "cktrain train")
    process.send_signal(signal.SIGSTOP)  # silent, and alive
    with pytest.raises(FolderInUse):
        lock_folder(tmp_path, "cktrain train", silence_s=0)
    process.kill()  # still a zombie: nobody has waited for it
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and folder_lock._started(process.pid) != -1:
        time.sleep(0.01)
    with lock_folder(tmp_path, "cktrain train") as lock:
        assert f"took over the lock of cktrain train, pid {process.pid} on" in lock.note
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_released_folder_is_free_and_says_nothing(tmp_path):
    lock_folder(tmp_path / "new" / "folder", "a").release()
    with lock_folder(tmp_path / "new" / "folder", "b") as lock:
        assert lock.note == ""
    lock.release()  # once more changes nothing


def test_a_pid_that_is_another_process_by_now_is_no_holder(tmp_path):
    written(tmp_path, started=1)
    with lock_folder(tmp_path, "cktrain train") as lock:
        assert f"pid {os.getpid()}" in lock.note


@pytest.mark.parametrize("place", [{"host": "elsewhere"}, {"boot": "before"}, {"namespace": "pid:[1]"}])
def test_a_holder_elsewhere_is_known_by_its_beat(tmp_path, monkeypatch, place):
    monkeypatch.setattr(folder_lock, "_STEP_S", 0.01)
    path = written(tmp_path, **place, pid=1)
    said: list[str] = []
    timer = threading.Timer(0.1, os.utime, (path, (5, 5)))  # a clock that goes backwards is a beat too
    timer.start()
    with pytest.raises(FolderInUse, match="pid 1 on "):
        lock_folder(tmp_path, "cktrain train", said.append, silence_s=5)
    timer.join()
    assert "waiting up to 5 s for a sign of life" in said[0]
    with lock_folder(tmp_path, "cktrain train", silence_s=0.05) as lock:
        assert "took over the lock of cktrain train, pid 1 on" in lock.note


def test_the_holder_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.01)
    with lock_folder(tmp_path, "cktrain train") as lock:
        os.utime(lock.path, (1, 1))
        deadline = time.monotonic() + 5
        while os.stat(lock.path).st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.stat(lock.path).st_mtime > 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": "x"}', '{"pid": -1}', "[" * 60_000])
def test_a_damaged_lock_is_taken_over_after_silence(tmp_path, text):
    (tmp_path / LOCK_FILE).write_text(text)
    with lock_folder(tmp_path, "cktrain train", silence_s=0.02) as lock:
        assert "took over" in lock.note


def test_a_lock_that_is_being_written_is_waited_for(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(folder_lock, "_STEP_S", 0.01)
    process = holder(tmp_path)
    path = tmp_path / LOCK_FILE
    text = path.read_text()
    path.write_text("")
    timer = threading.Timer(0.1, path.write_text, (text,))
    timer.start()
    with pytest.raises(FolderInUse, match=f"pid {process.pid}"):
        lock_folder(tmp_path, "cktrain train", silence_s=5)
    timer.join()


def test_who_was_taken_over_hears_of_it_before_it_writes(tmp_path):
    refuse_if_taken_over(tmp_path)
    lock = lock_folder(tmp_path, "cktrain train")
    refuse_if_taken_over(tmp_path)
    other = written(tmp_path / "other", host="b", pid=7).read_text()
    lock.path.write_text(other)
    with pytest.raises(FolderInUse, match="taken over by cktrain train, pid 7 on b"):
        refuse_if_taken_over(tmp_path)
    lock.release()
    assert lock.path.read_text() == other


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    written(tmp_path, started=1)
    code = HOLD + "print('held', flush=True); sys.stdin.read()"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(6)
    ]
    held = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(held) == [""] * 5 + ["held\n"]


def test_what_cannot_be_locked_is_an_error_of_the_users(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            ValueError, match=rf"cannot make {folder}: .*Give a folder that can be written to"
        ):
            lock_folder(folder, "cktrain train")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"dangling is a link to .*nowhere, which is not there. Make that folder"
    ):
        lock_folder(tmp_path / "dangling", "cktrain train")
    (tmp_path / "taken" / LOCK_FILE).mkdir(parents=True)
    with pytest.raises(ValueError, match="Is a directory"):
        lock_folder(tmp_path / "taken", "cktrain train")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in ("write", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(ValueError, match=r"No space left on device\. Free some space there"):
                lock_folder(tmp_path / "full", "cktrain train")
        assert not (tmp_path / "full" / LOCK_FILE).exists()
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only file system"))
        )
        with pytest.raises(ValueError, match="Read-only file system"):
            lock_folder(tmp_path / "full", "cktrain train")


def test_a_lock_that_leads_nowhere_is_no_lock(tmp_path):
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "nowhere")
    lock_folder(tmp_path, "cktrain train").release()


def test_a_lock_that_is_handed_over_is_the_next_ones_and_nobody_comes_between(tmp_path):
    with lock_folder(tmp_path, "preparing") as first:
        first.hand_over()
        second = lock_folder(tmp_path, "training")
        assert second is first
        with pytest.raises(FolderInUse, match="in use by preparing"):
            lock_folder(tmp_path, "another")
        second.release()
        assert not (tmp_path / LOCK_FILE).exists()
    with lock_folder(tmp_path, "preparing") as unused:
        unused.hand_over()
    with lock_folder(tmp_path, "later") as later:
        assert later is not unused
