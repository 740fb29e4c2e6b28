"""The formats of quantized weights: how many values a block holds, and in how many bytes.

A weight (O, I) is O rows of I/values blocks, (O, W) uint8 with W = I/values · bytes. Layouts are ggml's (ggml-common.h); NF4
(Dettmers et al. 2023), of which ggml knows nothing, has a layout of its own: the largest magnitude of 64 values in fp32,
then for each half of them 16 bytes, of which the low nibbles are the first 16 values' codes and the high ones the others'.
bf16 and f16 are numbers as a file stores them, read 32 at a time.
"""

from __future__ import annotations

from typing import NamedTuple


class BlockFormat(NamedTuple):
    """A row of the table."""

    name: str
    number: int
    """In csrc/quantized_blocks.h."""
    values: int
    """Of a block."""
    bytes: int
    """Of a block."""

    @property
    def bits(self) -> float:
        """Of a value."""
        return 8 * self.bytes / self.values

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` values, a multiple of a block's."""
        assert width % self.values == 0, (self.name, width)
        return width // self.values * self.bytes


_ROWS = (
    ("q8_0", 32, 34),
    ("q4_0", 32, 18),
    ("q4_1", 32, 20),
    ("q5_0", 32, 22),
    ("q4_k", 256, 144),
    ("q6_k", 256, 210),
    ("mxfp4", 32, 17),
    ("nf4", 64, 36),
    ("bf16", 32, 64),
    ("f16", 32, 64),
)
BLOCK_FORMATS = {row[0]: BlockFormat(row[0], number, *row[1:]) for number, row in enumerate(_ROWS, 1)}
"""Every format by its name."""

NOT_INTEGERS = ("nf4", "bf16", "f16")
"""Formats whose numbers are no small integers, which alone are multiplied by rounded activations."""


def block_format(op: str, name: str, width: int) -> BlockFormat:
    """The format of that name, for rows of `width` values. Raises ValueError for an op's `format` that does not fit."""
    found = BLOCK_FORMATS.get(name)
    if found is None:
        raise ValueError(f"[kernels.{op}] format {name!r} is unknown. Use one of {', '.join(BLOCK_FORMATS)}.")
    if width % found.values:
        raise ValueError(
            f"[kernels.{op}] rows of {width} values are no whole number of {name}'s blocks of {found.values}. Use another "
            "format."
        )
    return found
