"""How long a command may take in a guest: seconds of a Zen 4 with little else to do, stretched by how slow this host is now.

Booting is the same work on every host, so the time that it takes is the measure: where a guest needs twice BOOT_S until
its command begins (an older CPU, a busy one), the command has twice its limit. The boot itself is not counted.
"""

import time

BOOT_S = 4.5
"""A scale, not a benchmark: a Zen 4 with little else to do took 9 s to boot a packed kernel once, and the unpacked one takes
half of that in CPU time (on a busy Zen 3: 8 to 10 s in four boots, against 17 s)."""
LONGEST_STRETCH = 8.0
"""On a host so slow the tests would take hours: what needs longer has a fault."""
BOOT_LIMIT_S = 240.0
"""A guest that has not booted by then never will."""


class TimeLimit:
    """The limit of one run of a guest, or of two joined ones; the constructor starts the clock.

    `seconds` are those of the host that boots in BOOT_S.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = time.monotonic()
        self._booted_s: float | None = None

    def booted(self) -> None:
        """All guests' commands have begun; the first call counts."""
        if self._booted_s is None:
            self._booted_s = time.monotonic() - self._began

    def stretch(self) -> float:
        """How many times slower than BOOT_S this host booted, at least 1; the most until it has booted."""
        if self._booted_s is None:
            return LONGEST_STRETCH
        return min(LONGEST_STRETCH, max(1.0, self._booted_s / BOOT_S))

    def is_over(self) -> bool:
        """Whether the guests are to be stopped: after the boot's seconds and the stretched limit."""
        allowed = BOOT_LIMIT_S if self._booted_s is None else self._booted_s + self._stretched()
        return time.monotonic() - self._began > allowed

    def __str__(self) -> str:
        if self._booted_s is None:
            return f"it has not booted within {BOOT_LIMIT_S:g} s"
        return (
            f"its time limit of {self._stretched():.0f} s has passed ({self.seconds:g} s on a host that boots in "
            f"{BOOT_S:g} s; this one took {self._booted_s:.1f} s)"
        )

    def _stretched(self) -> float:
        return self.seconds * self.stretch()
