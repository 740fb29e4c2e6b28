"""What ranks do that may take longer than a message's deadline: they wait for each other by short messages."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from cktrain.comm.group import Group
from cktrain.consistency_check import together

BEAT_S = 0.5
"""Between two messages; comm.timeout_s is longer."""

Value = TypeVar("Value")


def together_for_long(group: Group, work: Callable[[], Value]) -> Value:
    """As `together`, however long the work of any rank takes. Collective."""
    if group.size == 1:
        return together(group, work)
    with ThreadPoolExecutor(1) as pool:
        future: Future[Value] = pool.submit(contextvars.copy_context().run, work)
        all_done = False
        while not all_done:
            mine = wait([future], BEAT_S).done
            all_done = all(group.all_gather_bytes(b"done" if mine else b""))
    return together(group, future.result)
