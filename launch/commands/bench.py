"""`cktrain bench {peak,ops,step}`: measurements, as a table or as JSON."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain bench`."""
    actions = parser.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    peak = actions.add_parser("peak", help="floating-point peak and memory bandwidth")
    peak.add_argument("--json", action="store_true", help="print one JSON object")
    peak.add_argument("--threads", type=int, help="threads; default: all cores")
    peak.set_defaults(run=_peak)
    ops = actions.add_parser("ops", help="every op but the matmuls: its rate, its limit, and PyTorch where installed")
    ops.add_argument("names", nargs="*", help="parts of the names of the ops to run; default: all")
    ops.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    ops.add_argument("--threads", type=int, help="threads; default: all cores")
    ops.add_argument("--rounds", type=int, default=5, help="rounds, of which the best counts")
    ops.add_argument("--json", action="store_true", help="print a JSON list")
    ops.set_defaults(run=_ops)
    step = actions.add_parser("step", help="a whole training step on random tokens, time per op")
    step.add_argument("config", help="YAML file of a run")
    step.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    step.add_argument("--steps", type=int, default=5, help="steps to measure")
    step.add_argument("--json", action="store_true", help="print one JSON object")
    step.set_defaults(run=_step)


def _peak(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.launch.bind import bind

    binding = bind(read_process_environment({}), mode="auto", threads=options.threads)
    from cktrain import cython_kernels
    from cktrain.bench.peak import measure_peak

    report = measure_peak(cython_kernels.load(), binding.threads)
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return 0


def _ops(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.launch.bind import bind

    binding = bind(read_process_environment({}), mode="auto", threads=options.threads)
    from cktrain import cython_kernels
    from cktrain.bench.ops import bench_ops, ops_json, ops_table

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    precisions = ("fp32", "bf16") if options.precision == "both" else (options.precision,)
    results = [r for p in precisions for r in bench_ops(kernels, p, tuple(options.names), options.rounds)]
    print(json.dumps(ops_json(results)) if options.json else ops_table(results))
    return 0


def _step(options: argparse.Namespace) -> int:
    from cktrain.config_file import load_config

    config = load_config(options.config, options.overrides)
    from cktrain.comm.environment import read_process_environment
    from cktrain.launch.bind import bind

    binding = bind(read_process_environment({}), mode=config.launch.bind, threads=config.launch.threads)
    from cktrain import cython_kernels
    from cktrain.bench.peak import measure_flops
    from cktrain.bench.step import bench_step
    from cktrain.bench.table import step_table
    from cktrain.launch.compose import choose_precision
    from cktrain.models.hugging_face import resolve_model

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    precision = choose_precision(config.precision, kernels, None)
    before = measure_flops(kernels, precision)
    model, _ = resolve_model(config.model)
    config = config.model_copy(update={"model": model})
    report = bench_step(config, kernels, precision, options.steps, before)
    print(json.dumps(report.as_dict()) if options.json else step_table(report))
    return 0
