"""Messages of ranks that are not yet a group: four bytes of length, checked before anything more is read, and JSON.

Whoever sends them has been told apart from strangers before (`comm/node.py` by its user, `comm/rendezvous.py` by its proof);
what it says still decides neither how much is read nor what is executed.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

MAX_BYTES = 4 << 20


def send_message(connection: socket.socket, message: Any) -> None:
    """Send it whole."""
    data = json.dumps(message).encode()
    connection.sendall(struct.pack("<I", len(data)) + data)


def receive_message(connection: socket.socket, limit: int = MAX_BYTES) -> Any:
    """What comes.

    Raises:
        ValueError: it is longer than `limit` bytes, no JSON, or nested too deeply.
        OSError: the connection was closed, or its timeout passed.
    """
    (length,) = struct.unpack("<I", exactly(connection, 4))
    if length > limit:
        raise ValueError(f"a message of {length:,} bytes; the limit is {limit:,}")
    try:
        return json.loads(exactly(connection, length))
    except RecursionError:
        raise ValueError("a message that is nested too deeply") from None


def exactly(connection: socket.socket, length: int) -> bytes:
    """So many bytes."""
    data = bytearray()
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise ConnectionError("the connection was closed")
        data += part
    return bytes(data)
