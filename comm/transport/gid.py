"""Which of a port's addresses (GIDs) a connection starts from.

A port has a table of 16-byte GIDs, and the place in it decides how packets travel: the same Ethernet port may have
a RoCE v1 and a RoCE v2 entry for each of its interface's IP addresses. No index is right everywhere, so the entry
is chosen by its content:

| link | usable entries, best first |
|---|---|
| Ethernet | RoCE v2 of an IPv4 address (::ffff:a.b.c.d), then of a global IPv6 address; of fe80:: only within a host |
| InfiniBand | the port's own entry (index 0); within a subnet the LID alone would do |

The two ends must be of one family: `common_families` says which all ranks have. Pure functions over a table that
was read before (`rdma_device.py`), so that any table can be tried.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cktrain.comm.transport.verbs_problems import Problem

ROCE_V1, ROCE_V2, INFINIBAND = "IB/RoCE v1", "RoCE v2", "InfiniBand"

FAMILIES = ("ipv4", "ipv6", "link-local", "infiniband")
"""Kinds of usable GIDs, best first."""


@dataclass(frozen=True)
class Gid:
    """One entry of a GID table."""

    index: int
    address: bytes
    """16 bytes."""
    kind: str
    """ROCE_V1, ROCE_V2 or INFINIBAND."""
    interface: str | None = None
    """The network interface that it belongs to; None on InfiniBand."""

    @property
    def family(self) -> str | None:
        """One of FAMILIES, or None for an entry that is not used (RoCE v1)."""
        if self.kind == INFINIBAND:
            return "infiniband"
        if self.kind != ROCE_V2:
            return None
        address = ipaddress.IPv6Address(self.address)
        if address.ipv4_mapped is not None:
            return "ipv4"
        return "link-local" if address.is_link_local else "ipv6"

    def __str__(self) -> str:
        address = ipaddress.IPv6Address(self.address)
        return str(address.ipv4_mapped or address)


class NoUsableGid(Exception):
    """No entry of the table will do; `problem` says why and what to do."""

    def __init__(self, problem: Problem):
        self.problem = problem
        super().__init__(f"{problem.reason}. {problem.remedy}.")


def families(table: Iterable[Gid], *, one_host: bool = False) -> tuple[str, ...]:
    """Return the families that a table has usable entries of, best first.

    Args:
        table: the port's entries.
        one_host: whether all ranks are on this host, so that a link-local address reaches them.
    """
    found = {gid.family for gid in table}
    return tuple(f for f in FAMILIES if f in found and (one_host or f != "link-local"))


def common_families(of_ranks: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the families that every rank has, best first."""
    return tuple(family for family in FAMILIES if all(family in have for have in of_ranks))


def choose_gid(
    table: Sequence[Gid],
    *,
    device: str,
    gid_index: int | None = None,
    interface: str | None = None,
    allowed: Sequence[str] | None = None,
    one_host: bool = False,
) -> Gid:
    """Return the entry to connect from.

    Args:
        table: the port's entries that are not empty.
        device: the device's name, for the message.
        gid_index: the user's choice (`comm.gid_index`), which is taken as it is.
        interface: where the other ranks are reached (`comm.interface`); entries of it are preferred.
        allowed: families that all ranks have (`common_families`); None: any.
        one_host: whether all ranks are on this host.

    Raises:
        NoUsableGid: none fits.
    """
    if gid_index is not None:
        for gid in table:
            if gid.index == gid_index:
                return gid
        used = ", ".join(str(gid.index) for gid in table) or "none"
        raise NoUsableGid(
            Problem(
                f"entry {gid_index} of the GID table of {device} is empty; in use: {used}",
                "Give comm.gid_index one of these, or leave it out",
            )
        )
    usable = families(table, one_host=one_host)
    if allowed is not None:
        usable = tuple(family for family in usable if family in allowed)
    candidates = [gid for gid in table if gid.family in usable]
    if candidates:
        return min(
            candidates,
            key=lambda gid: (usable.index(gid.family or ""), gid.interface != interface, gid.index),
        )
    raise NoUsableGid(_why_none(table, device, allowed))


def _why_none(table: Sequence[Gid], device: str, allowed: Sequence[str] | None) -> Problem:
    have = {gid.family for gid in table}
    interface = next((gid.interface for gid in table if gid.interface), "INTERFACE")
    address = f"ip address add 192.168.100.RANK/24 dev {interface}"
    if not table:
        return Problem(
            f"the GID table of {device} is empty",
            "Bring the network interface behind it up, with an IP address: rdma link show tells which it is",
        )
    if have & set(FAMILIES) - {"link-local"}:
        wanted = " or ".join(allowed or ()) or "none"
        return Problem(
            f"{device} has no GID of a family that all ranks share ({wanted})",
            f"Give every host's RDMA interface an IPv4 address: {address}",
        )
    if "link-local" in have:
        return Problem(
            f"{device} has only a link-local RoCEv2 GID (fe80::), which no other host reaches",
            f"Give its interface an IPv4 address: {address}",
        )
    return Problem(
        f"{device} has no RoCEv2 GID, only RoCE v1, which routers and rxe do not carry",
        f"Switch RoCEv2 on for the port (cma_roce_mode or the vendor's tool) and give {interface} an IPv4 address",
    )
