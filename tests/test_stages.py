"""The test command: which stages run, at once and for how long, and what its table says of the others."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parent / "stages.py"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with four stages: one for all, one for CI, one for the night, and one whose means are missing."""
    spec = importlib.util.spec_from_file_location("stages", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stages", module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "typing_tree", lambda: tmp_path)
    true = (("true",),)
    rows = (
        module.Stage("quick", "what tells most", true),
        module.Stage("guests", "machines inside this one", true, left_to=module.CI),
        module.Stage("soak", "hours of it", true, left_to=module.NIGHT),
        module.Stage("judges", "parity", true, lambda: "torch is not installed (./run setup judges)"),
    )
    monkeypatch.setattr(module, "STAGES", rows)
    return module


@pytest.mark.parametrize(
    ("names", "strict", "status", "guests", "soak"),
    [
        ([], "", 0, "left to CI: machines inside this one", "left to the night: hours of it"),
        (["guests"], "", 0, "1 passed, 0 failed", ""),
        (["soak"], "1", 0, "", "1 passed, 0 failed"),
        ([], "1", 1, "1 passed, 0 failed", "left to the night: hours of it"),
    ],
)
def test_what_runs(
    stages: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    names: list[str],
    strict: str,
    status: int,
    guests: str,
    soak: str,
) -> None:
    monkeypatch.setenv("CKTRAIN_TEST_STRICT", strict)
    assert stages.main(names) == status
    table = capfd.readouterr().out.partition("== results\n")[2].splitlines()
    rows = {
        line.split()[0]: line for line in table if line.split()[0] in ("quick", "guests", "soak", "judges")
    }
    assert guests in rows.get("guests", "") and soak in rows.get("soak", "")
    assert ("guests" in rows, "soak" in rows) == (bool(guests), bool(soak))
    assert ("./run test NAME" in "\n".join(table)) == (guests.startswith("left"))
    assert ("the first and the last ran" in "\n".join(table)) == (guests.startswith("left"))
    if not names:
        assert "1 passed, 0 failed" in rows["quick"]
        assert "not run, because torch is not installed" in rows["judges"]
    refused = any(line.startswith("FAILED  judges: did not run") for line in table)
    assert refused == (strict == "1" and not names)


@pytest.mark.parametrize(("names", "strict", "brief"), [([], "", "1"), (["quick"], "", ""), ([], "1", "")])
def test_what_runs_in_brief(
    stages: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    names: list[str],
    strict: str,
    brief: str,
) -> None:
    monkeypatch.setenv("CKTRAIN_TEST_STRICT", strict)
    monkeypatch.delenv("CKTRAIN_TEST_BRIEF", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    told = tmp_path / "told"
    tell = ("sh", "-c", f"printf '%s' \"$CKTRAIN_TEST_BRIEF${{PYTHONDONTWRITEBYTECODE-}}\" >{told}")
    monkeypatch.setattr(stages, "STAGES", (stages.Stage("quick", "", (tell,)),))
    assert stages.main(names) == 0
    assert told.read_text() == brief  # and what is imported is compiled once


@pytest.mark.parametrize(("brief", "cases"), [("", "abcde"), ("1", "ae")])
def test_in_brief_a_test_has_its_first_and_last_case_and_none_is_thorough(
    tmp_path: Path, brief: str, cases: str
) -> None:
    for name in ("conftest.py", "machine_load.py"):
        (tmp_path / name).write_text((FILE.parent / name).read_text())
    (tmp_path / "test_two.py").write_text(
        "import pytest\n"
        "def test_alone(): pass\n"
        "@pytest.mark.parametrize('letter', 'abcde')\n"
        "def test_letters(letter): pass\n"
        "@pytest.mark.thorough\n"
        "def test_all(): pass\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-q",
        str(tmp_path),
    ]
    environment = {**os.environ, "CKTRAIN_TEST_BRIEF": brief}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert [line.partition("test_two.py::")[2] for line in shown.splitlines() if "::" in line] == [
        "test_alone",
        *(f"test_letters[{letter}]" for letter in cases),
        *([] if brief else ["test_all"]),
    ]


@pytest.mark.parametrize(
    ("marker", "chosen", "imported"),
    [
        ("judge", "judge", "judge"),
        ("mpi and not judge", "ranks", "ranks"),
        ("not judge and not mpi", "plain", "night plain ranks"),
        ("judge or mpi", "judge ranks", "judge night plain ranks"),
        ("not nightly", "judge plain ranks", "judge plain ranks"),
    ],
)
def test_files_of_which_a_marker_chooses_nothing_are_not_imported(
    tmp_path: Path, marker: str, chosen: str, imported: str
) -> None:
    for name in ("conftest.py", "machine_load.py"):
        (tmp_path / name).write_text((FILE.parent / name).read_text())
    marks = {
        "judge": "pytestmark = pytest.mark.judge\n",
        "night": "pytestmark = [pytest.mark.nightly]\n",
        "plain": "",
        "ranks": "@pytest.mark.mpi\n",
    }
    for name, mark in marks.items():
        begin = f"import pathlib, pytest\npathlib.Path({str(tmp_path)!r}, '{name}').touch()\n"
        (tmp_path / f"test_{name}.py").write_text(f"{begin}{mark}def test_{name}(): pass\n")
    options = ["-p", "no:cacheprovider", "--collect-only", "-q", "-m", marker, str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {line.partition("::test_")[2] for line in shown.splitlines() if "::" in line}
    assert found == set(chosen.split())
    assert {name for name in marks if (tmp_path / name).exists()} == set(imported.split())


def test_an_unknown_stage_is_named(stages: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages.main(["unti"]) == 2
    assert "no stage is named unti. Known: quick, guests, soak, judges." in capsys.readouterr().err


def test_a_stage_at_its_limit_says_which_tests_were_running(
    stages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The limit passes when the second test has begun, however long that takes here."""
    begun, limits, wait = tmp_path / "begun", [60.0], subprocess.Popen.wait

    def until_begun(process: Any, timeout: float | None = None) -> int:
        if timeout not in limits:
            return wait(process, timeout)
        limits.remove(60.0)
        while not begun.exists() and process.poll() is None:
            time.sleep(0.01)
        raise subprocess.TimeoutExpired("pytest", 60)

    monkeypatch.setattr(subprocess.Popen, "wait", until_begun)
    for name in ("conftest.py", "machine_load.py"):
        (tmp_path / name).write_text((FILE.parent / name).read_text())
    (tmp_path / "test_two.py").write_text(
        "import pathlib, time\n"
        "def test_quick(): pass\n"
        f"def test_slow(): pathlib.Path({str(begun)!r}).touch(); time.sleep(60)\n"
    )
    stages.RESULTS.mkdir()
    stage = stages.Stage("slow", "", (("pytest", "-p", "no:cacheprovider", str(tmp_path)),), minutes=1)
    outcome = stages.run_stage(stage, dict(os.environ), sys.stdout)
    assert "[tests] interrupted in " in (shown := capfd.readouterr().out)
    assert "test_two.py::test_slow" in shown and "test_two.py::test_quick" not in shown
    assert outcome.failed == 1
    assert outcome.problem == "pytest ended with status -9"


def test_stages_side_by_side(
    stages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each waits for the other's file; what both print stands in order."""

    def meets(mine: str, other: str) -> tuple[tuple[str, ...], ...]:
        script = f"touch {tmp_path}/{mine}; until [ -e {tmp_path}/{other} ]; do sleep 0.05; done; echo {mine} is done"
        return (("sh", "-c", script),)

    rows = (
        stages.Stage("a", "first", meets("a", "b"), beside=True),
        stages.Stage("b", "second", meets("b", "a")),
        stages.Stage("c", "third", (("true",),)),
    )
    monkeypatch.setattr(stages, "STAGES", rows)
    assert [[stage.name for stage in group] for group in stages.in_groups(rows)] == [["a", "b"], ["c"]]
    assert stages.main([]) == 0
    shown = capfd.readouterr().out
    assert (
        shown.index("a is done")
        < shown.index("== b: second")
        < shown.index("b is done")
        < shown.index("== c")
    )
    assert "3 passed, 0 failed, 0 skipped in " in shown


def test_the_ends_of_failed_tests_stand_before_the_table(
    stages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The last lines of the first ones, and the names of the rest, so that a log's end tells what went wrong."""
    (tmp_path / "test_bad.py").write_text(
        "import pytest\n"
        "def test_long(): pytest.fail('\\n'.join(f'line {i}' for i in range(100)), pytrace=False)\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no such machine')\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.parametrize('i', range(4))\n"
        "def test_many(i): assert i < 0\n"
    )
    stage = stages.Stage("bad", "", (("pytest", "-p", "no:cacheprovider", str(tmp_path)),))
    monkeypatch.setattr(stages, "STAGES", (stage,))
    assert stages.main([]) == 1
    shown, _, table = capfd.readouterr().out.partition("\n== failed in bad: ")[2].partition("== results\n")
    long, error, *many, others = shown.split("\n== failed in bad: ")
    assert long.splitlines()[0].endswith("test_bad::test_long")
    assert long.splitlines()[1:31] == [f"    line {i}" for i in range(70, 100)]
    assert "OSError: no such machine" in error
    assert len(many) == 2 and "assert 0 < 0" in many[0]
    assert others.startswith("others:") and others.count("test_many[") == 2
    assert "FAILED  bad: 6 failed" in table


def test_the_night_runs_the_stages_that_are_left_to_it(stages: ModuleType) -> None:
    spec = importlib.util.spec_from_file_location("all_stages", FILE)
    assert spec is not None and spec.loader is not None
    real = sys.modules["all_stages"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    del sys.modules["all_stages"]
    (line,) = [
        line
        for line in (FILE.parents[1] / ".ci" / "nightly").read_text().splitlines()
        if line.startswith("stages=")
    ]
    night = [stage.name for stage in real.STAGES if stage.left_to == real.NIGHT]
    assert line == f"stages='{' '.join(night)}'"
