"""Lines per room of two commits, as a Markdown table: `python tests/old_against_new/rooms.py START [HEAD]`.

A room is a folder of the top four and of cktrain/; lines are those that are not empty, of Python, Cython and C, with
docstrings and comments. Reported to see where a change put its weight: fewer is no goal.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = ("py", "pyx", "pxi", "pyi", "c", "h")
TOP = ("cktrain", "cython_kernels", "comm", "launch", "tests")


def room_of(path: str) -> str:
    """`cktrain/nn/head.py` -> `cktrain/nn`; a file of cktrain/ itself -> `cktrain, its own files`; else the top folder."""
    top, *below = PurePosixPath(path).parts
    if top != "cktrain":
        return top
    return f"cktrain/{below[0]}" if len(below) > 1 else "cktrain, its own files"


def lines_by_room(counts: str) -> dict[str, tuple[int, int]]:
    """(files, lines) of each room, from `COMMIT:path:count` lines as `git grep -c` prints them."""
    files: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for line in counts.splitlines():
        _, path, count = line.split(":")
        files[room_of(path)] += 1
        lines[room_of(path)] += int(count)
    return {room: (files[room], lines[room]) for room in files}


def table(old: dict[str, tuple[int, int]], new: dict[str, tuple[int, int]]) -> str:
    """A row per room, the library's first, and the sums without the tests."""
    rooms = sorted({*old, *new}, key=lambda room: (TOP.index(room.split("/")[0].split(",")[0]), room))
    rows = [(room, *old.get(room, (0, 0)), *new.get(room, (0, 0))) for room in rooms]
    sums = [sum(row[column] for row in rows if row[0] != "tests") for column in range(1, 5)]
    lines = ["| room | files | lines | files now | lines now | |", "|---|---|---|---|---|---|"]
    for name, *numbers in [*rows, ("all but tests", *sums)]:
        texts = " | ".join(f"{number:,}" for number in numbers)
        lines.append(f"| {name} | {texts} | {numbers[3] - numbers[1]:+,} |")
    return "\n".join(lines)


def counts(commit: str) -> str:
    """Lines that are not empty, by file, of a commit."""
    patterns = [f"{top}/*.{suffix}" for top in TOP for suffix in SUFFIXES]
    command = ["git", "grep", "-c", ".", commit, "--", *patterns]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    commits = [*sys.argv[1:], "HEAD"][:2]
    print(table(*(lines_by_room(counts(commit)) for commit in commits)))
