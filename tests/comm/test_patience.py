"""How long a rank waits: the time in which it was stopped itself does not count."""

from __future__ import annotations

from cktrain.comm import patience
from cktrain.comm.patience import Patience


def test_the_time_in_which_the_process_itself_was_stopped_does_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    waiting = Patience(5.0, stretch=False)

    def looks(seconds: float) -> bool:
        now[0] += seconds
        return waiting.look({1: (7, 7)}, lambda ranks: f"waits for {ranks}")

    assert all(looks(0.5) for _ in range(6))  # 3 s of 5
    assert looks(3600.0)  # Ctrl-Z, and an hour later fg
    assert all(looks(0.5) for _ in range(3))
    assert not looks(0.5)
