"""The values of a JSON text that comes in blocks: those of its arrays, and those that follow one another.

One value at a time is held. JSON has no sign of where a value ends but the value itself, so one that the end of a block
cuts is tried again with as much text again, which in all costs as much as twice the reading.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

LONGEST_VALUE = 1 << 28
"""Characters (or, of a line, bytes) that a value may have."""
TWICE = object()
"""Stands for the value of a key that an object has twice: which of them is meant nobody knows."""

_NUMBER_CUT = re.compile(r"[-+.0-9eE]*\Z")
_SPACE = re.compile(r"[ \t\r\n]*")


class NotJson(ValueError):
    """Where and why a text is no JSON; `line` counts from 1."""

    def __init__(self, line: int, why: object):
        super().__init__(f"{why}")
        self.line = line


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its keys and values, for json's `object_pairs_hook`."""
    made = dict(pairs)
    if len(made) < len(pairs):
        made |= {key: TWICE for key, times in Counter(key for key, _ in pairs).items() if times > 1}
    return made


class JsonValues:
    """An iterator of (line on which it begins, value). Raises NotJson."""

    def __init__(self, blocks: Iterator[str]):
        self._blocks = blocks
        self._decoder = json.JSONDecoder(object_pairs_hook=object_of)
        self._text = ""
        self._at = 0
        self._line = 1
        self._has_lone_values = False  # such as stand in no array

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while following := self._next_sign():
            if following == "," and self._has_lone_values:
                raise NotJson(
                    self._line,
                    "a comma after a value outside of an array. Leave such commas out: sed 's/,$//' FILE",
                )
            if following != "[":
                yield self._value()
                self._has_lone_values = True
                continue
            self._at += 1
            if self._next_sign() == "]":
                self._at += 1
                continue
            while True:
                self._next_sign()
                yield self._value()
                following = self._next_sign()
                if following not in (",", "]") or following == "":
                    raise NotJson(self._line, f"an array goes on with {following or 'the end of the file'!r}")
                self._at += 1
                if following == "]":
                    break

    def _next_sign(self) -> str:
        """The next character that is no space, which stays the next; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None  # it matches no space, too
            self._go_to(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            self._text, self._at = next(self._blocks, ""), 0
            if not self._text:
                return ""

    def _value(self) -> tuple[int, Any]:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise NotJson(self._line, "nested too deeply") from error
            except ValueError as error:
                if self._read_more():
                    continue
                raise NotJson(self._line, error) from error
            # A number may go on in the next block (1.5 is cut to 1.); what ends in its own sign does not.
            if self._text[end - 1] not in '}]"' and _NUMBER_CUT.match(self._text, end) and self._read_more():
                continue
            line = self._line
            self._go_to(end)
            return line, value

    def _read_more(self) -> bool:
        """Read as much again as there is; False at the end."""
        pieces = [self._text[self._at :]]
        size = wanted = len(pieces[0])
        if size > LONGEST_VALUE:
            raise NotJson(
                self._line, f"a value of more than {LONGEST_VALUE:,} characters, or one without end"
            )
        while size < 2 * wanted and (block := next(self._blocks, "")):
            pieces.append(block)
            size += len(block)
        self._text, self._at = "".join(pieces), 0
        return len(pieces) > 1

    def _go_to(self, place: int) -> None:
        self._line += self._text.count("\n", self._at, place)
        self._at = place
