"""Logs and the terminal: odd terminals, files that cannot be written, and messages that are said all the same."""

from __future__ import annotations

import logging
import os
import pty
import sys

import pytest

from cktrain.best_effort import WatchedStream
from cktrain.logs import set_up_logging
from cktrain.training.observer import Step, StepResult
from cktrain.training.progress_bar import StepBar


@pytest.fixture(autouse=True)
def _handlers():
    yield
    logger = logging.getLogger("cktrain")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


def show(console, steps=3):
    bar = StepBar(console)
    bar.begun(0, steps)
    try:
        for step in range(steps):
            bar.stepped(Step(step, StepResult(1.0, 1.0, 1.0, 1, True, False, 0.0), False, 1.0))
            logging.getLogger("cktrain").info("step: %d", step)
    finally:
        bar.ended()


def test_a_folder_that_cannot_be_had_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to run.dir .*file: File exists"):
        set_up_logging(tmp_path / "file", 0)


def test_a_log_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / "rank0.log").mkdir()
    show(set_up_logging(tmp_path, 0))
    printed = capsys.readouterr()
    assert "step: 2" in printed.out
    assert (printed.out + printed.err).count(
        "rank0.log cannot be written: Is a directory"
    ) == 2  # once on each


@pytest.mark.parametrize(
    "term, columns, encoding", [("", "0", "ascii"), ("dumb", "x", "utf-8"), ("nonsense", "1", "latin-1")]
)
def test_odd_terminals(tmp_path, monkeypatch, term, columns, encoding):
    """No TERM, no width, no encoding for the path: the message comes, in escapes where need be."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", columns)
    master, slave = pty.openpty()
    with open(slave, "w", encoding=encoding) as terminal:
        monkeypatch.setattr(sys, "stdout", WatchedStream(terminal, "standard output"))
        show(set_up_logging(tmp_path / "café", 0))
        logging.getLogger("cktrain").info("saved %s", tmp_path / "café")
        logging.getLogger("cktrain").info("the end")
        said = ""
        while "the end" not in said:  # a terminal hands on what was written in pieces, and later
            said += os.read(master, 1 << 16).decode(encoding)
    os.close(master)
    assert "step: 2" in said and ("café" in said or "caf\\xe9" in said), said
    assert "café" in (tmp_path / "café" / "rank0.log").read_text(encoding="utf-8")


def test_a_terminal_that_is_gone(tmp_path, monkeypatch, capsys):
    """EIO, as after a dropped connection: the bar is taken down, the log has all of it and the warning once."""
    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with open(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", WatchedStream(terminal, "standard output"))
        console = set_up_logging(tmp_path, 0)
        assert console.is_terminal
        os.close(master)
        show(console)
    log = (tmp_path / "rank0.log").read_text()
    assert "step: 0" in log and "step: 2" in log and "Traceback" not in log
    assert log.count("standard output cannot be written: Input/output error") == 1
    assert capsys.readouterr().err.count("standard output cannot be written: Input/output error") == 1
