"""The handle of an operation in flight.

A `Work` keeps its arrays alive until the operation is complete, so a caller may drop its own references. It
is used by one thread at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod


class Work(ABC):
    """An operation that was started; its arrays belong to it until it is complete."""

    def begin(self) -> None:  # noqa: B027  (most kinds of Work have begun when they are made)
        """The group's: go on without the caller, who asked for async_=True."""

    @abstractmethod
    def done(self) -> bool:
        """True when complete. Never blocks, but moves pending operations on. Raises the operation's error."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> None:
        """Block until complete, at most `timeout` seconds (None: the group's deadline).

        Raises:
            CollectiveTimeoutError: the time is over. With an own `timeout` the operation stays in flight and
                may be waited for again; past the group's deadline the group is broken.
            CommError: the operation failed.
        """


class CompletedWork(Work):
    """The handle of an operation that was complete at once."""

    def done(self) -> bool:
        """Return True."""
        return True

    def wait(self, timeout: float | None = None) -> None:
        """Return at once."""
