"""What the launcher and its agents say to each other: one JSON object per line, behind a mark.

The mark tells a message from whatever a login shell prints before the agent starts. Times are not sent: hosts' clocks
differ.

| from | fields | meaning |
|---|---|---|
| agent | hello: facts of the host | it is there (`agent.facts`) |
| launcher | start: what to run | see `agent.Start` |
| agent | rank, text, error | a piece of a rank's output, on stderr when `error` |
| agent | rank, status | a rank ended; below 0: by that signal |
| agent | problem | the ranks could not be started |
| launcher | signal | to be sent to all ranks |
| launcher | stop, or the end of the stream | kill all ranks and everything that they started |
"""

from __future__ import annotations

import json
from typing import Any

MARK = b"@cktrain "
PROTOCOL = 1


def encode(message: dict[str, Any]) -> bytes:
    """The line of a message."""
    return MARK + json.dumps(message).encode() + b"\n"


class Lines:
    """Partition a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are now complete, without their ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def flush(self) -> list[bytes]:
        """What is left at the end of the stream."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


def decode(line: bytes) -> dict[str, Any] | None:
    """The message of a line; None for a line that is none."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line[len(MARK) :])
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None
