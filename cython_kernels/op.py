"""What a row of the table of ops (ops.py) says: the arguments of a call and, from their shapes, its cost.

A shape is written in the letters of docs/kernels.md: "N,2I" is N rows of twice I elements, "D/2" half of D,
"N,C | N,H,D" one of two by the number of dimensions, "..." any. Binding a call's arrays to their shapes gives each
letter its size; FLOPs are a product of sizes ("2 N I O"), bytes follow from how each array is accessed.

Types: "real" is fp32 or bf16, one for all arguments of a call; "f32" fp32 (both are fp64 in the reference run in fp64);
"real or f32"; "i32"; "u8"; "bf16"; "float" for any of fp32 and bf16, whatever the other arguments are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple

REQUIRED: Any = object()
"""The default of an argument that has none."""

Access = Literal["read", "write", "update", "accumulate"]
TERM = re.compile(r"(\d*)([A-Za-z]+)(?:/(\d+))?")


@dataclass(frozen=True)
class Array:
    """An array argument. "update" reads and writes it; "accumulate" writes it, or adds to it by the op's `accumulate`."""

    name: str
    access: Access
    shape: str
    dtype: str = "real"
    packed: bool = False
    """Whether all of it must be contiguous; otherwise only its last dimension."""
    moved: str = ""
    """The shape of the elements that a call moves, where it is not all of them: rows picked from a table."""
    transposed_by: str = ""
    """The flag with which the two dimensions stand in the other order."""
    default: Any = REQUIRED
    optional: bool = False
    """Whether None may be passed."""


@dataclass(frozen=True)
class Number:
    """A number or a flag."""

    name: str
    type: type
    default: Any = REQUIRED


class Cost(NamedTuple):
    """Floating-point operations of one call, and the bytes that it moves."""

    flops: int
    bytes: int


@dataclass(frozen=True)
class Op:
    """One op: `theme` names its files (the door theme.pyx, reference/theme.py, the C in csrc/ops_theme.h)."""

    name: str
    theme: str
    meaning: str
    arguments: tuple[Array | Number, ...]
    flops: str = ""
    """Factors of the floating-point operations; counted for matrix products and attention alone."""
    kernels: tuple[str, ...] = ()
    """The names in the C list (csrc/kernels.h) that the door calls; none: the op's own."""
    returns: type | None = None

    @property
    def in_c(self) -> tuple[str, ...]:
        """The names in the C list that the door calls."""
        return self.kernels or (self.name,)

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arguments that are arrays."""
        return tuple(argument for argument in self.arguments if isinstance(argument, Array))

    def sizes(self, arguments: Mapping[str, Any]) -> dict[str, int]:
        """Each letter's size, and the integers and flags among the arguments, of a call with `arguments` by name."""
        found: dict[str, int] = {}
        for argument in self.arguments:
            value = arguments.get(argument.name)
            if value is None:
                continue
            if isinstance(argument, Number):
                if argument.type in (int, bool):
                    found[argument.name] = value
                continue
            shape = value.shape
            if argument.transposed_by and arguments.get(argument.transposed_by):
                shape = shape[::-1]
            terms = dimensions(argument.shape, len(shape))
            for (factor, letter, divisor), extent in zip(terms, shape, strict=False):
                found.setdefault(letter, extent * divisor // factor)
        return found

    def cost(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Cost:
        """Of the call op(*args, **kwargs). An array that is read and written counts twice."""
        given = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        sizes = self.sizes(given)
        adds = given.get("accumulate", self._accumulates)
        moved = 0
        for array in self.arrays:
            value = given.get(array.name)
            if value is not None:
                count = value.size if not array.moved else _elements(array.moved, sizes)
                twice = array.access == "update" or (array.access == "accumulate" and adds)
                moved += count * value.itemsize * (2 if twice else 1)
        return Cost(self.flops_of(sizes), moved)

    def flops_of(self, sizes: Mapping[str, int]) -> int:
        """Floating-point operations of a call with these sizes: letters, and integer arguments such as `window`."""
        if not self.flops:
            return 0
        return math.prod(
            int(factor) if factor.isdigit() else _size(factor, sizes) for factor in self.flops.split()
        )

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments)

    @cached_property
    def _accumulates(self) -> bool:
        return any(a.name == "accumulate" and a.default is True for a in self.arguments)


def visible_pairs(queries: int, keys: int, window: int = 0, causal: bool = True) -> int:
    """The (query, key) pairs that attention computes; by convention half of T² for whole causal sequences."""
    if not causal:
        if not window:
            return queries * keys
        at = range(keys - queries, keys)
        return sum(max(0, min(keys, here + window) - max(0, here - window + 1)) for here in at)
    if not window and queries == keys:
        return queries * keys // 2
    first = keys - queries + 1
    if not window or window >= keys:
        return queries * (first + keys) // 2
    narrow = max(0, min(window, keys) - first)  # queries that see fewer keys than the window
    return narrow * (2 * first + narrow - 1) // 2 + (queries - narrow) * window


DERIVED: dict[str, Callable[[Mapping[str, int]], int]] = {
    "pairs": lambda sizes: visible_pairs(
        sizes["S"], sizes["T"], sizes.get("window", 0), bool(sizes.get("causal", True))
    )
}
"""Factors of FLOPs that are no letter: `pairs` of visible queries and keys."""


def _size(name: str, sizes: Mapping[str, int]) -> int:
    return DERIVED[name](sizes) if name in DERIVED else sizes[name]


def _elements(shape: str, sizes: Mapping[str, int]) -> int:
    return math.prod(factor * sizes[letter] // divisor for factor, letter, divisor in dimensions(shape))


@cache
def dimensions(shape: str, dims: int | None = None) -> tuple[tuple[int, str, int], ...]:
    """(factor, letter, divisor) of each dimension, of the alternative that has `dims` of them; none for "..."."""
    if shape == "...":
        return ()
    alternatives = [alternative.strip().split(",") for alternative in shape.split("|")]
    terms = next(a for a in alternatives if dims in (None, len(a)))
    matches = [TERM.fullmatch(term) for term in terms]
    assert all(matches), shape
    return tuple((int(m[1] or 1), m[2], int(m[3] or 1)) for m in matches if m)
