"""Which ranks share a node: pure functions, and the name by which a process knows its own.

Legend: a node is the list of its ranks, ascending; nodes come in the order of their first ranks.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path


def node_name(environ: Mapping[str, str]) -> str:
    """Name of the node of this process: ranks of one name can share memory.

    CKTRAIN_NODE if it is set (it divides the ranks of one machine into nodes, to try several); else the host, its
    boot, and the network namespace: ranks of a node meet at an abstract socket, which another namespace does not see.
    """
    if given := environ.get("CKTRAIN_NODE"):
        return given
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/net")
    except OSError:
        boot = namespace = ""
    return f"{socket.gethostname()} {boot} {namespace}"


def nodes_of(names: Sequence[str]) -> list[list[int]]:
    """The nodes, from the name that each rank gives to its own."""
    found: dict[str, list[int]] = {}
    for rank, name in enumerate(names):
        found.setdefault(name, []).append(rank)
    return list(found.values())


def why_flat(nodes: Sequence[Sequence[int]]) -> str | None:
    """Why operations do not go in two levels, in words; None where they do."""
    sizes = [len(node) for node in nodes]
    if len(nodes) == 1:
        return "all ranks are on one node"
    if max(sizes) == 1:
        return "each node has one rank"
    if len(set(sizes)) > 1:
        return f"the nodes have {', '.join(map(str, sizes))} ranks: two levels need as many on each"
    for node in nodes:
        if node[-1] - node[0] != len(node) - 1:
            return f"ranks {', '.join(map(str, node))} of a node do not follow each other"
    return None
