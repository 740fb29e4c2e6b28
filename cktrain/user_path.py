"""A path as a user gives it, in a configuration or on a command line: `~` is expanded, and here alone.

Variables are not: a shell does that, and in a file `$HOME/runs` would become a folder of that very name.
"""

from __future__ import annotations

import os

LONGEST_BYTES = 4095
LONGEST_NAME_BYTES = 255


def user_path(text: str) -> str:
    """The path with `~` or `~user` expanded; otherwise as it was given.

    Raises ValueError for a path that no file can have, that begins with `$`, or whose home folder is not known.
    """
    if not text.strip():
        raise ValueError("the path is empty. Give one, for instance . for this folder")
    if "\0" in text:
        raise ValueError(f"the path {text!r} has a NUL byte in it. Give one without")
    if text.startswith("$"):
        raise ValueError(
            f"the path {text!r} begins with $, and variables are not expanded here. Write it out, or ./{text} "
            "for a folder of that name"
        )
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"the path {text!r} begins with {text.partition('/')[0]}, whose home folder is not known. "
            f"Write it out, or ./{text} for a folder of that name"
        )
    try:
        data = os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError(f"the path {text!r} has a character that no file name can hold. Rename it") from None
    longest = max(map(len, data.split(b"/")))
    if len(data) > LONGEST_BYTES or longest > LONGEST_NAME_BYTES:
        raise ValueError(
            f"the path {text[:40]!r}… has {len(data):,} bytes, {longest:,} of them in one name; the system takes "
            f"{LONGEST_BYTES:,} and {LONGEST_NAME_BYTES}. Shorten it"
        )
    return path
