"""A flag that a signal or the clock raises, so that a run ends with all its work saved and can be resumed.

SIGINT, SIGTERM, SIGHUP (a terminal or a connection that is gone), and SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems
say that time is running out, raise it. Before the first step there is
nothing to save, and with `at_once` they raise `StopRequested` where the run is; from the first step on the flag of each
rank is part of the vector that is reduced in every step, so all ranks stop after the same one, with a checkpoint. A
second SIGINT interrupts at once. SIGHUP that was inherited as ignored (nohup) stays so. SIGQUIT keeps its meaning, an end
without a save, and so do SIGTSTP and SIGCONT: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)

RETRY_S = 0.05
"""A signal that came while something was imported is sent again after that time."""


class StopRequested(BaseException):
    """A signal came, or another rank's, while nothing was trained yet. No Exception: nothing but the command takes it."""


class StopFlag:
    """Context manager: within it the signals raise the flag; the old handlers come back after it.

    At `stop_at`, seconds since the epoch, the flag is up without a signal. Only the main thread can be signalled: in
    another one the flag knows the clock alone.
    """

    def __init__(self, stop_at: float | None = None, *, at_once: bool = False) -> None:
        self.stop_at = stop_at
        self.at_once = at_once
        """Whether the first signal raises StopRequested too."""
        self.signal: signal.Signals | None = None
        """The first one that came."""
        self._deferred = False  # it came in an import, and will be sent again
        self._before: list[dict[signal.Signals, object]] = []

    def __bool__(self) -> bool:
        return self.signal is not None or self.time_is_up

    @property
    def time_is_up(self) -> bool:
        """Whether `stop_at` has come."""
        return self.stop_at is not None and time.time() >= self.stop_at

    @property
    def reason(self) -> str:
        """What raised it here."""
        if self.signal:
            return self.signal.name
        return "the end of the job's time" if self.time_is_up else "another rank's signal"

    def __enter__(self) -> StopFlag:
        before: dict[signal.Signals, object] = {}
        self._before.append(before)
        if threading.current_thread() is threading.main_thread():
            for number in catchable():
                before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *_: object) -> None:
        self._deferred = False
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ignore(self) -> None:
        """From now on the signals do nothing: the process ends anyway."""
        for number in self._before[-1]:
            signal.signal(number, signal.SIG_IGN)
        self._before[-1].clear()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is not None and not self._deferred
        self._deferred = False
        self.signal = self.signal or signal.Signals(number)
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.at_once and not again:
            if not imports(frame):
                raise StopRequested
            self._deferred = True
            timer = threading.Timer(RETRY_S, self._send_again, [signal.Signals(number)])
            timer.daemon = True
            timer.start()

    def _send_again(self, number: signal.Signals) -> None:
        ident = threading.main_thread().ident
        if self._deferred and self.at_once and ident is not None:
            signal.pthread_kill(ident, number)

    def check(self) -> None:
        """Raise StopRequested if a signal came where it could not be raised."""
        if self.at_once and self.signal is not None:
            self._deferred = False
            raise StopRequested


def imports(frame: FrameType | None) -> bool:
    """Whether an import is going on: compiled modules do not bear to be interrupted in theirs."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def catchable() -> list[signal.Signals]:
    """The signals that ask a run to stop, less a SIGHUP that this process was told to ignore."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
