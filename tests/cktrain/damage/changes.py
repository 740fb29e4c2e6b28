"""What damage does to a file: bytes that are cut, changed, taken out or doubled, and values of JSON that are others."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

_SIZES = (0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**63, 10**40, 1e308, float("nan"), float("-inf")),
    *("", "\0", "\ud800", "user", "a" * 5000, "..", "(", "{{"),
    *([], {}, [[]], [None], [{}], {"role": "user"}, {"": {}}, ["q_proj", 3]),
)


def changed_bytes(data: bytes, header: int, draw: np.random.Generator) -> bytes:
    """Cut short, bytes changed, an absurd number, a piece taken out or doubled; mostly in the first `header` bytes."""
    changed = bytearray(data)
    within = min(header if draw.random() < 0.9 else len(data), len(data) - 8)
    at = int(draw.integers(within))
    kind = draw.integers(5)
    if kind == 0:
        return bytes(changed[: int(draw.integers(len(data)))])
    if kind == 1:
        for _ in range(int(draw.integers(1, 4))):
            changed[int(draw.integers(within))] = int(draw.integers(256))
    elif kind == 2:
        changed[at : at + 8] = struct.pack("<Q", _SIZES[int(draw.integers(len(_SIZES)))])
    elif kind == 3:
        del changed[at : at + int(draw.integers(1, 64))]
    else:
        changed[at:at] = changed[at : at + int(draw.integers(1, 64))]
    return bytes(changed)


def changed_values(data: bytes, draw: np.random.Generator) -> bytes:
    """Of lines of JSON, in one: a value is another, is gone, or stands elsewhere too."""
    lines = data.splitlines()
    at = int(draw.integers(len(lines)))
    root = {"": json.loads(lines[at])}
    places = list(_places(root))
    parent, key = places[int(draw.integers(len(places)))]
    kind = draw.integers(4)
    if kind == 0 and parent is not root:
        del parent[key]
    elif kind == 1:
        other, name = places[int(draw.integers(len(places)))]
        parent[key] = json.loads(json.dumps(other[name]))
    else:
        parent[key] = _VALUES[int(draw.integers(len(_VALUES)))]
    lines[at] = json.dumps(root[""]).encode()
    return b"\n".join(lines) + b"\n"


def changed_header(data: bytes, draw: np.random.Generator) -> bytes:
    """Of a safetensors file, values of its header; the header's size is right."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = changed_values(data[8:end], draw)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _places(value: Any) -> Any:
    """(container, key) of each value in it."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])
