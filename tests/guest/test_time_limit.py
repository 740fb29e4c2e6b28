"""A guest's time limit is as much longer as its host is slower, which the boot tells."""

import pytest
import time_limit
from time_limit import BOOT_LIMIT_S, BOOT_S, LONGEST_STRETCH, TimeLimit


class Clock:
    """In place of time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time_limit.time, "monotonic", made)
    return made


@pytest.mark.parametrize(("slower", "stretch"), [(0.5, 1), (1, 1), (4, 4), (20, LONGEST_STRETCH)])
def test_the_limit_counts_from_the_boot_and_is_stretched_by_it(
    clock: Clock, slower: float, stretch: float
) -> None:
    limit = TimeLimit(100)
    clock.now += slower * BOOT_S
    limit.booted()
    clock.now += 1
    limit.booted()  # only the first call counts
    clock.now += stretch * 100 - 1.5
    assert not limit.is_over()
    clock.now += 1
    assert limit.is_over()
    took = f"this one took {slower * BOOT_S:.1f} s"
    assert f"its time limit of {stretch * 100:.0f} s has passed (100 s" in str(limit) and took in str(limit)


def test_a_guest_that_never_boots_is_given_up(clock: Clock) -> None:
    limit = TimeLimit(1)
    clock.now += BOOT_LIMIT_S - 1
    assert not limit.is_over()
    clock.now += 2
    assert limit.is_over() and f"not booted within {BOOT_LIMIT_S:g} s" in str(limit)
