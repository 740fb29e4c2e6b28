"""One owner of a folder at a time: a lock file that says who, where and since when, and that outlives no one for long.

    FOLDER/.cktrain.lock      {"host", "boot", "namespace", "pid", "started", "since", "doing", "token"}

The file is made with O_EXCL, which network file systems keep too (flock they often don't). It stays behind when its
process is killed, so who finds one asks whether the holder lives:

- On the same host, boot and pid namespace, the kernel knows: the pid is gone, a zombie, or began at another time.
- Elsewhere, after a reboot or in another container, its heartbeat tells: the holder touches the file every BEAT_S seconds.
  Who sees no change for SILENCE_S seconds takes it over. Changes are counted, not clocks compared.

A stale lock is taken over, with a word (`FolderLock.note`). A holder that was only stopped for that long hears of it
before it writes again (`refuse_if_taken_over`). Taking over happens under a flock of the stale file, so of several that
find the same one on a host one wins, and the others find the winner's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCK_FILE = ".cktrain.lock"
BEAT_S = 5.0
SILENCE_S = 30.0
"""How long a holder elsewhere may give no sign of life: six beats, and what a network file system keeps back."""
_STEP_S = 0.1


_HANDED_OVER: dict[str, FolderLock] = {}
"""By the folder's real path."""


class FolderInUse(ValueError):
    """Another process holds the folder; the message says which, since when, and what to do."""


class FolderLock:
    """A folder that this process alone writes to, until `release`. A context manager.

    `note` says whose lock was taken over; empty when there was none.
    """

    def __init__(self, path: Path, descriptor: int, token: str, note: str) -> None:
        self.path = path
        self.note = note
        self._token = token
        self._descriptor = descriptor
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="cktrain-folder-lock", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Give the folder back; a lock that is no longer this one's stays."""
        if self._done.is_set():
            return
        self._done.set()
        _HANDED_OVER.pop(os.path.realpath(self.path.parent), None)
        self._beating.join()
        with contextlib.suppress(OSError):
            if _parse(_read(self.path) or "").get("token") == self._token:
                self.path.unlink()
        os.close(self._descriptor)

    def hand_over(self) -> None:
        """The next `lock_folder` of this folder in this process gets this lock: nobody comes between."""
        _HANDED_OVER[os.path.realpath(self.path.parent)] = self

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a beat that fails is one that is missed
                os.utime(self._descriptor)


def lock_folder(
    folder: str | Path,
    doing: str,
    say: Callable[[str], None] = lambda text: None,
    silence_s: float = SILENCE_S,
) -> FolderLock:
    """Make `folder` and hold it for this process, which is `doing` this (`cktrain train`).

    `say` hears at once that a holder elsewhere is waited for, up to `silence_s` seconds. Raises FolderInUse when the holder
    lives, ValueError when the folder or the lock can't be made.
    """
    folder = Path(folder)
    path = folder / LOCK_FILE
    if (handed := _HANDED_OVER.pop(os.path.realpath(folder), None)) is not None:
        return handed
    note = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            made = _create(path, doing)
            if made is not None:
                return FolderLock(path, *made, note)
            note = _displace(path, say, silence_s) or note
    except OSError as error:
        if folder.is_symlink() and not folder.exists():
            raise ValueError(
                f"[lock] {folder} is a link to {os.readlink(folder)}, which is not there. Make that folder, or remove the "
                "link."
            ) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Free some space there" if full else "Give a folder that can be written to"
        raise ValueError(
            f"[lock] cannot make {error.filename or path}: {error.strerror}. {remedy}."
        ) from None


def refuse_if_taken_over(folder: str | Path) -> None:
    """Raise FolderInUse when another process than this one has the folder's lock; a folder without one is anybody's.

    For a holder that was stopped for so long, or a virtual machine that was, before it writes again.
    """
    holder = _parse(_read(Path(folder) / LOCK_FILE) or "")
    mine = {**_here(), "pid": os.getpid(), "started": _started(os.getpid())}
    if holder and any(holder.get(key) != value for key, value in mine.items()):
        raise FolderInUse(
            f"[lock] {folder} was taken over by {_who(holder)} while this process gave no sign of life. "
            "Nothing more is written there: let that one go on."
        )


def _create(path: Path, doing: str) -> tuple[int, str] | None:
    """The new lock file's descriptor and token; None when there is one already. OSError leaves none behind."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        if path.is_symlink() and not path.exists():  # leads nowhere, so nobody holds it
            path.unlink()
        return None
    token = secrets.token_hex(8)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    mine = {**_here(), "pid": os.getpid(), "started": _started(os.getpid()), "since": since, "doing": doing}
    text = json.dumps({**mine, "token": token}).encode()
    try:
        if os.write(descriptor, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor, token


def _displace(path: Path, say: Callable[[str], None], silence_s: float) -> str:
    """Remove the lock that is there if its holder is gone, and say whose it was; empty when it went away by itself."""
    try:
        try:
            descriptor = os.open(path, os.O_RDWR)
        except PermissionError:  # another user's: who holds it can be told all the same
            descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return ""
    try:
        holder = _judge(path, say, silence_s)
        if holder is None:
            return ""
        with contextlib.suppress(
            OSError
        ):  # where there is no flock, a race of two on one host stays possible
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_still(path, descriptor):
            return ""
        path.unlink(missing_ok=True)
        return f"took over the lock of {_who(holder)}, which is gone"
    finally:
        os.close(descriptor)


def _judge(path: Path, say: Callable[[str], None], silence_s: float) -> dict[str, Any] | None:
    """The holder, who is gone; None when the lock is. Raises FolderInUse when the holder lives."""
    text, beat = _read(path), _beat_of(path)
    holder = _parse(text or "")
    if text is None:
        return None
    if all(holder.get(key) == value for key, value in _here().items()):
        if _lives(holder):
            raise _in_use(path.parent, holder)
        return holder
    say(
        f"[lock] {path.parent} is held by {_who(holder)}: waiting up to {silence_s:g} s for a sign of life from there."
    )
    deadline = time.monotonic() + silence_s
    while time.monotonic() < deadline:
        time.sleep(min(_STEP_S, silence_s))
        now = _read(path)
        if now is None:
            return None
        if now != text:  # it was being written, or another took it over
            return _judge(path, say, silence_s)
        if _beat_of(path) != beat:
            raise _in_use(path.parent, holder)
    return holder


def _in_use(folder: Path, holder: dict[str, Any]) -> FolderInUse:
    return FolderInUse(
        f"[lock] {folder} is in use by {_who(holder)}. Wait until it has ended or stop it, or give another folder."
    )


def _who(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process whose lock file is damaged"
    return "{}, pid {} on {} since {}".format(
        *(holder.get(key, "?") for key in ("doing", "pid", "host", "since"))
    )


def _lives(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    started = _started(pid)
    return started is None or started == holder.get("started")


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot; -1 for a zombie, None where it can't be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])


def _here() -> dict[str, str]:
    """Where process ids mean the same: this host since it was started, and this pid namespace."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": platform.node(), "boot": boot, "namespace": namespace}


def _read(path: Path) -> str | None:
    """The text of the lock file, None when there is none. Opening it is what makes a network file system look again."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return None


def _beat_of(path: Path) -> int:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns
    return 0


def _parse(text: str) -> dict[str, Any]:
    """What a lock file says; empty when it is damaged or not written yet."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
