"""Standard output of commands whose work is the text that they write."""

from __future__ import annotations

import sys


def needed_output(command: str) -> None:
    """Raises ValueError where standard output was closed by whoever started the command."""
    if sys.stdout is None:
        raise ValueError(
            f"[{command}] standard output is closed, and what is written there would be lost. Open it: > FILE."
        )


def write(text: str) -> None:
    """UTF-8 whatever the terminal's locale says, at once. Raises OSError, BrokenPipeError among them."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
