"""Blocks: rectangles of whole parameters, the unit in which ranks save what they hold.

An optimizer's piece is a run of flat elements, and may begin and end inside a row. Cut at the rows it is at most three
rectangles, and each of them stands somewhere in the whole parameter, whatever the layout that it was cut from:

    flat elements [5, 19) of (4, 6)      . . . . . a
                                         b b b b b b      [0:1, 5:6]  [1:3, 0:6]  [3:4, 0:1]
                                         b b b b b b
                                         c . . . . .
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cktrain.memory.param import Param

_LABEL = re.compile(r"(.+)\[(\d+):\d+(?:,(\d+):\d+)?\]")


@dataclass(frozen=True)
class Block:
    """Rows [row, row + rows) and columns [column, column + columns) of a whole parameter; a vector has no columns."""

    row: int
    rows: int
    column: int = 0
    columns: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its rows and columns."""
        return (self.rows,) if self.columns is None else (self.rows, self.columns)

    def label(self, name: str) -> str:
        """The name of a block in a file: NAME[0:8] or NAME[0:8,16:32]."""
        rows = f"{self.row}:{self.row + self.rows}"
        if self.columns is None:
            return f"{name}[{rows}]"
        return f"{name}[{rows},{self.column}:{self.column + self.columns}]"


def read_label(label: str) -> tuple[str, int, int]:
    """(name, row, column) of a block's label. Raises ValueError for another text."""
    match = _LABEL.fullmatch(label)
    if match is None:
        raise ValueError(f"{label!r} does not name a block.")
    return match[1], int(match[2]), int(match[3] or 0)


def blocks_of(param: Param, start: int, stop: int) -> Iterator[tuple[Block, slice]]:
    """The blocks of a param's elements [start, stop), and where in that run each stands. Padding is left out."""
    width = 1 if len(param.shape) == 1 else param.shape[1]
    for low, high in _at_rows(start, stop, width):
        for region in param.regions:
            first = max(low, region.row * width)
            last = min(high, (region.row + region.rows) * width)
            if first >= last:
                continue
            row = first // width - region.row + region.global_row
            run = slice(first - start, last - start)
            if len(param.shape) == 1:
                yield Block(row, last - first), run
            elif first % width or last % width:  # a part of one row
                yield Block(row, 1, region.column + first % width, last - first), run
            else:
                yield Block(row, (last - first) // width, region.column, width), run


def _at_rows(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut into a part of a row, whole rows and a part of a row."""
    first, last = -(-start // width) * width, stop // width * width
    if first > last:  # all in one row
        yield start, stop
        return
    for low, high in ((start, first), (first, last), (last, stop)):
        if low < high:
            yield low, high
