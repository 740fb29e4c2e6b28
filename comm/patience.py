"""How long a rank waits for others: stall warnings, and the deadline.

A rank that is missing is told apart by what its process shows (its heart beats in a thread of its own):

- it has closed its group: it will not come, and waiting ends at once;
- no heartbeat for 2 s: the process is stopped, or the machine is. A warning names it;
- it computes, or writes a file: at the deadline it gets another one, up to ten (a slow checkpoint is no death);
- it does neither: waiting ends at the deadline.

While this process itself is stopped (Ctrl-Z, a suspended machine) it waits for nobody: that time does not count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("cktrain.comm")

STOPPED_S = 2.0
STALL_S = 15.0
MAX_STRETCH = 10


class Patience:
    """One wait. `look` is called a few times a second while it lasts."""

    def __init__(self, timeout_s: float, *, stretch: bool):
        self.began = time.monotonic()
        self.timeout_s = timeout_s
        self.deadline = self.began + timeout_s
        self.stretch = stretch
        self._looked = self.began
        self._seen: dict[int, tuple[int, int, float, float]] = {}  # beat, activity, when each last changed
        self._warned: set[int] = set()

    def look(self, missing: dict[int, tuple[int, int]], describe: Callable[[list[int]], str]) -> bool:
        """Take note of the missing ranks and warn of them; False when the time is over.

        Args:
            missing: (beat, activity) of each missing rank.
            describe: what the wait is for and what those ranks did last, for the warning.
        """
        now = time.monotonic()
        away = now - self._looked
        self._looked = now
        if away > STOPPED_S:
            self.began += away
            self.deadline += away
            self._seen = {
                rank: (*seen[:2], seen[2] + away, seen[3] + away) for rank, seen in self._seen.items()
            }
        for rank, (beat, activity) in missing.items():
            old_beat, old_activity, beat_at, active_at = self._seen.get(
                rank, (beat, activity, now, self.began - 60)
            )
            beat_at = now if beat != old_beat else beat_at
            active_at = now if activity != old_activity else active_at
            self._seen[rank] = (beat, activity, beat_at, active_at)
        stopped = [r for r in missing if now - self._seen[r][2] > STOPPED_S]
        late = [r for r in missing if now - self.began > STALL_S]
        for ranks, why in (
            (stopped, f"no heartbeat for {STOPPED_S:g} s: stopped?"),
            (late, f"waiting for {STALL_S:g} s"),
        ):
            if news := [r for r in ranks if r not in self._warned]:
                log.warning("%s (%s)", describe(news), why)
                self._warned.update(news)
        if now < self.deadline:
            return True
        recently = min(STOPPED_S, self.timeout_s / 2)  # not what it did before it was waited for
        at_work = [r for r in missing if now - self._seen[r][3] < recently]
        if self.stretch and at_work and now < self.began + MAX_STRETCH * self.timeout_s:
            self.deadline = now + self.timeout_s
            log.warning("%s (at work: waiting for another %g s)", describe(at_work), self.timeout_s)
            return True
        return False
