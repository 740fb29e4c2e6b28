"""A text that a model writes, piece by piece, and why it ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from cktrain.generation.stop_strings import StopStrings
from cktrain.text_stream import TextStream

Finish = Literal["end", "stop", "length", "positions"]
"""The model ended it; a stop string came; `max_tokens` were made; the model has no more positions."""


class TextGeneration:
    """Iterates over pieces of text, one per token (empty within a character), and at the end what is left."""

    def __init__(
        self, tokens: Iterator[int], most: int, max_tokens: int, text: TextStream, stops: Sequence[str] = ()
    ) -> None:
        """`tokens` gives `most` at most, which is less than `max_tokens` where positions end."""
        self._tokens = tokens
        self._most = most
        self._max_tokens = max_tokens
        self._text = text
        self._stops = StopStrings(stops)
        self.count = 0
        """Tokens until now."""
        self.finish: Finish | None = None
        """Why it ended; None before its end."""

    def __iter__(self) -> Iterator[str]:
        for token in self._tokens:
            self.count += 1
            yield self._stops.push(self._text.push(token))
            if self._stops.found is not None:
                self.finish = "stop"
                return
        rest = self._stops.push(self._text.finish())
        if self._stops.found is not None:
            self.finish = "stop"
        elif self.count < self._most:
            self.finish = "end"
        else:
            self.finish = "length" if self._most == self._max_tokens else "positions"
        yield rest + self._stops.finish()
