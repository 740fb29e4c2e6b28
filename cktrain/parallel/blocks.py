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

    def meet(self, other: Block) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """(index in this block, index in the other) of the elements that both have; None: they have none."""
        rows = _meet(self.row, self.rows, other.row, other.rows)
        if self.columns is None or other.columns is None:
            return None if rows is None else ((rows[0],), (rows[1],))
        columns = _meet(self.column, self.columns, other.column, other.columns)
        if rows is None or columns is None:
            return None
        return (rows[0], columns[0]), (rows[1], columns[1])

    def label(self, name: str) -> str:
        """The name of a block in a file: NAME[0:8] or NAME[0:8,16:32]."""
        rows = f"{self.row}:{self.row + self.rows}"
        if self.columns is None:
            return f"{name}[{rows}]"
        return f"{name}[{rows},{self.column}:{self.column + self.columns}]"


def read_label(label: str, shape: tuple[int, ...]) -> tuple[str, Block]:
    """The name and the block that a label names, for a tensor of this shape. Raises ValueError for another text."""
    match = _LABEL.fullmatch(label)
    if match is None or len(shape) != (1 if match[3] is None else 2):
        raise ValueError(f"{label!r} {shape} does not name a block.")
    columns = None if match[3] is None else shape[1]
    return match[1], Block(int(match[2]), shape[0], int(match[3] or 0), columns)


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


def _meet(start: int, count: int, other: int, other_count: int) -> tuple[slice, slice] | None:
    """What [start, start + count) and [other, other + other_count) share, counted from each one's start."""
    low, high = max(start, other), min(start + count, other + other_count)
    return (slice(low - start, high - start), slice(low - other, high - other)) if low < high else None


def _at_rows(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut into a part of a row, whole rows and a part of a row."""
    first, last = -(-start // width) * width, stop // width * width
    if first > last:  # all in one row
        yield start, stop
        return
    for low, high in ((start, first), (first, last), (last, stop)):
        if low < high:
            yield low, high
