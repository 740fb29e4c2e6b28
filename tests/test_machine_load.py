"""The clock of a guest leaves out what its host took, and nothing else."""

import time

import machine_load
import pytest
from machine_load import GuestClock

SLEPT, WORKED = 0.1, 0.002


@pytest.fixture
def clock() -> GuestClock:
    """One that knows a nap at its best, on two processors."""
    made = GuestClock()
    made.take(SLEPT, [WORKED, WORKED])
    return made


def test_an_idle_host_takes_nothing(clock: GuestClock) -> None:
    for _ in range(100):
        clock.take(1.1 * SLEPT, [1.5 * WORKED, 1.2 * WORKED])
    assert clock.lost_s == 0


def test_a_tenth_of_the_processors_is_a_tenth_of_the_time(clock: GuestClock) -> None:
    lasted = 0.0
    while lasted < 3:
        clock.take(SLEPT, [10 * WORKED, 10 * WORKED])
        lasted += SLEPT + 20 * WORKED
    assert lasted - clock.lost_s == pytest.approx(lasted / 10, rel=0.01)


def test_the_slowest_processor_counts(clock: GuestClock) -> None:
    clock.take(SLEPT, [WORKED, 10 * WORKED])
    assert clock.lost_s == pytest.approx(0.9 * (SLEPT + 11 * WORKED))


@pytest.mark.parametrize("asleep", [True, False])
def test_a_host_that_stops_it(clock: GuestClock, asleep: bool) -> None:
    clock.take(SLEPT + 3 * asleep, [WORKED + 3 * (not asleep), WORKED])
    assert clock.lost_s == pytest.approx(3, abs=0.2)


def test_outside_of_guests_it_is_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_load, "IN_GUEST", False)
    before = time.monotonic()
    machine_load.nap()
    assert before < machine_load.now() <= time.monotonic()


def test_a_nap_is_measured_on_each_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a guest, where root may have a priority above all else; here it need not be allowed."""
    monkeypatch.setattr(machine_load.os, "sched_setscheduler", lambda *_: None)
    took: list[tuple[float, list[float]]] = []
    clock, before = GuestClock(), machine_load.os.sched_getaffinity(0)
    monkeypatch.setattr(clock, "take", lambda slept, worked: took.append((slept, worked)))
    clock.nap()
    ((slept, worked),) = took
    assert slept >= machine_load.NAP_S and len(worked) == len(before) and min(worked) > 0
    assert machine_load.os.sched_getaffinity(0) == before
