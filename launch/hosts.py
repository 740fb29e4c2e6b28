"""The hosts of a job as `--hosts a:2,b:2` names them, and the address at which their ranks meet."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from cktrain.comm.rendezvous import CONTAINERS


@dataclass(frozen=True)
class Host:
    """One host: its name for the remote shell, and its ranks (None: one per NUMA node)."""

    name: str
    ranks: int | None = None

    @property
    def here(self) -> bool:
        """Whether it is this machine, which needs no remote shell."""
        return self.name in ("localhost", "127.0.0.1", socket.gethostname())


def parse_hosts(text: str) -> list[Host]:
    """Parse "a:2,b:2"; a name that stands there twice has the ranks of both.

    Raises ValueError for an empty name, one with blanks, or a count that is no positive number.
    """
    counts: dict[str, int | None] = {}
    for part in text.split(","):
        name, colon, given = part.strip().partition(":")
        counted = re.fullmatch("[0-9]{1,6}", given) is not None and int(given) > 0
        if not name or name.startswith("-") or re.search(r"[\s\0]", name) or (colon and not counted):
            raise ValueError(
                f"[launch] --hosts {text}: {part!r} is not NAME or NAME:RANKS. Write for instance --hosts a:2,b:2."
            )
        count = int(given) if colon else None
        before = counts.get(name, 0)
        counts[name] = None if count is None or before is None else before + count
    return [Host(name, count) for name, count in counts.items()]


def meeting_address(host: str, addresses: Sequence[Sequence[str]], interface: str | None) -> str:
    """Return the address of the first host at which all ranks meet.

    In this order: the named interface's; the address that is the host's name; the one that its name leads to from
    here; its first one that is not a container's bridge.

    Args:
        host: as named in --hosts.
        addresses: (interface, address) of that host.
        interface: that was asked for.

    Raises:
        ValueError: it has no such interface, or no address at all.
    """
    known = {address for _, address in addresses}
    if interface is not None:
        for name, address in addresses:
            if interface in (name, address):
                return address
        there = ", ".join(f"{name} ({address})" for name, address in addresses) or "none"
        raise ValueError(f"[launch] --interface {interface}: {host} has {there}. Give one of these.")
    if host in known:
        return host
    with contextlib.suppress(OSError):
        for found in socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM):
            if found[4][0] in known:
                return str(found[4][0])
    usable = [address for name, address in addresses if not name.startswith(CONTAINERS)]
    if usable or known:
        return (usable or sorted(known))[0]
    raise ValueError(
        f"[launch] {host} has no IPv4 address but loopback. Set up its network, or use one host."
    )
