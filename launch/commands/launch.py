"""`cktrain launch -n N COMMAND…`, `cktrain launch --hosts a:2,b:2 COMMAND…`: start the ranks of a command.

The command is one of `cktrain`'s own. With `train CONFIG` the configuration is read here first, so that a mistake in
it is seen before anything is started.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cktrain.config import Config, LaunchConfig, ParallelConfig
from cktrain.host.topology import HardwareThread, Nic, Topology, parse_cpulist
from cktrain.launch import arguments
from cktrain.launch.agent import facts
from cktrain.launch.hosts import Host, parse_hosts
from cktrain.launch.job import DEFAULT_SHELL, Job, LaunchError
from cktrain.launch.layout import HostFacts, lay_out, table, warnings
from cktrain.parallel.mesh import Mesh, resolve_mesh

HERE = "localhost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain launch`."""
    parser.usage = "cktrain launch [options] COMMAND ..."
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "-n",
        "--ranks",
        type=arguments.ranks,
        help="ranks on this machine (default: one per NUMA node); see --topology",
    )
    where.add_argument(
        "--hosts", help="hosts and their ranks, a:2,b:2; without a number one rank per NUMA node"
    )
    parser.add_argument(
        "--rsh",
        type=arguments.words,
        default=DEFAULT_SHELL,
        help="remote shell and its options (default: %(default)s)",
    )
    parser.add_argument(
        "--python",
        type=arguments.path,
        default=sys.executable,
        help="Python with cktrain on the other hosts (default: the same path)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="variable to hand to the ranks, besides CKTRAIN_*, PATH, LD_LIBRARY_PATH, PYTHONPATH and LANG",
    )
    parser.add_argument(
        "--interface",
        help="network interface, or address, of the first host at which the ranks meet (default: comm.interface)",
    )
    parser.add_argument(
        "--logs",
        type=arguments.path,
        help="folder for all that the ranks print (default, with train: the run's)",
    )
    parser.add_argument(
        "--start-timeout", type=arguments.seconds, default=60.0, metavar="SECONDS", help="for hosts to answer"
    )
    parser.add_argument("--dry-run", action="store_true", help="print where each rank would run, and stop")
    parser.add_argument(
        "--topology",
        type=arguments.path,
        help="with --dry-run: machines described in a YAML file, -n ranks over all",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="for instance: train CONFIG --set run.steps=10"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Start the ranks; returns the exit status."""
    if options.topology is not None and not (options.dry_run and options.hosts is None):
        raise ValueError(
            "[launch] --topology describes machines for --dry-run. Add --dry-run, leave out --hosts."
        )
    if not options.command and not options.dry_run:
        raise ValueError("[launch] no command. Write for instance: cktrain launch -n 2 train CONFIG")
    for name in options.env:
        if "=" in name or name not in os.environ:
            raise ValueError(
                f"[launch] --env {name}: no variable of this name is set here. Write: NAME=value cktrain launch --env NAME …"
            )
    config = _train_config(options.command)
    if options.topology is not None:
        from cktrain.launch.topology_file import read_description

        hosts = [HostFacts(*host) for host in read_description(options.topology)]
        return _show(hosts, _spread(options.ranks, hosts), config)
    if options.dry_run and options.hosts is None:
        here = _host_facts(HERE, facts())
        return _show([here], [options.ranks or here.numa_nodes], config)
    hosts_asked = parse_hosts(options.hosts) if options.hosts else [Host(HERE, options.ranks)]
    try:
        return _launch(options, hosts_asked, config)
    except LaunchError as error:
        print(f"cktrain: {error}", file=sys.stderr, flush=True)
        return 1


def _launch(options: argparse.Namespace, hosts: Sequence[Host], config: Config | None) -> int:
    with Job(hosts, shell=options.rsh, python=options.python) as job:
        job.meet(options.start_timeout)
        known = [(remote.host, remote.facts) for remote in job.remotes]
        counts = [host.ranks or _host_facts(host.name, said).numa_nodes for host, said in known]
        if options.dry_run:
            return _show([_host_facts(host.name, said) for host, said in known], counts, config)
        _mesh(config, sum(counts))
        return job.run(
            options.command,
            counts,
            environ=os.environ,
            carried=options.env,
            interface=options.interface or (config.comm.interface if config is not None else None),
            logs=Path(options.logs)
            if options.logs
            else (Path(config.run.dir) if config is not None else None),
            name=shlex.join(_own_words(options, sum(counts))),
            flag=options.flag,
        )


def _own_words(options: argparse.Namespace, ranks: int) -> list[str]:
    """The command line without the command: what starts the same ranks again."""
    words = ["cktrain", "launch"]
    words += ["--hosts", options.hosts] if options.hosts else ["-n", str(ranks)]
    given = [
        ("--rsh", options.rsh if options.hosts and options.rsh != DEFAULT_SHELL else None),
        ("--python", options.python if options.python != sys.executable else None),
        ("--interface", options.interface),
        ("--logs", options.logs),
        *(("--env", name) for name in options.env),
    ]
    for option, value in given:
        words += [f"{option}={value}"] if value is not None else []
    return words


def _train_config(command: Sequence[str]) -> Config | None:
    """The configuration of `train CONFIG …`, checked; None for other commands."""
    if not command or command[0] != "train":
        return None
    from cktrain.config_file import load_config
    from cktrain.launch.commands.train import add_arguments as add_train_arguments

    parser = argparse.ArgumentParser(prog="cktrain train")
    add_train_arguments(parser)
    chosen = parser.parse_args(command[1:])
    return load_config(chosen.config, chosen.overrides)


def _mesh(config: Config | None, world: int) -> Mesh:
    return resolve_mesh(config.parallel if config is not None else ParallelConfig(), world)


def _spread(ranks: int | None, hosts: Sequence[HostFacts]) -> list[int]:
    """Ranks per described host: as many on each, or one per NUMA node."""
    if ranks is None:
        return [host.numa_nodes for host in hosts]
    if ranks % len(hosts):
        raise ValueError(
            f"[launch] -n {ranks} over {len(hosts)} described hosts: give a multiple of {len(hosts)}."
        )
    return [ranks // len(hosts)] * len(hosts)


def _host_facts(name: str, said: dict[str, Any]) -> HostFacts:
    """What an agent said of its host; a host whose topology cannot be read counts as one core."""
    if "topology" not in said:
        print(
            f"cktrain: [launch] warning: the topology of {name} cannot be read ({said['no_topology']}); its ranks run "
            "unpinned.",
            file=sys.stderr,
        )
        thread = HardwareThread(0, 0, 0, 0, 0)
        return HostFacts(name, Topology((thread,)), frozenset([0]))
    given = said["topology"]
    topology = Topology(
        tuple(HardwareThread(**thread) for thread in given["threads"]),
        tuple(Nic(**nic) for nic in given["nics"]),
        tuple((node, size) for node, size in given["memory"]),
    )
    return HostFacts(name, topology, frozenset(parse_cpulist(said["cpus"])))


def _show(hosts: Sequence[HostFacts], counts: Sequence[int], config: Config | None) -> int:
    """Print the placement."""
    launch = config.launch if config is not None else LaunchConfig()
    mesh = _mesh(config, sum(counts))
    rows = lay_out(hosts, counts, mesh, launch)
    print(table(rows, launch))
    for line in warnings(rows, mesh):
        print(line)
    return 0
