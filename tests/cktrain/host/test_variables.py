"""A mistyped variable is told with the closest name; the table has every variable that is read anywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cktrain.host.variables import VARIABLES, unknown_variables
from cktrain.launch import cli

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CKTRAIN_IAS", "Did you mean CKTRAIN_ISA?"),
        ("cktrain_isa", "Did you mean CKTRAIN_ISA?"),
        ("CKTRAIN_RENDEZVOUZ", "Did you mean CKTRAIN_RENDEZVOUS?"),
        ("CKTRAIN_THREADS", "Threads are set by launch.threads. docs/launch.md lists those that are."),
        ("CKTRAIN_X", "it has no effect. docs/launch.md lists"),
    ],
)
def test_a_variable_that_is_none_is_told_with_the_closest(name, told):
    (line,) = unknown_variables({name: "1", "CKTRAIN_ISA": "avx2", "CKTRAIN_TEST_STRICT": "1", "PATH": ""})
    assert line.startswith(f"{name} is set") and told in line


def test_it_is_said_once_and_ends_nothing(monkeypatch, capsys):
    monkeypatch.setenv("CKTRAIN_IAS", "avx2")
    for rank, times in (("0", 1), ("1", 0)):
        monkeypatch.setenv("CKTRAIN_RANK", rank)
        monkeypatch.setenv("CKTRAIN_SIZE", "2")
        assert cli.main(["plan", "no-such-file.yaml"]) == 2
        assert capsys.readouterr().err.count("warning: CKTRAIN_IAS") == times
    monkeypatch.setenv("CKTRAIN_RANK", "0")
    monkeypatch.setenv("CKTRAIN_LAUNCHER", "cktrain launch -n 2")
    assert cli.main(["plan", "no-such-file.yaml"]) == 2
    assert "CKTRAIN_IAS" not in capsys.readouterr().err


def test_the_table_has_every_variable_that_is_read():
    folders = ("cktrain", "comm", "launch", "cython_kernels")
    sources = [
        file for folder in folders for file in (ROOT / folder).rglob("*.p*") if file.suffix in (".py", ".pyx")
    ]
    text = "\n".join(file.read_text() for file in [*sources, ROOT / "run", ROOT / "setup.py"])
    read = set(re.findall(r"CKTRAIN_[A-Z]+(?:_[A-Z]+)*\b", text)) - {"CKTRAIN_TEST"}
    read = {name for name in read if not name.startswith("CKTRAIN_TEST_")}
    assert read == set(VARIABLES)
    page = (ROOT / "docs" / "launch.md").read_text()
    assert [name for name in VARIABLES if f"`{name}`" not in page] == []
