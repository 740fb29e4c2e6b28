"""Whether a run may begin: the sizes of its batches are chosen, and what the node cannot hold is refused before anything
of it is allocated.

Rank 0 plans for all: what the plan says of a run is the same on every rank. The node is the one with the least memory for
each of its ranks.
"""

from __future__ import annotations

import json
import logging
import platform
from collections import defaultdict

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.consistency_check import together
from cktrain.host.memory_limit import node_memory
from cktrain.parallel.mesh import Mesh
from cktrain.plan.batch_sizes import resolve_batch, with_sizes
from cktrain.plan.plan import Machine, node_bytes, refusal
from cktrain.training.metrics import proportional_set_size

log = logging.getLogger("cktrain")


def admit(
    config: Config, mesh: Mesh, precision: str, threads: int, group: Group, before: Config | None = None
) -> Config:
    """The configuration with its batches' sizes as numbers. Collective.

    `config.model` is resolved; `before` is the configuration of the run that goes on. Raises ValueError on all ranks for
    what does not divide, and for what does not fit, with the numbers and one thing to do.
    """
    machine = _tightest_node(threads, group)
    planned = together(
        group, lambda: _plan(config, mesh, precision, machine, before) if group.rank == 0 else config
    )
    sizes = [planned.batch.micro_batch_size, planned.batch.global_batch_size]
    micro, total = json.loads(group.broadcast_bytes(json.dumps(sizes).encode()))
    return with_sizes(config, micro, total)


def _plan(config: Config, mesh: Mesh, precision: str, machine: Machine, before: Config | None) -> Config:
    config, words = resolve_batch(config, mesh, precision, machine, before)
    if words:
        log.info(words)
    needed = node_bytes(config, mesh, precision, machine)
    if problem := refusal(config, mesh, precision, machine, needed):
        raise ValueError(problem)
    return config


def _tightest_node(threads: int, group: Group) -> Machine:
    mine = json.dumps([platform.node(), node_memory(), proportional_set_size() or 0]).encode()
    hosts = defaultdict(list)
    for host, limit, process in map(json.loads, group.all_gather_bytes(mine)):
        hosts[host].append((limit, process))
    ranks = min(hosts.values(), key=lambda found: min(limit for limit, _ in found) / len(found))
    return Machine(
        threads, len(ranks), min(limit for limit, _ in ranks), max(process for _, process in ranks)
    )
