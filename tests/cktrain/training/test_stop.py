"""The flag: which signals raise it, what nohup changes, and where the first signal ends a run at once."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time

import pytest

from cktrain.training import stop
from cktrain.training.stop import SIGNALS, StopFlag, StopRequested, catchable

pytestmark = pytest.mark.usefixtures("hangup")


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_raises_the_flag_and_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopFlag() as flag:
        os.kill(os.getpid(), number)
        assert flag and flag.reason == number.name
    assert signal.getsignal(number) == before


def test_the_first_signal_counts_and_a_second_interrupt_is_at_once():
    with StopFlag() as flag:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert flag.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_stays_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signal.SIGHUP not in catchable()
    with StopFlag() as flag, flag:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not flag
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_before_the_first_step_it_raises_once():
    with StopFlag(at_once=True) as flag:
        with pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested):
            flag.check()


def test_an_import_is_not_interrupted(tmp_path, monkeypatch):
    """A compiled module does not bear it; what comes in an import is raised by the next check."""
    (tmp_path / "signals_itself.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nend = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with StopFlag(at_once=True) as flag:
        assert importlib.import_module("signals_itself").end == 1
        with pytest.raises(StopRequested):
            flag.check()


def test_what_came_in_an_import_ends_the_wait_after_it(tmp_path, monkeypatch):
    (tmp_path / "signals_too.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with StopFlag(at_once=True):
        importlib.import_module("signals_too")
        with pytest.raises(StopRequested):
            time.sleep(30)


def test_what_takes_too_long_after_a_signal_is_left(monkeypatch):
    """Also after one that came before it began; never without one, and a second interrupt is at once."""
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 0.05)
    with StopFlag() as flag:
        with flag.left_if_long():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested), flag.left_if_long():
            time.sleep(30)
        with pytest.raises(StopRequested), flag.left_if_long():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        time.sleep(0.1)  # nothing more is raised outside
    monkeypatch.setattr(stop, "LEAVE_AFTER_S", 30)
    with StopFlag() as flag, pytest.raises(KeyboardInterrupt), flag.left_if_long():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)


def test_what_is_waited_for_is_said_once_for_signals_together(monkeypatch):
    monkeypatch.setattr(stop, "SAY_AFTER_S", 0.05)
    said = []
    with StopFlag() as flag:
        flag.say = said.append
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        assert said == ["SIGTERM"]
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        assert said == ["SIGTERM", "SIGTERM"]
        os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.1)
    assert len(said) == 2, "an end that came in time needs no word"


def test_of_a_command_that_has_nothing_to_save_a_second_interrupt_waits():
    with StopFlag(at_once=True, second_interrupts=False, signals=[signal.SIGINT]):
        with pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_has_the_clock_alone():
    told = []

    def run():
        with StopFlag(stop_at=0.0) as flag:
            told.append((bool(flag), flag.reason))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert told == [(True, "the end of the job's time")]
