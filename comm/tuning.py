"""Tables of algorithms that `cktrain bench collectives --tune` measured: a file, and what groups take from it.

The file is JSON. An entry holds for groups over one transport, of so many ranks on so many nodes:

    {"version": 1, "entries": [{"transport": "tcp", "nodes": 2, "ranks": 4,
                                "table": {"all_reduce": [[8192, "doubling"], [null, "direct"]], ...}}]}

A pair is (up to so many bytes of the whole array, algorithm); null is no limit. Rank 0 reads the file, the others get
its text when the ranks meet, and compare its hash once they have a group: all ranks choose alike. A group without an
entry of its own takes that of the nearest number of ranks on as many nodes, else the defaults (`cktrain.comm.algorithms`).

Algorithms that add in an order of their own change the last bits of results. A table has them only where the user let
`--tune` choose among them (`--any-order`); it then has canonical ones too, for sums of bf16 and for means.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cktrain.comm.algorithms import DEFAULT, KNOWN, OWN_ORDER, Table

VERSION = 1
MAX_BYTES = 256 << 10
CANONICAL = "all_reduce_canonical"
"""The all-reduce's entry for what must be added in the canonical order."""


@dataclass(frozen=True)
class Tables:
    """What a file holds; hashable by its text, which is the same on all ranks."""

    text: str = ""

    def __post_init__(self) -> None:
        self._entries()  # an error is the reader's, not that of the first group

    def digest(self) -> bytes:
        """Of the text, for comparing."""
        return hashlib.sha256(self.text.encode()).digest()

    def pick(self, transport: str, nodes: int, ranks: int) -> Table:
        """The table of a group."""
        fitting = [e for e in self._entries() if (e["transport"], e["nodes"]) == (transport, nodes)]
        if not fitting:
            return DEFAULT
        best = min(fitting, key=lambda e: (abs(math.log(e["ranks"] / ranks)), e["ranks"]))
        return {**DEFAULT, **_as_table(best["table"])}

    def with_entry(self, transport: str, nodes: int, ranks: int, table: Table) -> Tables:
        """The same with this entry, in place of an older one."""
        entry = {"transport": transport, "nodes": nodes, "ranks": ranks, "table": _as_json(table)}
        key = (transport, nodes, ranks)
        others = [e for e in self._entries() if (e["transport"], e["nodes"], e["ranks"]) != key]
        entries = sorted([*others, entry], key=lambda e: (e["transport"], e["nodes"], e["ranks"]))
        lines = ",\n ".join(json.dumps(e) for e in entries)
        return Tables(f'{{"version": {VERSION}, "entries": [\n {lines}\n]}}\n')

    def _entries(self) -> list[dict[str, Any]]:
        if not self.text:
            return []
        try:
            found = json.loads(self.text)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']}, this cktrain reads {VERSION}")
            for e in found["entries"]:
                counts = [e["nodes"], e["ranks"]]
                whole = all(isinstance(n, int) and not isinstance(n, bool) for n in counts)
                if not (
                    isinstance(e["transport"], str)
                    and whole
                    and 1 <= counts[0] < 2**31
                    and 2 <= counts[1] < 2**31
                ):
                    raise ValueError(f"entry {str(e)[:200]}")
                _check(_as_table(e["table"]))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"[comm] the table of algorithms cannot be used: {what}. Remove it and write it anew: "
                "cktrain bench collectives --tune --table FILE."
            ) from error
        return list(found["entries"])


def read_tables(path: str | os.PathLike[str]) -> Tables:
    """The tables in a file. Raises ValueError for one that is missing or makes no sense."""
    write_it = f"Write it with: cktrain bench collectives --tune --table {shlex.quote(os.fspath(path))}"
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL byte in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
        raise ValueError(f"[comm] comm.table: {path}: {reason}. {write_it}, or leave the key out.") from error
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"[comm] comm.table: {path} has more than the {MAX_BYTES:,} bytes that are read. {write_it}."
        )
    try:
        return Tables(text)
    except ValueError as error:
        raise ValueError(f"[comm] comm.table: {path}: {str(error).removeprefix('[comm] ')}") from error


def crossovers(
    sizes: Sequence[int], seconds: Mapping[str, Sequence[float]], margin: float = 0.03
) -> list[tuple[float, str]]:
    """The fastest algorithm up to each border, from the time of each one at ascending sizes.

    A change that gains less than `margin` is noise, and is not made.
    """
    chosen: list[str] = []
    for i in range(len(sizes)):
        best = min(seconds, key=lambda name: seconds[name][i])
        if chosen and seconds[chosen[-1]][i] <= (1 + margin) * seconds[best][i]:
            best = chosen[-1]
        chosen.append(best)
    borders: list[tuple[float, str]] = []
    for i, name in enumerate(chosen):
        if i + 1 == len(chosen):
            borders.append((math.inf, name))
        elif chosen[i + 1] != name:
            borders.append((sizes[i], name))
    return borders


def _as_table(given: Any) -> Table:
    return {
        kind: [(math.inf if limit is None else limit, name) for limit, name in pairs]
        for kind, pairs in given.items()
    }


def _as_json(table: Table) -> dict[str, list[list[Any]]]:
    return {
        kind: [[None if limit == math.inf else int(limit), name] for limit, name in pairs]
        for kind, pairs in table.items()
    }


def _check(table: Table) -> None:
    for kind, pairs in table.items():
        known = (
            [n for n in KNOWN["all_reduce"] if n not in OWN_ORDER] if kind == CANONICAL else KNOWN.get(kind)
        )
        if known is None:
            raise ValueError(f"{kind!r} is no operation that has algorithms")
        limits = [limit for limit, _ in pairs]
        if not limits or limits[-1] != math.inf or limits != sorted(limits):
            raise ValueError(f"{kind}: limits {limits} must ascend, the last be null")
        if unknown := [name for _, name in pairs if name not in known]:
            raise ValueError(f"{kind}: {unknown[0]!r} is not one of {', '.join(known)}")
    if any(name in OWN_ORDER for _, name in table.get("all_reduce", ())) and CANONICAL not in table:
        raise ValueError(f"all_reduce adds in an order of its own: {CANONICAL} is missing")
