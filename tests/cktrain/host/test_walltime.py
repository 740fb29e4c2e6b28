"""When Slurm ends the job, and the flag that the clock raises."""

from __future__ import annotations

import time

import pytest

from cktrain.host.walltime import stop_time
from cktrain.training.stop import StopFlag


def test_a_margin_before_the_end():
    assert stop_time({"SLURM_JOB_END_TIME": "1700000000"}, 120) == 1699999880
    assert stop_time({}, 120) is None


@pytest.mark.parametrize("told", ["soon", "nan", "inf", "-1", "1e999", "0"])
def test_no_number(told):
    with pytest.raises(ValueError, match=f"SLURM_JOB_END_TIME='{told}' is not a number"):
        stop_time({"SLURM_JOB_END_TIME": told}, 0)


def test_the_clock_raises_the_flag():
    assert not StopFlag(time.time() + 60)
    assert StopFlag(time.time() - 1)
    assert not StopFlag()
