"""A flag that a signal or the clock raises, so that a run ends with all its work saved and can be resumed.

SIGINT, SIGTERM, SIGHUP (a terminal or a connection that is gone), and SIGUSR1, SIGUSR2 and SIGXCPU, by which batch systems
say that time is running out, raise it. Before the first step there is
nothing to save, and with `at_once` they raise `StopRequested` where the run is; from the first step on the flag of each
rank is part of the vector that is reduced in every step, so all ranks stop after the same one, with a checkpoint. A
second SIGINT interrupts at once; a second SIGTERM does not, for a batch system and its launcher both send one, and neither
means that the work may be lost. What takes longer than `LEAVE_AFTER_S` is left by a run alone (`left_if_long`): Slurm kills
30 s after its SIGTERM. SIGHUP that was inherited as ignored (nohup) stays so. SIGQUIT keeps its meaning, an end
without a save, and so do SIGTSTP and SIGCONT: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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

SAY_AFTER_S = 1.0
"""What has not ended by then says what it waits for."""

LEAVE_AFTER_S = 5.0
"""A step that a run alone has not done so long after a signal is left: of Slurm's 30 s the rest is for the save."""


class StopRequested(BaseException):
    """A signal came, or another rank's, while nothing was trained yet. No Exception: nothing but the command takes it."""


class StopFlag:
    """Context manager: within it the signals raise the flag; the old handlers come back after it.

    At `stop_at`, seconds since the epoch, the flag is up without a signal. Only the main thread can be signalled: in
    another one the flag knows the clock alone.
    """

    def __init__(
        self,
        stop_at: float | None = None,
        *,
        at_once: bool = False,
        signals: Sequence[signal.Signals] | None = None,
        second_interrupts: bool = True,
    ) -> None:
        """`signals`: those that are taken, by default all that are `catchable`."""
        self.stop_at = stop_at
        self.at_once = at_once
        """Whether the first signal raises StopRequested too."""
        self.say: Callable[[str], None] | None = None
        """Told the signal's name, in another thread, where the flag is still held a second later: handlers may not write."""
        self._signals = signals
        self._second_interrupts = second_interrupts
        self.signal: signal.Signals | None = None
        """The first one that came."""
        self._came_at = 0.0
        self._saying: threading.Timer | None = None
        self._leaves = False  # in `left_if_long`
        self._deferred = False  # it came where it could not be raised, and will be sent again
        self._sent_again: signal.Signals | None = None
        self._sending = threading.RLock()
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
            for number in catchable() if self._signals is None else self._signals:
                before[number] = signal.signal(number, self._raise_flag)
        return self

    def __exit__(self, *_: object) -> None:
        with self._sending:
            self._deferred = False
        signal.pthread_sigmask(
            signal.SIG_BLOCK, []
        )  # what was sent comes now, and not to the handlers of before
        if self._saying is not None:
            self._saying.cancel()
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ignore(self) -> None:
        """From now on the signals do nothing: the process ends anyway."""
        for number in self._before[-1]:
            signal.signal(number, signal.SIG_IGN)
        self._before[-1].clear()

    @contextlib.contextmanager
    def left_if_long(self) -> Iterator[None]:
        """Within it StopRequested is raised `LEAVE_AFTER_S` after the first signal, also one that came before."""
        self._leaves = True
        try:
            if self.signal is not None:
                self._send_later(self.signal, self._time_until_left)
            yield
        finally:
            self._leaves = self._deferred = False

    @property
    def _time_until_left(self) -> float:
        return self._came_at + LEAVE_AFTER_S - time.monotonic()

    def _raise_flag(self, number: int, frame: FrameType | None) -> None:
        came = signal.Signals(number)
        is_new = self._sent_again != came
        again = self.signal is not None and is_new
        self._deferred, self._sent_again = False, None
        if self.signal is None:
            self.signal, self._came_at = came, time.monotonic()
        if again and came == signal.SIGINT and self._second_interrupts:
            raise KeyboardInterrupt
        if is_new and self.say is not None and (self._saying is None or self._saying.finished.is_set()):
            self._saying = _daemon(SAY_AFTER_S, self.say, came.name)
        if self._leaves and self._time_until_left > 0:
            self._send_later(came, self._time_until_left)
        elif self._leaves or (self.at_once and not again):
            if not imports(frame):
                raise StopRequested
            self._send_later(came, RETRY_S)

    def _send_later(self, number: signal.Signals, seconds: float) -> None:
        self._deferred = True
        _daemon(max(seconds, 0.0), self._send_again, number)

    def _send_again(self, number: signal.Signals) -> None:
        ident = threading.main_thread().ident
        with self._sending:
            if self._deferred and (self.at_once or self._leaves) and ident is not None:
                self._sent_again = number
                signal.pthread_kill(ident, number)

    def check(self) -> None:
        """Raise StopRequested if a signal came where it could not be raised."""
        if self.at_once and self.signal is not None:
            self._deferred = False
            raise StopRequested


def _daemon(seconds: float, call: Callable, *arguments: object) -> threading.Timer:
    timer = threading.Timer(seconds, call, arguments)
    timer.daemon = True
    timer.start()
    return timer


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
