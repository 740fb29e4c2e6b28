"""Why a run ends: each rank says what it alone knows, rank 0 what all have agreed on; every log has it."""

from __future__ import annotations

import argparse
import logging
import signal
from types import SimpleNamespace

import pytest

from cktrain.agreed import AgreedFault, AgreedInputError
from cktrain.comm.errors import CommError
from cktrain.launch.commands.train import _report
from cktrain.logs import set_up_logging
from cktrain.training.stop import StopFlag

OPTIONS = argparse.Namespace(config="run.yaml", overrides=[])


@pytest.fixture(autouse=True)
def _handlers():
    yield
    logger = logging.getLogger("cktrain")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "error, status, known_to_all",
    [
        (ValueError("[x] its own"), 2, False),
        (MemoryError("4096 bytes"), 1, False),
        (AgreedInputError("[x] all know"), 2, True),
        (AgreedFault("[x] all know"), 1, True),
    ],
)
def test_who_says_it(tmp_path, capsys, rank, error, status, known_to_all):
    set_up_logging(tmp_path, rank, 2)
    group = SimpleNamespace(rank=rank, size=2)
    session = SimpleNamespace(flag=StopFlag(), group=group, trains=True, fate="Not saved: so.")
    assert _report(error, OPTIONS, session) == status
    printed = capsys.readouterr()
    said = f"{error} Not saved: so."
    assert (said in printed.err) == (rank == 0 or not known_to_all) and printed.out == ""
    assert (
        f"ERROR {'out of memory: ' * isinstance(error, MemoryError)}{said}"
        in (tmp_path / f"rank{rank}.log").read_text()
    )


def test_ranks_that_were_asked_to_stop_and_lose_each_other_before_the_first_step(tmp_path, capsys):
    """The first to end is lost to the others: they have lost nothing, and were asked too."""
    set_up_logging(tmp_path, 0, 2)
    flag = StopFlag()
    group = SimpleNamespace(rank=0, size=2)
    session = SimpleNamespace(flag=flag, group=group, trains=False, fate="")
    assert _report(CommError("comm", "lost rank 1", "Start again"), OPTIONS, session) == 1
    flag.signal = signal.SIGHUP
    assert _report(CommError("comm", "lost rank 1", "Start again"), OPTIONS, session) == 75
    assert "stopped by SIGHUP before the first step: nothing was trained" in capsys.readouterr().out
