"""Standard input and output of commands whose work is the text that they write."""

from __future__ import annotations

import contextlib
import importlib
import io
import locale
import os
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


def read_line(prompt: str) -> str | None:
    """The next line of standard input without its end, None at its end. ValueError for one that is not UTF-8.

    At a terminal it is asked for by `prompt`, and can be edited.
    """
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.readline()
        return _text(data).rstrip("\r\n") if data else None
    _read_utf8()
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # editing and history of `input`
    shown = prompt
    if not sys.stdout.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
        shown = ""
    try:
        line = input(shown)
    except EOFError:
        return None
    return _text(line.encode("utf-8", "surrogateescape"))


def _read_utf8() -> None:
    """Let the terminal's bytes come as they are: in the locale C readline takes half a character for a key of editing."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if locale.nl_langinfo(locale.CODESET).upper() != "UTF-8":
        os.environ["LC_ALL"] = "C.UTF-8"  # which readline reads, each time that it is called


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"[terminal] the line is not UTF-8 text at byte {error.start}. Write it again."
        ) from None
