"""`cktrain bench {peak,gemm,ops,step,decode,overlap,collectives}`: measurements, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from cktrain.launch import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain bench`."""
    actions = parser.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    peak = actions.add_parser("peak", help="floating-point peak and memory bandwidth")
    peak.add_argument("--json", action="store_true", help="print one JSON object")
    peak.add_argument("--threads", type=arguments.threads, help="threads; default: all cores")
    peak.set_defaults(run=_peak)
    gemm = actions.add_parser("gemm", help="linear layers against the peak, numpy's BLAS and PyTorch")
    gemm.add_argument("--json", action="store_true", help="print one JSON object")
    gemm.add_argument("--threads", type=arguments.threads, help="threads; default: all cores")
    gemm.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the operands")
    gemm.add_argument("--shapes", help="names of shapes, separated by commas; default: all")
    gemm.add_argument(
        "--repetitions", type=arguments.whole(1, 10_000), default=7, help="measurements of each product"
    )
    gemm.set_defaults(run=_gemm)
    ops = actions.add_parser(
        "ops", help="every op but the matmuls: its rate, its limit, and PyTorch where installed"
    )
    ops.add_argument("names", nargs="*", help="parts of the names of the ops to run; default: all")
    ops.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    ops.add_argument("--threads", type=arguments.threads, help="threads; default: all cores")
    ops.add_argument(
        "--rounds", type=arguments.whole(1, 10_000), default=5, help="rounds, of which the best counts"
    )
    ops.add_argument("--json", action="store_true", help="print a JSON list")
    ops.set_defaults(run=_ops)
    step = actions.add_parser("step", help="a whole training step on random tokens, time per op")
    step.add_argument("config", type=arguments.path, help="YAML file of a run")
    step.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    step.add_argument("--steps", type=arguments.whole(1, 1_000_000), default=5, help="steps to measure")
    step.add_argument("--json", action="store_true", help="print one JSON object")
    step.set_defaults(run=_step)
    _add_decode(actions)
    overlap = actions.add_parser("overlap", help="what of the reductions a backward pass cannot hide")
    overlap.add_argument(
        "--share",
        type=arguments.number(0.0, 1e3, above=True),
        default=0.5,
        help="of the communication in the backward's time",
    )
    overlap.add_argument(
        "--latency-us", type=arguments.number(0.0, 1e9), default=20.0, help="of the imitated network"
    )
    overlap.add_argument(
        "--threads", type=arguments.threads, help="computing threads; default: all cores but one"
    )
    overlap.add_argument("--json", action="store_true", help="print one JSON object")
    overlap.set_defaults(run=_overlap)
    collectives = actions.add_parser(
        "collectives", help="operations between ranks, beside MPI, gloo and the bound"
    )
    collectives.add_argument("--transport", default="auto", help="auto, shm, tcp or mpi")
    collectives.add_argument("--op", dest="ops", action="append", metavar="OP", help="default: all of them")
    collectives.add_argument("--sizes", default="4k,64k,1m,16m,64m", help="bytes of the whole array")
    collectives.add_argument("--algorithm", help="prefer one algorithm")
    collectives.add_argument(
        "--tcp-sockets", type=arguments.whole(1, 16), help="connections per pair of ranks over TCP"
    )
    collectives.add_argument(
        "--tune", action="store_true", help="measure which algorithm is the fastest at which length"
    )
    collectives.add_argument(
        "--table", type=arguments.path, help="file of the measured table; with --tune it is written"
    )
    collectives.add_argument(
        "--any-order", action="store_true", help="--tune may choose sums in other orders"
    )
    collectives.add_argument("--no-rivals", action="store_true", help="measure cktrain alone")
    collectives.add_argument("--json", action="store_true", help="print a list of objects")
    collectives.set_defaults(run=_collectives)


def _add_decode(actions: Any) -> None:
    decode = actions.add_parser("decode", help="how fast a model reads a prompt and writes tokens")
    decode.add_argument(
        "model",
        type=arguments.path,
        help="folder of a run, a checkpoint, a Hugging Face folder, a GGUF file, or a YAML file of a run (random weights)",
    )
    decode.add_argument("--threads", type=arguments.threads, help="threads; default: all cores")
    decode.add_argument(
        "--dtype", choices=("fp32", "bf16"), default="fp32", help="what products are computed in"
    )
    decode.add_argument(
        "--kv-dtype", choices=("fp32", "bf16"), help="of keys and values; default: that of --dtype"
    )
    decode.add_argument(
        "--quantize", metavar="FORMAT", help="hold the matrices in blocks (docs/quantized.md)"
    )
    decode.add_argument(
        "--activations", choices=("exact", "q8"), default="exact", help="of quantized matrices, while writing"
    )
    decode.add_argument("--prompt", type=arguments.whole(1), default=512, help="tokens to read (default 512)")
    decode.add_argument(
        "--tokens", type=arguments.whole(1), default=128, help="tokens to write (default 128)"
    )
    decode.add_argument(
        "--rounds", type=arguments.whole(1, 10_000), default=3, help="rounds, of which the median counts"
    )
    decode.add_argument("--json", action="store_true", help="print one JSON object")
    decode.set_defaults(run=_decode)


def _decode(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment({}), mode="auto", threads=options.threads)
    import numpy as np

    from cktrain import cython_kernels
    from cktrain.bench.decode import bench_decode, open_for_decoding
    from cktrain.nn.numerics import PRECISIONS, Numerics

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    positions = options.prompt + options.tokens
    numerics = Numerics(kernels, options.dtype)
    numerics.rounds = options.activations == "q8"
    model = open_for_decoding(options.model, numerics, positions, options.quantize)
    kv_dtype = None if options.kv_dtype is None else np.dtype(PRECISIONS[options.kv_dtype][0])
    report = bench_decode(model, options.prompt, options.tokens, options.rounds, kv_dtype)
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return 0


def _overlap(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    cores = sorted(os.sched_getaffinity(0))
    threads = options.threads or max(1, len(cores) - 1)
    binding = bind(read_process_environment({}), mode="auto", threads=threads)
    from cktrain import cython_kernels
    from cktrain.bench.overlap import bench_overlap

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    report = bench_overlap(kernels, cores[-1], share=options.share, latency_s=options.latency_us * 1e-6)
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return 0


def _peak(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment({}), mode="auto", threads=options.threads)
    from cktrain import cython_kernels
    from cktrain.bench.peak import measure_peak

    report = measure_peak(cython_kernels.load(), binding.threads)
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return 0


def _gemm(options: argparse.Namespace) -> int:
    threads = options.threads or len(os.sched_getaffinity(0))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))  # numpy competes with as many
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment({}), mode="auto", threads=options.threads)
    from cktrain import cython_kernels
    from cktrain.bench.gemm import bench_gemm

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    shapes = options.shapes.split(",") if options.shapes else None
    report = bench_gemm(kernels, options.precision, shapes, options.repetitions)
    print(json.dumps(report.as_dict()) if options.json else report.table())
    return 0


def _ops(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

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
    from cktrain.host.bind import bind

    binding = bind(read_process_environment({}), mode=config.launch.bind, threads=config.launch.threads)
    from cktrain import cython_kernels
    from cktrain.bench.step import bench_step
    from cktrain.bench.table import step_table
    from cktrain.hf.folder import resolve_model
    from cktrain.hf.peft_folder import resolve_adapter
    from cktrain.host.memory_limit import node_memory
    from cktrain.parallel.mesh import Mesh
    from cktrain.plan.batch_sizes import resolve_batch
    from cktrain.plan.plan import Machine
    from cktrain.precision import choose_precision

    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    precision = choose_precision(config.precision, [kernels.isa])
    known = {"model": resolve_model(config.model)[0], "adapter": resolve_adapter(config.adapter)}
    config = config.model_copy(update=known)
    machine = Machine(binding.threads, 1, node_memory())
    config, chosen = resolve_batch(config, Mesh(), precision, machine)
    if chosen:
        print(chosen, file=sys.stderr)
    report = bench_step(config, kernels, precision, options.steps)
    print(json.dumps(report.as_dict()) if options.json else step_table(report))
    return 0


def _collectives(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    process = read_process_environment(os.environ)
    bind(process)
    from cktrain import cython_kernels
    from cktrain.bench import baselines, collectives
    from cktrain.comm import bootstrap

    sizes, ops = collectives.parse_sizes(options.sizes), options.ops or list(collectives.OPS)
    if unknown := set(ops) - set(collectives.OPS):
        raise ValueError(
            f"[bench] --op {unknown.pop()!r} is unknown. Give one of {', '.join(collectives.OPS)}."
        )
    if options.tune and not options.table:
        raise ValueError("[bench] --tune: give --table FILE, where the measured table is kept.")
    group = bootstrap.init(
        transport=options.transport,
        environ=os.environ,
        algorithm=options.algorithm,
        tcp_sockets=options.tcp_sockets,
        table=options.table
        if options.table and (not options.tune or os.path.exists(options.table))
        else None,
    )
    if group.size == 1:
        raise ValueError(
            "[bench] collectives need ranks. Start them: mpirun -n 2 cktrain bench collectives ..."
        )
    try:
        group.use_reduction(getattr(cython_kernels.load(), "reduction", None))
        found: list[Any] = []
        if options.tune:
            from cktrain.bench.tune import tune
            from cktrain.comm.tuning import Tables
            from cktrain.yaml_text import dump_yaml

            tables, rows = tune(group, bootstrap.tables_of(group) or Tables(), any_order=options.any_order)
            if group.rank == 0:
                Path(options.table).write_text(tables.text)
                print(collectives.as_json(rows) if options.json else collectives.as_table(rows), flush=True)
                line = dump_yaml({"comm": {"table": options.table}}, flow=True)
                print(f"written to {options.table}; use it with: {line[1:-1]}", file=sys.stderr)
            group.close()
            return 0
        if not options.no_rivals:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            found = [
                baselines.traffic_bound,
                baselines.RawSockets(group, options.tcp_sockets or 1).make,
                baselines.Gloo(group).make,
            ]
            if process.source in ("openmpi", "pmi", "pmix"):
                found.append(baselines.mpi)
        rows = collectives.bench_collectives(group, bootstrap.transport_of(group), ops, sizes, found)
        if group.rank == 0:
            print(collectives.as_json(rows) if options.json else collectives.as_table(rows), flush=True)
        group.close()
        bootstrap.finalize_rivals()
    except BaseException:
        traceback.print_exc()
        bootstrap.abort(group, 1)
    return 0
