"""Strings at which a text ends, found in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets a text through up to the first stop string; how the text is cut into pieces changes nothing.

    The first is the one whose end comes first, of several with one end the longest. A text's end that may be the beginning
    of one is held back until the next characters tell.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty string, at which every text would end."""
        if isinstance(stops, str) or not all(stops):
            raise ValueError(f"[generate] stop strings {stops!r}: give a list of strings that are not empty.")
        self._stops = sorted(stops, key=len, reverse=True)
        self._held = ""
        self.found: str | None = None
        """The stop string at which the text ended."""

    def push(self, piece: str) -> str:
        """What of the text is certain now; nothing after a stop string."""
        if self.found is not None:
            return ""
        for count in range(1, len(piece) + 1):
            text = self._held + piece[:count]
            self.found = next((stop for stop in self._stops if text.endswith(stop)), None)
            if self.found is not None:
                self._held = ""
                return text[: len(text) - len(self.found)]
        text = self._held + piece
        self._held = text[len(text) - self._beginning(text) :]
        return text[: len(text) - len(self._held)]

    def finish(self) -> str:
        """What was held back, when no piece follows."""
        rest, self._held = self._held, ""
        return rest

    def _beginning(self, text: str) -> int:
        """The length of the longest end of the text with which a stop string begins."""
        longest = min(len(text), len(self._stops[0]) - 1) if self._stops else 0
        for size in range(longest, 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
