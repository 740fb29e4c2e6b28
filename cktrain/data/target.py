"""The folder that `data prepare` makes: who may make it, what may be replaced, and how it comes into place whole.

    PARENT/OUT              the prepared folder; it appears whole, by a rename
    PARENT/OUT.preparing/   while one is made: the lock that keeps others out
        data/               what is being written
        replaced/           the prepared folder that was at OUT, while it is replaced

Runs that read the old folder keep its shards: files that are deleted stay until the last one closes them. What
a killed one leaves behind, the next one for the same OUT removes, or puts back if it was the old folder. Nothing is
deleted that `data prepare` has not written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from cktrain.data.listing import ancestors
from cktrain.data.shards import DATASET_FILE, read_dataset
from cktrain.data.sniff import shown
from cktrain.durable import sync
from cktrain.folder_lock import LOCK_FILE, FolderInUse, FolderLock, lock_folder, refuse_if_taken_over

# What versions that did not write down their files have written besides the shards.
_ALWAYS_WRITTEN = (DATASET_FILE, "tokenizer.json", "tokenizer_config.json")


class Target:
    """The place of a prepared folder. As a context manager it holds the lock, and `data` is where to write.

    Leaving it without `put_in_place` leaves OUT as it was. `out` is where a link leads to, `existing` what dataset.json of
    the folder there says, None if there is none.
    """

    def __init__(self, out: str | Path, replace: bool, say: Callable[[str], None]):
        """Raise ValueError when OUT may not be made or replaced."""
        self.out = Path(os.path.realpath(out))
        self.name = shown(out)
        if self.out == self.out.parent:
            raise ValueError(f"[data.prepare] {self.name}: is the root of all. Choose a folder to make.")
        self.existing: dict[str, Any] | None = None
        self._say = say
        self._lock: FolderLock | None = None
        self._workspace = self.out.with_name(f"{self.out.name}.preparing")
        self.data = self._workspace / "data"
        self._replaced = self._workspace / "replaced"
        self._tidy()
        self._check(replace)

    def refuse_source(self, folders: set[tuple[int, int]], files: list[Path]) -> None:
        """Raise ValueError when OUT is one of the source's folders or inside them, or holds one of its files."""
        for folder, identity in ancestors(self.out):
            if identity in folders:
                raise ValueError(
                    f"[data.prepare] {self.name}: lies in the source (in {shown(folder)}), which would then hold what "
                    "is made of it. Choose a folder outside of the source."
                )
        if not self.out.exists():
            return
        status = self.out.stat()
        for above in {path.parent for path in files} | {
            Path(os.path.realpath(path)).parent for path in files
        }:
            if any(identity == (status.st_dev, status.st_ino) for _, identity in ancestors(above)):
                raise ValueError(
                    f"[data.prepare] {self.name}: holds the source {shown(above)}. Choose another folder."
                )

    def __enter__(self) -> Target:
        self._lock = lock_folder(self._workspace, "cktrain data prepare", self._say)
        try:
            self._clear()
            self.data.mkdir()
            if self.existing is not None:
                self._try_to_move()
        except BaseException:
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    def put_in_place(self) -> None:
        """Move what was written to OUT. What is there is checked again: preparing takes hours."""
        refuse_if_taken_over(self._workspace)
        self._check(self.existing is not None)
        if self.out.exists():  # whoever may enter the old one may enter the new one
            shutil.copymode(self.out, self.data)
        if self.existing is None:
            os.rename(self.data, self.out)
        else:
            try:
                os.rename(self.out, self._replaced)
                os.rename(self.data, self.out)
            except BaseException:  # a signal between the two, too
                self._put_back()
                raise
        sync(self.out.parent)

    def _check(self, replace: bool) -> None:
        if not os.path.lexists(self.out):
            return
        if not self.out.is_dir():
            raise ValueError(
                f"[data.prepare] {self.name}: exists and is not a prepared folder. Choose another folder."
            )
        status, here = self.out.stat(), Path.cwd()
        if any(identity == (status.st_dev, status.st_ino) for _, identity in ancestors(here)):
            raise ValueError(
                f"[data.prepare] {self.name}: is the folder that this command runs in, or holds it, and cannot be "
                "replaced. Name a folder to make in it, or run the command from elsewhere."
            )
        if os.path.ismount(self.out):
            raise ValueError(
                f"[data.prepare] {self.name}: is where a file system is mounted, and cannot be replaced. Name a folder "
                f"in it: {self.name}/data"
            )
        names = sorted(os.listdir(self.out))
        if not names:
            return
        if DATASET_FILE not in names:
            raise ValueError(
                f"[data.prepare] {self.name}: exists and is not a prepared folder. Choose another folder."
            )
        if not replace:
            raise ValueError(
                f"[data.prepare] {self.name}: already holds prepared data. Choose another folder or ask to "
                "overwrite it (--overwrite)."
            )
        try:
            self.existing = read_dataset(self.out)
        except ValueError as error:
            raise ValueError(
                f"[data.prepare] {self.name}: its {DATASET_FILE} is damaged or nothing that `cktrain data prepare` "
                f"wrote, so nothing in it is deleted ({error}). Delete the folder yourself or choose another."
            ) from error
        others = unknown_names(self.out, known_names(self.existing))
        if others:
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            raise ValueError(
                f"[data.prepare] {self.name}: holds what was not written by `cktrain data prepare` and would be "
                f"deleted: {', '.join(map(shown, others[:5]))}{more}. Move it away or choose another folder."
            )

    def _tidy(self) -> None:
        """Clear up after a process that was killed, if there is one; put the old folder back that it had moved aside."""
        if not (self.data.exists() or self._replaced.exists()):
            return
        try:
            with self:
                pass
        except FolderInUse:  # it is at work; whether that is in the way shows when something is to be written
            return

    def _try_to_move(self) -> None:
        """Do now what will be needed after hours: the system may forbid it (owner, mode, mount, layer of an image)."""
        try:
            os.rename(self.out, self._replaced)
        except OSError as error:
            raise ValueError(
                f"[data.prepare] {self.name}: cannot be moved aside ({error.strerror}), which replacing it needs. "
                "Correct its permissions, delete it yourself, or choose another folder."
            ) from error
        finally:
            self._put_back()

    def _clear(self) -> None:
        """Remove what a killed process has left in the workspace."""
        strange = set(os.listdir(self._workspace)) - {LOCK_FILE, self.data.name, self._replaced.name}
        if strange:
            raise ValueError(
                f"[data.prepare] {shown(self._workspace)}: is needed to make {self.name} and holds something else: "
                f"{shown(min(strange))}. Move it away."
            )
        if not os.path.lexists(self.out) and (self._replaced / DATASET_FILE).is_file():
            self._put_back()
            self._say(
                f"[data.prepare] {self.name}: put back, it had been moved aside by one that was killed."
            )
        if self.data.exists() or self._replaced.exists():
            who = f" ({self._lock.note})" if self._lock and self._lock.note else ""
            self._say(f"[data.prepare] {self.name}: removing what one that was killed has left{who}.")
        self._remove_parts()
        for left in (self.data, self._replaced):
            if left.exists():
                raise ValueError(
                    f"[data.prepare] {shown(left)}: is left from one that was killed and cannot be removed. Remove it "
                    "yourself (on NFS: when the runs that read from it have ended)."
                )

    def _remove_parts(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        if not self._replaced.exists():
            return
        with contextlib.suppress(ValueError):  # a dataset.json that cannot be read: nothing in it is known
            known = known_names(read_dataset(self._replaced))
            if not unknown_names(self._replaced, known):
                known = {*known, DATASET_FILE}
            else:
                known = known - {DATASET_FILE}  # by which the next one knows what is whose
            for name in known:
                with contextlib.suppress(OSError):
                    (self._replaced / name).unlink()
            for folder in {Path(name).parent for name in known if "/" in name} | {Path()}:
                with contextlib.suppress(OSError):  # it holds something else, or is not there
                    (self._replaced / folder).rmdir()
        with contextlib.suppress(OSError):
            self._replaced.rmdir()
        if self._replaced.exists():
            self._say(
                f"[data.prepare] {shown(self._replaced)}: kept, it holds files that others have written."
            )

    def _put_back(self) -> None:
        if not os.path.lexists(self.out) and self._replaced.exists():
            os.rename(self._replaced, self.out)

    def _give_up(self) -> None:
        """Remove the workspace and give the lock back."""
        assert self._lock is not None
        with contextlib.suppress(FolderInUse):  # then it is another's by now
            refuse_if_taken_over(self._workspace)
            self._put_back()
            self._remove_parts()
        self._lock.release()
        with contextlib.suppress(OSError):  # another one has come in meanwhile, or something is kept
            self._workspace.rmdir()


def known_names(dataset: dict[str, Any]) -> set[str]:
    """The files of a prepared folder that its dataset.json knows, by their paths below it."""
    shards = {shard["file"] for split in dataset["splits"].values() for shard in split["shards"]}
    return {*_ALWAYS_WRITTEN, *dataset.get("written", ()), *shards}


def unknown_names(folder: Path, known: set[str]) -> list[str]:
    """Names in a prepared folder that are not known, in order."""
    found = []
    for name in os.listdir(folder):
        inside = [other for other in known if other.startswith(f"{name}/")]
        if inside and (folder / name).is_dir() and not (folder / name).is_symlink():
            found += [
                f"{name}/{inner}" for inner in os.listdir(folder / name) if f"{name}/{inner}" not in inside
            ]
        elif name not in known or not (folder / name).is_file() or (folder / name).is_symlink():
            found.append(name)
    return sorted(found)
