"""The files of a folder to read documents from, and what is left out and why: nothing of it in silence.

Links are followed; a folder that was reached before under another name is not read again. Hidden names, and what systems
and programs strew about, are left out; so is what is no regular file, because reading a pipe may never end.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cktrain.data.saved_dataset import saved_parts
from cktrain.data.sniff import PACKED_SUFFIXES, BadFile, shown

_STREWN = {"__pycache__", "__MACOSX"}
_ABOUT = {
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
}  # what datasets and the hub say of data
_FIRST = 3  # names that are told per reason
_TRAINED = re.compile(r"train(ing)?([-_.]|$)", re.IGNORECASE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HELD_OUT = re.compile(r"(valid|validation|val|test|dev|eval)([-_.]|$)", re.IGNORECASE)


@dataclass
class LeftOut:
    """What was left out, by reason: how many, and the first names."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more; `name` is its path below the folder."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        names = self.first.setdefault(reason, [])
        if len(names) < _FIRST:
            names.append(shown(name))

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line of text per reason, the most frequent first."""
        found = []
        for reason, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            names = ", ".join(self.first[reason]) + (", ..." if count > len(self.first[reason]) else "")
            found.append(f"{count:,} left out: {reason} ({names})")
        return found

    def as_dict(self) -> dict[str, dict[str, object]]:
        """For dataset.json."""
        return {reason: {"count": n, "first": self.first[reason]} for reason, n in self.counts.items()}


@dataclass
class Listing:
    """`files` in the order of the parts of their paths below the folder; `folders` (device, inode) of each one walked."""

    files: list[Path] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    folders: set[tuple[int, int]] = field(default_factory=set)

    def bad(self, path: Path, name: str, error: OSError, skip: bool) -> None:
        """What cannot be looked at is an error, or left out where that was asked for."""
        if not skip:
            raise cannot_read(path, error) from error
        self.left_out.add("cannot be read", name)


def how_to_fetch(source: str | Path) -> str:
    """What to do about rows or texts that are not there and are called as a Hub calls a dataset; "" for other names."""
    name, path = str(source), Path(source)
    if not _HUB_ID.fullmatch(name) or path.suffix or path.parent.is_dir():
        return ""
    return (
        f" If it is a dataset of the Hub, fetch it and give its files: hf download {name} --repo-type dataset --local-dir "
        f"{path.name}."
    )


def list_files(
    root: Path, suffixes: tuple[str, ...], also_without: Collection[str] = (), skip_bad: bool = False
) -> Listing:
    """Files below `root` whose names end so, in whatever case, packed or not; folders `also_without` are left out too.

    Raises BadFile when a folder or file cannot be looked at and `skip_bad` is false.
    """
    found = Listing()
    without = {*_STREWN, *also_without}
    folders = [(root, "")]
    about: list[Path] = []
    links: list[tuple[Path, str]] = []  # links come last, so that a folder in here keeps its own name
    while folders or links:
        folder, below = (folders or links).pop()
        try:
            status = folder.stat()
            names = sorted(os.listdir(folder))
        except OSError as error:
            found.bad(folder, below or ".", error, skip_bad)
            continue
        if (status.st_dev, status.st_ino) in found.folders:
            found.left_out.add("the same folder under another name", below)
            continue
        found.folders.add((status.st_dev, status.st_ino))
        for name in names:
            path = folder / name
            if name in without or name.startswith("."):
                found.left_out.add(_why_hidden(name), below + name)
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                if fits(name, suffixes) or error.errno not in (errno.ENOENT, errno.ELOOP):
                    found.bad(path, below + name, error, skip_bad)
                else:
                    found.left_out.add("a link that leads nowhere", below + name)
                continue
            if stat.S_ISDIR(mode):
                (links if path.is_symlink() else folders).append((path, f"{below}{name}/"))
            elif not stat.S_ISREG(mode):
                found.left_out.add("a pipe, socket or device", below + name)
            elif name in _ABOUT:
                about.append(path)
                found.left_out.add("about the data, and no rows", below + name)
            elif not fits(name, suffixes):
                found.left_out.add(f"another suffix, {path.suffix.lower() or 'none'}", below + name)
            else:
                found.files.append(path)
    found.files.sort(key=lambda path: path.relative_to(root).parts)
    _refuse_datasets(root, about)
    _refuse_held_out(root, found.files)
    there = set(found.files)
    for path in [path for path in found.files if path.suffix.lower() in PACKED_SUFFIXES]:
        if path.with_suffix("") in there:
            found.files.remove(path)
            found.left_out.add("packed, and it lies beside it unpacked", path.relative_to(root).as_posix())
    return found


def _refuse_datasets(root: Path, about: Iterable[Path]) -> None:
    """BadFile for a folder that holds one of datasets' save_to_disk: its rows are in the files that its state.json names."""
    for path in about:
        if path.name != "state.json" and saved_parts(path.parent) is not None:
            raise BadFile(
                f"[data.corpus] {shown(root)}: holds {shown(path.parent)}, which is a dataset of save_to_disk, and is read "
                "by itself. Give that one."
            )


def _refuse_held_out(root: Path, files: Iterable[Path]) -> None:
    """BadFile where files or folders beside each other say that some are trained on and others held out."""
    beside: dict[tuple[str, ...], dict[str, None]] = {}
    for path in files:
        parts = path.relative_to(root).parts
        for depth, name in enumerate(parts):
            beside.setdefault(parts[:depth], {})[name] = None
    for above, names in beside.items():
        trained = next((name for name in names if _TRAINED.match(name)), None)
        held_out = next((name for name in names if _HELD_OUT.match(name)), None)
        if trained is not None and held_out is not None:
            folder = root.joinpath(*above)
            raise BadFile(
                f"[data.corpus] {shown(folder)}: holds {shown(trained)} and {shown(held_out)}, and a folder is read "
                f"whole. Give the one that is meant, as {shown(folder / trained)}; to read both, give them other names."
            )


def fits(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends in one of the suffixes, packed or not, in whatever case."""
    name = name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return name.endswith(tuple(suffix.lower() for suffix in suffixes))


def cannot_read(path: Path, error: OSError) -> BadFile:
    """The error about a file or folder that the system does not let one look at."""
    what = f"a link to {shown(os.readlink(path))}, which is not there" if _is_broken(path) else error.strerror
    return BadFile(
        f"[data.corpus] {shown(path)}: cannot be read ({what}). Restore it or correct its permissions "
        "(--skip-bad-files leaves out such files and counts them)"
    )


def ancestors(path: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    """A path and the folders above it that exist, each with (device, inode); links and bind mounts are seen through."""
    path = Path(os.path.realpath(path))
    for one in (path, *path.parents):
        try:
            status = one.stat()
        except OSError:
            continue
        yield one, (status.st_dev, status.st_ino)


def _is_broken(path: Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _why_hidden(name: str) -> str:
    if name.startswith("._"):
        return "the Mac's AppleDouble"
    return "hidden" if name.startswith(".") else "no data"
