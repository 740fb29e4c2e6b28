"""Types of command-line arguments: paths and numbers that no command has to check again.

argparse prints what is wrong with the option's name, and ends with status 2.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
from collections.abc import Callable

from cktrain.held_out_files import files_of_their_own
from cktrain.user_path import user_path

MOST_CPUS = 8192
YEAR_S = 31_622_400.0


def path(text: str) -> str:
    """A path with `~` expanded, as everywhere (`cktrain.user_path`)."""
    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def words(text: str) -> str:
    """A command and its options, which a shell could take apart; not empty."""
    try:
        if shlex.split(text):
            return text
        problem = "it is empty"
    except ValueError as error:
        problem = str(error)
    raise argparse.ArgumentTypeError(f"{text!r} is no command: {problem}")


def whole(least: int, most: int = 2**53) -> Callable[[str], int]:
    """Integers from `least` to `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"\s*[+-]?[0-9][0-9_]{0,30}\s*", text):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no integer")
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value:,} is not in {least:,} to {most:,}")
        return value

    return read


def number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    """Finite numbers from `least` to `most`; with `above` not `least` itself."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is no number") from None
        if not math.isfinite(value) or not least <= value <= most or (above and value == least):
            border = f"above {least:g}, up to {most:g}" if above else f"in {least:g} to {most:g}"
            raise argparse.ArgumentTypeError(f"{value:g} is not {border}")
        return value

    return read


def held_out(text: str) -> float:
    """The share of the rows that is held out; a file of others is prepared by itself."""
    if os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no share of the rows. {files_of_their_own(text)}")
    return number(0.0, 0.5)(text)


seconds = number(0.0, YEAR_S, above=True)
"""A deadline of up to a year."""
threads = whole(1, MOST_CPUS)
ranks = whole(1, 1 << 20)
