"""Schedules as data: complete, runnable, as many slots as promised, and the bubble of the formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.parallel.schedules import SCHEDULES, Action, make_schedule, simulate, slots_needed


def spell(actions) -> str:
    return " ".join(f"{action.kind[0].upper()}{action.micro_batch}" for action in actions)


def test_the_pictures_of_the_docstring():
    first, last = make_schedule("1f1b", 2, 4)
    assert spell(first) == "F0 F1 B0 F2 B1 F3 B2 B3"
    assert spell(last) == "F0 B0 F1 B1 F2 B2 F3 B3"
    assert spell(make_schedule("gpipe", 2, 3)[0]) == "F0 F1 F2 B0 B1 B2"


@pytest.mark.parametrize("name", SCHEDULES)
@given(stages=st.integers(1, 9), micro_batches=st.integers(1, 20))
def test_every_schedule_runs_to_its_end(name, stages, micro_batches):
    """Each action once; backwards in the order of micro-batches on every stage, which sums of gradients rely on."""
    schedule = SCHEDULES[name](stages, micro_batches)
    simulate(schedule, [1.0] * stages, [2.0] * stages)
    for actions in schedule:
        for kind in ("forward", "backward"):
            assert [a.micro_batch for a in actions if a.kind == kind] == list(range(micro_batches))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stages, micro_batches", [(2, 8), (4, 8), (4, 4), (8, 32)])
def test_the_bubble_of_balanced_stages_is_the_formula(name, stages, micro_batches):
    bubble = simulate(SCHEDULES[name](stages, micro_batches), [1.0] * stages, [2.0] * stages).bubble
    assert bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))


def test_slots():
    assert [slots_needed(actions) for actions in make_schedule("1f1b", 4, 8)] == [4, 3, 2, 1]
    assert [slots_needed(actions) for actions in make_schedule("1f1b", 4, 2)] == [2, 2, 2, 1]
    assert [slots_needed(actions) for actions in make_schedule("gpipe", 4, 8)] == [8] * 4
    assert slots_needed(make_schedule("gpipe", 1, 8)[0]) == 1  # one stage accumulates


def test_a_slow_stage_and_slow_messages_show():
    """The slow stage works without a pause between its first forward and its last backward."""
    schedule = make_schedule("1f1b", 2, 4)
    assert simulate(schedule, [1.0, 1.0], [1.0, 3.0]).finished == 1 + 4 * 4 + 1
    assert simulate(schedule, [1.0, 1.0], [1.0, 1.0], transfer=0.5).finished > 10


F0, F1, B0, B1 = Action("forward", 0), Action("forward", 1), Action("backward", 0), Action("backward", 1)


@pytest.mark.parametrize(
    "schedule, message",
    [
        ([[B0, F0], [F0, B0]], "waits for ever"),
        ([[F0, B0, F1, B1], [F0, F1, B0, B1]], "waits for ever"),
        ([[F0, B0], [F0]], "waits for ever"),
        ([[F0], [F0, B0]], "lacks"),
        ([[F0, F0, B0], [F0, B0]], "twice"),
    ],
)
def test_a_schedule_that_cannot_run_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        simulate(schedule, [1.0, 1.0], [1.0, 1.0])
