"""`cktrain train CONFIG [--set a.b=c]…`: bind, join the other ranks, compose, train."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.launch import arguments
from cktrain.system_error import in_words

if TYPE_CHECKING:
    from rich.console import Console

    from cktrain.comm.environment import ProcessEnvironment
    from cktrain.comm.group import Group
    from cktrain.host.bind import Binding
    from cktrain.nn.numerics import Numerics
    from cktrain.train.stop import StopFlag
    from cktrain.train.trainer import Trainer

EXIT_INPUT = 2
TABLE_FILE = "collectives.json"
"""In the run's folder: which algorithms it uses."""
EXIT_STOPPED = 75
AFTER_RANK_0_S = 2.0
"""How much later than rank 0 another rank ends for what is wrong on all of them, the config for one. Who started them stops
them when rank 0 ends: the user reads one message. A rank that alone found something else is heard."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain train`."""
    parser.add_argument("config", type=arguments.path, help="YAML file of the run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, for instance --set optimizer.lr=1e-3",
    )
    parser.set_defaults(run=run)


@dataclass
class Start:
    """How far a run has come."""

    flag: StopFlag
    group: Group | None = None
    trainer: Trainer | None = None

    @property
    def trains(self) -> bool:
        """Whether the steps have begun: from then on the trainer answers the signals."""
        return self.trainer is not None and not self.flag.at_once


def run(options: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    from cktrain.train.stop import StopRequested

    start = Start(options.flag)
    try:
        return _run(options, start)
    except StopRequested:
        return _stopped_before_the_first_step(options, start)
    except Exception:  # what a signal has interrupted may raise another error in its place
        if start.flag.signal is None or not start.flag.at_once:
            raise
        return _stopped_before_the_first_step(options, start)


def _run(options: argparse.Namespace, start: Start) -> int:
    from cktrain.comm.environment import read_process_environment

    process = read_process_environment(os.environ)
    try:
        config = load_config(options.config, options.overrides)
    except (ValueError, OSError):
        if process.rank > 0:
            time.sleep(AFTER_RANK_0_S)
        raise
    from cktrain.host.bind import bind

    binding = bind(
        process,
        mode=config.launch.bind,
        threads=config.launch.threads,
        tensor=config.parallel.tensor,
        progress_core=config.launch.progress_core,
    )

    with contextlib.ExitStack() as owner:
        return _meet_and_train(options, config, process, binding, owner, start)


def _meet_and_train(
    options: argparse.Namespace,
    config: Config,
    process: ProcessEnvironment,
    binding: Binding,
    owner: contextlib.ExitStack,
    start: Start,
) -> int:
    """`owner` keeps the lock of the run's folder; what ends this process without unwinding closes it first."""
    from cktrain.agreed import AgreedError
    from cktrain.comm import bootstrap
    from cktrain.folder_lock import lock_folder
    from cktrain.logs import set_up_logging
    from cktrain.train.stop import StopRequested

    problem, console = "", None
    try:  # before the ranks meet, so that what is said there is kept; all of them hear of a problem when they have met
        note = ""
        if process.rank == 0:
            note = "; ".join(
                lock.note
                for folder in _owned_folders(Path(config.run.dir))
                if (lock := owner.enter_context(lock_folder(folder, "cktrain train", _say))).note
            )
        console = set_up_logging(Path(config.run.dir), process.rank, process.size or 2)
        if note:
            logging.getLogger("cktrain").warning("[lock] %s: %s", config.run.dir, note)
        logging.getLogger("cktrain").info(binding.message)
    except ValueError as error:
        problem = str(error)
    start.flag.check()
    group = bootstrap.init(
        transport=config.comm.transport,
        timeout_s=config.comm.timeout_s,
        environ=os.environ,
        engine_core=binding.progress_core,
        interface=config.comm.interface,
        algorithm=config.comm.algorithm,
        tcp_sockets=config.comm.tcp_sockets,
        table=_table(config),
        device=config.comm.device or binding.rdma_device,
        gid_index=config.comm.gid_index,
        traffic_class=config.comm.traffic_class,
    )
    start.group = group
    start.flag.at_once = group.size == 1  # several ranks agree, so that none is left waiting
    status = 1
    try:
        status = _train(options, config, group, binding.threads, console, problem, start)
    except StopRequested:  # on all ranks
        group.close()
        raise
    except BaseException as error:
        status = _report(error, options, start)
        if group.size > 1:
            owner.close()
            if isinstance(error, AgreedError) and group.rank > 0:
                time.sleep(AFTER_RANK_0_S)
            bootstrap.abort(group, status)
    else:
        group.close()
    return status


def _train(
    options: argparse.Namespace,
    config: Config,
    group: Group,
    threads: int,
    console: Console | None,
    problem: str,
    start: Start,
) -> int:
    from cktrain import __version__, cython_kernels
    from cktrain.agreed import AgreedError
    from cktrain.comm import bootstrap
    from cktrain.compose import compose
    from cktrain.consistency_check import check_agreement
    from cktrain.host.walltime import stop_time
    from cktrain.train.progress_bar import StepBar

    built = stop_at = None
    try:
        stop_at = stop_time(os.environ, config.launch.end_margin_s)
        kernels = cython_kernels.load()
        why = f" ({kernels.why})" if kernels.why else ""
        logging.getLogger("cktrain").info("kernels: %s%s", kernels.label, why)
    except ValueError as error:
        problem = problem or str(error)
    problem = _agree(problem, group, start.flag)
    if not problem:
        try:
            check_agreement(group, config, __version__, kernels.label)
            built = compose(config, group, threads)
        except AgreedError as error:
            problem = str(error)
        except (ValueError, MemoryError) as error:
            problem = _agree(str(error) or "[memory] there is not enough", group, start.flag)
        except OSError as error:
            problem = _agree(in_words(error), group, start.flag)
        else:
            problem = _agree("", group, start.flag)
    if problem:
        if group.rank == 0:
            print(f"cktrain: {problem}", file=sys.stderr, flush=True)
        return EXIT_INPUT
    assert built is not None and console is not None
    if group.rank == 0 and (tables := bootstrap.tables_of(group)) is not None:
        _keep_table(Path(config.run.dir) / TABLE_FILE, tables.text)
    trainer = built.trainer
    trainer.flag = start.flag
    trainer.flag.stop_at = stop_at
    trainer.peak_flops = _peak_flops(trainer.model.num, group)
    _agree("", group, start.flag)
    start.flag.at_once = False
    start.trainer = trainer
    try:
        if group.rank == 0:
            trainer.observers.append(StepBar(console))
        done = trainer.run()
    finally:
        built.close()
    if done:
        return 0
    saved = config.checkpoint.resume != "auto" and built.has_saved()
    logging.getLogger("cktrain").info("resume with: %s", _command_line(options, group, saved))
    return EXIT_STOPPED


def _owned_folders(run_dir: Path) -> list[Path]:
    """What this run alone writes to: its folder, and its checkpoints' where they are linked to from there."""
    checkpoints = run_dir / "checkpoints"
    return [run_dir, checkpoints.resolve()] if checkpoints.is_symlink() else [run_dir]


def _say(text: str) -> None:
    """To the terminal, before there is a log."""
    print(f"cktrain: {text}", file=sys.stderr, flush=True)


def _table(config: Config) -> str | None:
    """The file of algorithms: a run that goes on keeps the one that it began with, so that its bits stay the same."""
    kept = Path(config.run.dir) / TABLE_FILE
    goes_on = config.checkpoint.resume != "none" and kept.exists()
    return str(kept) if goes_on else config.comm.table


def _keep_table(path: Path, text: str) -> None:
    from cktrain.best_effort import BestEffort

    remedy = "The run goes on; resumed, it may choose other algorithms."
    with BestEffort(f"[comm] {path} cannot be written", remedy):
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def _peak_flops(numerics: Numerics, group: Group) -> float:
    """What all ranks can compute at most, FLOP/s, all of them measured at the same time."""
    from cktrain.bench.peak import measure_flops

    group.barrier()
    mine = measure_flops(numerics.kernels, numerics.precision)
    return sum(float(rate) for rate in group.all_gather_bytes(str(mine).encode()))


def _agree(problem: str, group: Group, flag: StopFlag) -> str:
    """What is wrong on any rank, the same text on all: each distinct problem and who has it; empty when all is well.

    Raises StopRequested on all ranks when one of them was asked to stop.
    """
    from cktrain.consistency_check import agree_on_problem
    from cktrain.train.stop import StopRequested

    if any(group.all_gather_bytes(b"stop" if flag.signal else b"")):
        raise StopRequested
    return agree_on_problem(problem, group)


def _stopped_before_the_first_step(options: argparse.Namespace, start: Start) -> int:
    """Say that nothing is lost, and how to start again."""
    from cktrain.comm.environment import read_process_environment

    rank = read_process_environment(os.environ).rank
    again = f"resume with: {_command_line(options, start.group)}"
    text = f"stopped by {start.flag.reason} before the first step: nothing was trained, nothing is lost"
    logger = logging.getLogger("cktrain")
    for line in (text, again):
        if logger.handlers:
            logger.info(line)
        elif rank == 0:
            print(line, flush=True)
    return EXIT_STOPPED


def _report(error: BaseException, options: argparse.Namespace, start: Start) -> int:
    """Say why the run ends, on standard error and in this rank's log; returns the exit status."""
    from cktrain.agreed import AgreedError, AgreedFault
    from cktrain.comm.errors import CommError

    group = start.group
    assert group is not None
    # The others were asked to stop too, and are gone: there is nothing that could be lost.
    if isinstance(error, CommError) and start.flag.signal and not start.trains:
        return _stopped_before_the_first_step(options, start)
    who = f" rank {group.rank}:" if group.size > 1 else ""
    told = isinstance(error, AgreedError) and group.rank > 0  # rank 0 says what all know
    status = EXIT_INPUT if isinstance(error, ValueError) else 1
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    else:
        fate = start.trainer.fate if start.trainer is not None else ""
        text = f"{error} {fate}".strip()
        shown = (AgreedError, CommError, MemoryError, ValueError)
        if not isinstance(error, shown) or (isinstance(error, AgreedFault) and error.__cause__):
            traceback.print_exception(error)
        if isinstance(error, MemoryError):
            text = f"out of memory: {text}"
    if not told:
        print(f"cktrain:{who} {text}", file=sys.stderr, flush=True)
    logging.getLogger("cktrain").error("%s", text, extra={"on_stderr": not told})
    return status


def _command_line(options: argparse.Namespace, group: Group | None, saved: bool = False) -> str:
    """The command that goes on: from what the run has `saved` in its folder, wherever it began itself."""
    from cktrain.comm.environment import read_process_environment

    overrides = list(options.overrides)
    if saved:
        overrides = [text for text in overrides if text.partition("=")[0].strip() != "checkpoint.resume"]
        overrides.append("checkpoint.resume=auto")
    words = ["train", options.config]
    for override in overrides:
        words += ["--set", override]
    if launcher := os.environ.get("CKTRAIN_LAUNCHER"):
        return f"{launcher} {shlex.join(words)}"
    process = read_process_environment(os.environ)
    size = group.size if group is not None else process.size or 1
    program = "srun" if process.source == "slurm" else "mpirun"
    launcher = f"{program} -n {size} " if size > 1 else ""
    return f"{launcher}cktrain {shlex.join(words)}"
