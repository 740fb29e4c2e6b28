"""Machines that are described in a YAML file, so that a placement can be looked at before one has them.

    hosts:
      - {name: big, count: 2, sockets: 2, nodes_per_socket: 4, cores_per_node: 16, cores_per_cache: 8,
         threads_per_core: 2, nics: [{name: mlx5_0, node: 0}]}

Logical CPUs are numbered as Linux does on x86: the first hardware thread of every core, then the second of every core.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, model_validator

from cktrain.config import MOST_CPUS, NonNegative, Positive, Section
from cktrain.foreign_file import spell
from cktrain.host.topology import HardwareThread, Nic, Topology, parse_cpulist
from cktrain.yaml_text import read_yaml


class NicDescription(Section):
    """A network card."""

    name: str
    node: NonNegative
    """NUMA node that it is attached to."""
    rdma: bool = True


class HostDescription(Section):
    """One kind of machine, `count` times."""

    name: str
    count: Annotated[int, Field(gt=0, le=65_536)] = 1
    """How many of it; their names are then numbered from 0."""
    sockets: Positive = 1
    nodes_per_socket: Positive = 1
    cores_per_node: Positive
    cores_per_cache: Positive | None = None
    """Cores that share a last-level cache. Default: those of a NUMA node."""
    threads_per_core: Annotated[int, Field(ge=1, le=8)] = 1
    memory_gib_per_node: Positive | None = None
    hidden_cpus: str = ""
    """Logical CPUs that the job may not use, as "0,64-67"."""
    nics: Annotated[list[NicDescription], Field(default_factory=list)]

    @model_validator(mode="after")
    def _check(self) -> HostDescription:
        nodes = self.sockets * self.nodes_per_socket
        if nodes * self.cores_per_node * self.threads_per_core > MOST_CPUS:
            raise ValueError(
                f"{nodes:,} NUMA nodes x {self.cores_per_node:,} cores x {self.threads_per_core} threads are more than "
                f"the {MOST_CPUS:,} CPUs that a kernel counts"
            )
        for nic in self.nics:
            if nic.node >= nodes:
                raise ValueError(
                    f"nics: {nic.name} is on node {nic.node}, and the nodes are 0 to {nodes - 1}"
                )
        if self.cores_per_cache is not None and self.cores_per_node % self.cores_per_cache:
            raise ValueError(
                f"cores_per_node {self.cores_per_node} is not a multiple of cores_per_cache {self.cores_per_cache}"
            )
        parse_cpulist(self.hidden_cpus)
        return self

    @property
    def names(self) -> list[str]:
        """Of the machines of this kind."""
        return [self.name] if self.count == 1 else [f"{self.name}{number}" for number in range(self.count)]

    def topology(self) -> Topology:
        """The machine."""
        nodes = self.sockets * self.nodes_per_socket
        cores = nodes * self.cores_per_node
        cache = self.cores_per_cache or self.cores_per_node
        threads = []
        for cpu in range(cores * self.threads_per_core):
            core = cpu % cores
            node = core // self.cores_per_node
            threads.append(
                HardwareThread(cpu, core, node // self.nodes_per_socket, node, core - core % cache)
            )
        nics = tuple(Nic(nic.name, nic.rdma, nic.node) for nic in self.nics)
        bytes_per_node = (self.memory_gib_per_node or 0) << 30
        return Topology(tuple(threads), nics, tuple((node, bytes_per_node) for node in range(nodes)))


class _File(Section):
    hosts: Annotated[list[HostDescription], Field(min_length=1)]


def read_description(path: str | Path) -> list[tuple[str, Topology, frozenset[int]]]:
    """Return (name, topology, logical CPUs that may be used) of each described host.

    Raises ValueError, with the file and the key, for anything else than such a description.
    """
    values, _ = read_yaml(
        path, area="launch --topology", remedy="Give a YAML file like examples/topology.yaml."
    )
    try:
        described = _File.model_validate(values)
    except ValidationError as error:
        problems = [
            f"[launch] --topology {path}: {'.'.join(map(str, problem['loc'])) or 'the file'}: "
            f"{spell(problem)}."
            for problem in error.errors()
        ]
        raise ValueError("\n".join(problems)) from None
    found = []
    for host in described.hosts:
        topology = host.topology()
        allowed = topology.cpus - frozenset(parse_cpulist(host.hidden_cpus))
        found += [(name, topology, allowed) for name in host.names]
    return found
