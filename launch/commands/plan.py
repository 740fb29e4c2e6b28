"""`cktrain plan CONFIG`: memory, bytes on the wire and time of a run, before anything of it is allocated.

Alone it plans for `--ranks` ranks; under mpirun or srun for the ranks that were started, whose links it measures.
Exit status 2 when the run does not fit, with the numbers and one thing to do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from cktrain.launch import arguments

if TYPE_CHECKING:
    from cktrain.comm.group import Group
    from cktrain.config import Config
    from cktrain.host.bind import Binding
    from cktrain.nn.numerics import Numerics
    from cktrain.parallel.costs import PredictedKernels
    from cktrain.parallel.mesh import Mesh
    from cktrain.plan.plan import Machine, Plan

EXIT_INPUT = 2
LONGEST_MEASUREMENT = 5.0
"""Predicted seconds of a micro-batch's parts; where they take longer, a short sequence is measured instead."""
MATMUL_SHARE = 0.75
"""Of the peak, what a micro-batch's kernels together are taken to reach where they are not measured."""
ASSUMED_LINK = 12.5e9
NOT_MEASURED = (
    "time: not known, since the system refuses the memory that measuring takes (ulimit -v says this shell's limit). "
    "cktrain plan predicts it from --peak and --bandwidth"
)

_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_RATES = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain plan`."""
    parser.add_argument("config", type=arguments.path, help="YAML file of the run")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    parser.add_argument(
        "--ranks",
        type=arguments.ranks,
        help="ranks; default: the degrees' product, or those that were started",
    )
    parser.add_argument(
        "--ranks-per-node", type=arguments.ranks, metavar="N", help="default: all ranks on one node"
    )
    parser.add_argument(
        "--threads",
        type=arguments.threads,
        help="threads of a rank; default: this node's cores over its ranks",
    )
    parser.add_argument(
        "--memory", type=parse_bytes, metavar="SIZE", help="of a node, like 64GiB; default: this one's"
    )
    parser.add_argument(
        "--peak",
        type=parse_rate,
        metavar="RATE",
        help="FLOP/s of a rank, like 2.1T; default: this machine is measured",
    )
    parser.add_argument(
        "--bandwidth",
        type=parse_rate,
        metavar="RATE",
        help="bytes/s from memory of a rank, like 40G; default: measured",
    )
    parser.add_argument(
        "--link", type=parse_link, metavar="RATE", help="of a rank between nodes, like 100Gb/s or 12.5GB/s"
    )
    parser.add_argument(
        "--watts",
        type=parse_amount,
        metavar="W",
        help="that all machines draw together: the run's energy is said",
    )
    parser.add_argument(
        "--price-per-hour",
        type=parse_amount,
        metavar="P",
        help="of all machines together: the run's price is said",
    )
    parser.add_argument("--memory-only", action="store_true", help="measure nothing and predict no time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def parse_bytes(text: str) -> int:
    """64GiB -> bytes; units of 1024, with or without iB."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]?)(?:I?B)?", text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 64GiB")
    return int(_amount(text, match[1]) * _BYTES[match[2]])


def parse_rate(text: str) -> float:
    """2.1T or 40G -> per second; units of 1000."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT])(?:B|FLOPS?|FLOP)?(?:/S)?", text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate; write it like 270G or 2.1T")
    return _amount(text, match[1]) * _RATES[match[2]]


def parse_link(text: str) -> float:
    """100Gb/s (bits) or 12.5GB/s (bytes) -> bytes per second."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT])(b(?:it)?|B)(?:/s|ps)", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no link; write it like 100Gb/s (bits) or 12.5GB/s (bytes)"
        )
    return _amount(text, match[1]) * _RATES[match[2]] / (1 if match[3] == "B" else 8)


def parse_amount(text: str) -> float:
    """A number above 0."""
    return _amount(text, text)


def _amount(text: str, number: str) -> float:
    """The number before a unit, above 0 and not beyond any machine."""
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e15:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no amount above 0")
    return value


def run(options: argparse.Namespace) -> int:
    """Plan; returns the exit status."""
    from cktrain.config_file import load_config

    config = load_config(options.config, options.overrides)
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    process = read_process_environment(os.environ)
    binding = bind(
        process,
        mode=config.launch.bind,
        threads=config.launch.threads,
        tensor=config.parallel.tensor,
        progress_core=config.launch.progress_core,
    )
    if process.size == 1:
        from cktrain.comm.solo_group import SoloGroup

        return _plan(options, config, SoloGroup(), binding)
    from cktrain.comm import bootstrap

    comm = config.comm
    group = bootstrap.init(
        transport=comm.transport,
        timeout_s=comm.timeout_s,
        environ=os.environ,
        engine_core=binding.progress_core,
        interface=comm.interface,
        algorithm=comm.algorithm,
        tcp_sockets=comm.tcp_sockets,
        device=comm.device,
        gid_index=comm.gid_index,
        traffic_class=comm.traffic_class,
    )
    try:
        status = _plan(options, config, group, binding)
    except BaseException as error:
        print(f"cktrain: rank {group.rank}: {error}", file=sys.stderr, flush=True)
        bootstrap.abort(group, EXIT_INPUT if isinstance(error, ValueError) else 1)
    group.close()
    return status


def _plan(options: argparse.Namespace, config: Config, group: Group, binding: Binding) -> int:
    from cktrain.plan.forecast import forecast, forecast_text
    from cktrain.plan.text import plan_text

    found = plan_here(options, config, group, binding)
    config, plan, refusal = found.config, found.plan, found.refusal
    if group.rank == 0:
        whole = forecast(config, plan, options.watts, options.price_per_hour)
        if options.json:
            print(json.dumps({**plan.as_dict(), "run": asdict(whole), "source": found.source}), flush=True)
        else:
            now = datetime.datetime.now()
            print(plan_text(plan, found.source), "", forecast_text(whole, config, now), sep="\n", flush=True)
            if found.batch:
                print(found.batch, flush=True)
        if refusal:
            print(f"cktrain: {refusal}", file=sys.stderr, flush=True)
    return EXIT_INPUT if refusal else 0


@dataclass(frozen=True)
class PlanHere:
    """A plan, and what it is of."""

    config: Config
    """With its model, its adapter and the sizes of its batches resolved."""
    plan: Plan
    source: str
    """Where its rates come from."""
    batch: str
    """What was chosen of the batches' sizes, or nothing."""
    refusal: str
    """Why the run does not fit, or nothing."""


def plan_here(options: argparse.Namespace, config: Config, group: Group, binding: Binding) -> PlanHere:
    """The plan by the options of `cktrain plan`."""
    from cktrain import cython_kernels
    from cktrain.base_folder import planned_base
    from cktrain.hf.folder import resolve_model
    from cktrain.hf.peft_folder import resolve_adapter
    from cktrain.host.memory_limit import node_memory
    from cktrain.nn.numerics import Numerics
    from cktrain.parallel.mesh import resolve_mesh
    from cktrain.plan.batch_sizes import resolve_batch
    from cktrain.plan.plan import Machine, make_plan, refusal
    from cktrain.precision import agree_on_precision
    from cktrain.training.metrics import proportional_set_size
    from cktrain.training_rows import with_folder

    kernels = cython_kernels.load()
    known = {"model": resolve_model(planned_base(config))[0], "adapter": resolve_adapter(config.adapter)}
    config = with_folder(config.model_copy(update=known))
    mesh = resolve_mesh(config.parallel, _ranks(options, config, group))
    precision = agree_on_precision(config.precision, kernels.isa, "", group)
    per_node = min(options.ranks_per_node or mesh.world, mesh.world)
    here = group.size > 1
    threads = binding.threads
    cores = threads if here else max(1, threads // per_node)
    machine = Machine(
        options.threads or config.launch.threads or cores,
        per_node,
        options.memory or node_memory(),
        proportional_set_size() or 0,
    )
    kernels.set_num_threads(min(machine.threads, threads))
    config, batch = resolve_batch(config, mesh, precision, machine)
    if options.memory_only:
        plan, source = make_plan(config, mesh, precision, machine), ""
    else:
        own_core = binding.progress_core is not None
        try:
            plan, source = _with_time(
                options, config, group, Numerics(kernels, precision), mesh, machine, own_core
            )
        except MemoryError:
            if group.size > 1:  # which the other ranks, who measure, do not know
                raise
            plan, source = make_plan(config, mesh, precision, machine), NOT_MEASURED
    return PlanHere(config, plan, source, batch, refusal(config, mesh, precision, machine, plan.node_bytes))


def _ranks(options: argparse.Namespace, config: Config, group: Group) -> int:
    from cktrain.parallel.mesh import given_degrees

    if group.size > 1:
        if options.ranks not in (None, group.size):
            raise ValueError(
                f"[plan] --ranks is {options.ranks}, and {group.size} were started. Leave it out."
            )
        return group.size
    return options.ranks or math.prod(abs(degree) for degree in given_degrees(config.parallel).values())


def _with_time(
    options: argparse.Namespace,
    config: Config,
    group: Group,
    numerics: Numerics,
    mesh: Mesh,
    machine: Machine,
    progress_has_a_core: bool,
) -> tuple[Any, str]:
    """The plan with its step's time, and where the rates come from."""
    from cktrain.bench.peak import flop_rates, measure_bandwidth
    from cktrain.parallel.costs import PredictedKernels, measure_costs
    from cktrain.parallel.pipeline_partition import mean_costs
    from cktrain.parallel.ranks import divide_world
    from cktrain.plan.plan import make_plan, predict_whole_model
    from cktrain.plan.rates import disturbance, measure_links, measure_update, predict_update, spread
    from cktrain.plan.short_measurement import SHORT, measure_short

    told = []
    bandwidth = options.bandwidth or measure_bandwidth(numerics.kernels, "copy", False, runs=3)
    loop = [] if options.peak else flop_rates(numerics.kernels, numerics.precision)
    flops = options.peak or max(loop)
    told.append(f"peak {flops / 1e9:,.0f} GFLOP/s and memory {bandwidth / 1e9:,.1f} GB/s of a rank")
    stated = PredictedKernels(MATMUL_SHARE * flops, bandwidth)
    predicted = predict_whole_model(config, mesh, numerics.precision, stated)
    if group.size > 1:
        ranks = divide_world(group, mesh)
        links = measure_links(ranks, beside=progress_has_a_core)
        told.append("links measured between these ranks")
    else:
        ranks = None
        links = _stated_links(options, mesh, machine, bandwidth)
        told.append(
            f"links {(options.link or ASSUMED_LINK) * 8 / 1e9:,.0f} Gb/s between nodes, "
            f"{'stated' if options.link else 'assumed (--link)'}; half the memory's rate inside one"
        )
    way = (
        "stated"
        if options.peak or options.bandwidth
        else _way_to_measure(config, mesh, numerics, stated, group)
    )
    if way in ("stated", "too long"):
        costs = predicted
        rates = predict_update(bandwidth, MATMUL_SHARE * flops, numerics.precision == "bf16")
        told.insert(
            0, f"kernels take {100 * MATMUL_SHARE:.0f} % of the peak or the memory's rate, not measured"
        )
    else:
        group.barrier()
        if way == "whole":
            costs = measure_costs(config, numerics, mesh)
            told.insert(0, "layers, head and update measured on this machine")
        else:
            costs = measure_short(config, mesh, numerics, stated)
            told.insert(
                0,
                f"layers and head measured on this machine with one sequence of {SHORT} tokens, since a whole micro-batch "
                "takes long and follows from that; the update measured too",
            )
        costs = costs if ranks is None else mean_costs(costs, ranks)
        group.barrier()
        loop += flop_rates(numerics.kernels, numerics.precision, 0.1)
        rates = measure_update(config, numerics)
        loop += flop_rates(numerics.kernels, numerics.precision, 0.1)
    plan = make_plan(config, mesh, numerics.precision, machine, costs, rates, links)
    if loop:
        plan = replace(plan, disturbance=disturbance(loop), spread=spread(loop))
    return plan, "; ".join(told)


def _way_to_measure(
    config: Config, mesh: Mesh, numerics: Numerics, stated: PredictedKernels, group: Group
) -> str:
    """ "whole" micro-batches, a "short" sequence, or not at all, being "too long": the same on all ranks."""
    from cktrain.plan.plan import predict_whole_model
    from cktrain.plan.short_measurement import seconds_to_measure, shortened

    ways = ["whole", "short", "too long"]
    mine = 2
    for number, tried in enumerate((config, shortened(config))):
        if tried is not None:
            parts = predict_whole_model(tried, mesh, numerics.precision, stated)
            if seconds_to_measure(parts) <= LONGEST_MEASUREMENT:
                mine = number
                break
    return ways[max(int(each) for each in group.all_gather_bytes(str(mine).encode()))]


def _stated_links(
    options: argparse.Namespace, mesh: Mesh, machine: Machine, bandwidth: float
) -> dict[str, Any]:
    """The link of each axis: memory where rank 0's group stays on its node, else the network."""
    from cktrain.plan.rates import Link

    links = {}
    stride = 1
    for name, size in reversed(mesh.degrees.items()):
        one_node = (size - 1) * stride < machine.ranks_per_node
        links[name] = (
            Link(bandwidth / 2, 5e-6) if one_node else Link(options.link or ASSUMED_LINK, 2e-5, True)
        )
        stride *= size
    return links
