"""The test command: which stages run, and what its table says of the others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parent / "stages.py"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script with three stages: one for all, one for CI, and one whose means are missing."""
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
        module.Stage("guests", "machines inside this one", true, ci=True),
        module.Stage("judges", "parity", true, lambda: "torch is not installed (./run setup judges)"),
    )
    monkeypatch.setattr(module, "STAGES", rows)
    return module


@pytest.mark.parametrize(
    ("names", "strict", "status", "guests"),
    [
        ([], "", 0, "left to CI: machines inside this one"),
        (["guests"], "", 0, "1 passed, 0 failed"),
        ([], "1", 1, "1 passed, 0 failed"),
    ],
)
def test_what_runs(
    stages: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    names: list[str],
    strict: str,
    status: int,
    guests: str,
) -> None:
    monkeypatch.setenv("CKTRAIN_TEST_STRICT", strict)
    assert stages.main(names) == status
    table = capsys.readouterr().out.partition("== results\n")[2].splitlines()
    rows = {line.split()[0]: line for line in table if line.split()[0] in ("quick", "guests", "judges")}
    assert guests in rows["guests"]
    assert ("./run test NAME" in "\n".join(table)) == (guests.startswith("left"))
    if not names:
        assert "1 passed, 0 failed" in rows["quick"]
        assert "not run, because torch is not installed" in rows["judges"]
    assert any(line.startswith("FAILED  judges: did not run") for line in table) == (strict == "1")


def test_an_unknown_stage_is_named(stages: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert stages.main(["unti"]) == 2
    assert "no stage is named unti. Known: quick, guests, judges." in capsys.readouterr().err
