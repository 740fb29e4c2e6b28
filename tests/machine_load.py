"""What bounds in seconds allow for a machine that has other work. A promise to users stays what it is; what tests add to it
for processes that end is multiplied by `stretch`.

A guest cannot see that its host is busy: while its processors stand still its clock goes on, and what it counts as CPU
time goes by too. Tests that may run there wait by `nap` and read `now`, a clock that leaves out what the host took: in each
nap a piece of work whose time is known is done on every processor. Outside of guests the two are time.sleep and
time.monotonic.
"""

import os
import time

IN_GUEST = "GUEST_SSH_SERVER" in os.environ
NAP_S = 0.1 if IN_GUEST else 0.005
"""Where a processor is emulated, to wake a process costs a millisecond of CPU time."""
_LATE_S = 0.02
"""A timer may be so late on an idle host."""
_MEASURED_S = 0.05
_STEPS = 4000
_AS_EVER = 2.0
"""An emulated processor may need so much longer for the same work although its host gives it all its time."""


def stretch() -> float:
    """How much longer than its CPU time a computation takes now: 1 on an idle machine, 3 where three processes share each
    core; measured in 0.05 s of CPU time."""
    began, used = time.monotonic(), time.thread_time()
    while time.thread_time() - used < _MEASURED_S:
        pass
    return max(1.0, (time.monotonic() - began) / _MEASURED_S)


class GuestClock:
    """The seconds in which the host let the guest run, as far as naps tell; between naps all seconds count."""

    def __init__(self) -> None:
        self.lost_s = 0.0
        self._least_sleep = self._least_work = float("inf")

    def take(self, slept: float, worked: list[float]) -> None:
        """Count what one nap lost: it slept so long, and the same work took so long on each processor."""
        self._least_sleep = min(self._least_sleep, slept)
        self._least_work = min(self._least_work, *worked)
        late = slept - self._least_sleep
        if late > _LATE_S:
            self.lost_s += late
        slowest = max(worked) / self._least_work
        if slowest > _AS_EVER:
            # What is waited for may run on the slowest processor: that one's share of these seconds is what counts.
            self.lost_s += (self._least_sleep + sum(worked)) * (1 - 1 / slowest)

    def nap(self) -> None:
        """Sleep, and do the work on each processor before all else that the guest does: its own load is no loss."""
        processors = os.sched_getaffinity(0)
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
        try:
            began = time.monotonic()
            time.sleep(NAP_S)
            slept, worked = time.monotonic() - began, []
            for processor in processors:
                os.sched_setaffinity(0, {processor})
                began = time.monotonic()
                for _ in range(_STEPS):
                    pass
                worked.append(time.monotonic() - began)
        finally:
            os.sched_setaffinity(0, processors)
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        self.take(slept, worked)


_guest_clock = GuestClock()


def now() -> float:
    """Seconds of time.monotonic; in a guest without those that its host is known to have taken."""
    return time.monotonic() - _guest_clock.lost_s


def nap() -> None:
    """Some milliseconds, for loops that wait for something whose time is bounded."""
    if IN_GUEST:
        _guest_clock.nap()
    else:
        time.sleep(NAP_S)
