"""JSON and text that someone else wrote: read with bounds, checked against a shape, refused by name.

Every file that a user, another program or an older version may have written passes here: what cannot be read, is no
text, is no JSON or has another shape becomes one ValueError that names the file, the key, what was found and one thing
to do. Nothing else is raised, however the file looks:

    values = read_json(path, dict[str, int], area="checkpoint", remedy="Resume from another checkpoint.")

A shape is any type that pydantic checks: a model, a dataclass, a TypedDict, `dict[str, Any]`. It is checked strictly:
4096.0, "4096" and true are no integers. Keys that a model or a TypedDict does not name are let through unread.
YAML is read by `cktrain.yaml_text` on top of `read_text`.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import select
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

LIMIT_BYTES = 256 << 20
"""Of a file; the largest tokenizer.json has some tens of MB."""
PIPE_PATIENCE_S = 10.0
"""How long a pipe that is given as a file may say nothing."""
_PIECE_BYTES = 1 << 16

# How files begin, in lower case, that are taken for text by mistake, and what they are.
_OTHER_KINDS = (
    (
        b"version https://git-lfs.github.com",
        "a pointer of Git LFS, not the file itself (git lfs pull fetches it)",
    ),
    (b"\xff\xfe", "UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text; save it as UTF-8"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it"),
    (b"pk\x03\x04", "a zip archive; unpack it"),
    (b"<!doctype html", "a web page; fetch the file itself"),
    (b"<html", "a web page; fetch the file itself"),
)

Shape = TypeVar("Shape")


def read_json(
    path: str | os.PathLike[str],
    shape: type[Shape],
    *,
    area: str,
    remedy: str,
    limit_bytes: int = LIMIT_BYTES,
) -> Shape:
    """The file's JSON as `shape`.

    Raises ValueError: `[area] PATH: key: what was found. remedy`.
    """
    text = read_text(path, area=area, remedy=remedy, limit_bytes=limit_bytes)
    return parse_json(text, shape, name=os.fspath(path), area=area, remedy=remedy)


def parse_json(text: str | bytes, shape: type[Shape], *, name: str, area: str, remedy: str) -> Shape:
    """The same for JSON that stands in a larger file: a header, a line. `name` says which.

    Stricter than Python's own reader: no NaN and Infinity, no number beyond a double, no key twice in one object.
    """
    try:
        values = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
        )
    except RecursionError:
        raise _problem(area, name, "it is nested too deeply to be read", remedy) from None
    except (ValueError, MemoryError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        what = "it is empty" if not text.strip() else f"not valid JSON ({error})"
        raise _problem(area, name, what, remedy) from None
    return checked(values, shape, name=name, area=area, remedy=remedy)


def checked(values: Any, shape: type[Shape], *, name: str, area: str, remedy: str) -> Shape:
    """Values that were read elsewhere, as `shape`. Raises ValueError as `read_json` does."""
    try:
        return _adapter(shape).validate_python(values, strict=True)
    except ValidationError as error:
        problems = error.errors()
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        key = ".".join(str(part) for part in problems[0]["loc"])
        where = f"{key[:200]}: " if key else ""
        what = f"{where}{spell(problems[0])}{more}"
        raise _problem(area, name, what, remedy) from None


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
"""pydantic's readers of the shapes, which take a fifth of a millisecond to make."""


def _adapter(shape: type[Shape]) -> TypeAdapter[Shape]:
    if shape not in _ADAPTERS:
        _ADAPTERS[shape] = TypeAdapter(shape)
    return _ADAPTERS[shape]


def read_text(path: str | os.PathLike[str], *, area: str, remedy: str, limit_bytes: int = LIMIT_BYTES) -> str:
    """The file's text, UTF-8 with or without a byte order mark, of up to `limit_bytes`.

    Raises ValueError, naming file and reason, for what cannot be opened or read, is longer, or is no text. A pipe
    into which nobody writes is not waited for beyond PIPE_PATIENCE_S.
    """
    name = os.fspath(path)
    try:
        data = _read(name, limit_bytes)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path, or one that has no encoding
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise _problem(area, name, f"it cannot be read: {reason}", remedy) from None
    if len(data) > limit_bytes:
        raise _problem(area, name, f"it has more than the {limit_bytes:,} bytes that are read", remedy)
    if (kind := taken_for_another(data[:64])) is not None:
        raise _problem(area, name, f"it is {kind}", remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "a binary file" if b"\0" in data[:4096] else "not UTF-8 text"
        raise _problem(area, name, f"it is {kind} (byte {error.start:,})", remedy) from None
    if "\0" in text:
        raise _problem(area, name, f"it is a binary file (a NUL at character {text.index(chr(0)):,})", remedy)
    return text


def spell(problem: Any) -> str:
    """One of pydantic's errors in words: what should stand there, and what does."""
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "missing", "extra_forbidden"):
        return message if problem["type"] == "value_error" else message[0].lower() + message[1:]
    return f"{message[0].lower() + message[1:]}, found {shorten(problem['input'])}"


def shorten(value: Any) -> str:
    """A value as Python writes it, but never long, to be shown in an error."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    text = short.repr(value)
    return text[:200]


def taken_for_another(start: bytes) -> str | None:
    """What a file is that begins like this and is often taken for the one that was meant; None for any other."""
    start = start.lstrip().lower()
    return next((kind for magic, kind in _OTHER_KINDS if start.startswith(magic)), None)


def _read(name: str, limit_bytes: int) -> bytes:
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = bytearray()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)
        while len(data) <= limit_bytes:
            if not ready.poll(PIPE_PATIENCE_S * 1000):
                raise TimeoutError(None, f"nothing came out of it for {PIPE_PATIENCE_S:g} s")
            piece = os.read(descriptor, _PIECE_BYTES)
            if not piece:
                break
            data += piece
        return bytes(data)
    finally:
        os.close(descriptor)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {shorten(twice)} stands twice in one object")
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is beyond what a number can hold")
    return value


def _problem(area: str, name: str, what: str, remedy: str) -> ValueError:
    return ValueError(f"[{area}] {name}: {what}. {remedy}")
