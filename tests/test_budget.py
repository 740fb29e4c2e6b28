"""Sizes of files are a policy: one concept each, hardly ever above 600 lines, no drawer for the rest."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CEILING = 600
FOLDERS = ("cktrain", "comm", "cython_kernels", "launch", "examples", "tests")
SUFFIXES = {".py", ".pyx", ".pxd", ".pxi", ".c", ".h", ".sh"}

# Files above the ceiling: path, and why it is still one concept. An entry that is no longer needed fails too.
LONG_FILES: dict[str, str] = {}

# Names that say nothing about what is inside; what they would hold belongs to the concept that uses it.
DRAWERS = {"utils", "util", "helpers", "common", "misc", "tools"}


def sources() -> list[Path]:
    """Every source file that a person wrote."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found += [ROOT / "setup.py", ROOT / "run"]
    return sorted(path for path in found if path.is_file())


def check(path: str, lines: int) -> str | None:
    """What is wrong with a file of that name and length, or None."""
    if Path(path).stem in DRAWERS:
        return f"{path}: name the concept instead"
    if lines > CEILING and path not in LONG_FILES:
        return f"{path} has {lines} lines, the ceiling is {CEILING}: is it still one concept?"
    if lines <= CEILING and path in LONG_FILES:
        return f"{path} has only {lines} lines: take it out of LONG_FILES"
    return None


def test_every_file_is_within_its_budget() -> None:
    files = sources()
    assert len(files) > 20
    found = [check(path.relative_to(ROOT).as_posix(), len(path.read_bytes().splitlines())) for path in files]
    assert [complaint for complaint in found if complaint] == []


def test_long_files_exist_and_have_a_reason() -> None:
    for path, reason in LONG_FILES.items():
        assert (ROOT / path).is_file(), f"{path} stands in LONG_FILES and does not exist"
        assert len(reason.split()) >= 5, f"{path}: say why it is one concept"


def test_the_check_catches_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "601 lines" in (check("comm/group.py", 601) or "")
    assert check("comm/group.py", 600) is None
    assert "name the concept" in (check("cktrain/data/utils.py", 10) or "")
    monkeypatch.setitem(LONG_FILES, "comm/group.py", "a reason of at least five words")
    assert check("comm/group.py", 601) is None
    assert "take it out" in (check("comm/group.py", 600) or "")
