"""`cktrain train CONFIG [--set a.b=c]…`: bind, join the other ranks, compose, train."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import time
import traceback
from typing import TYPE_CHECKING

from cktrain.config_file import load_config
from cktrain.launch import arguments

if TYPE_CHECKING:
    from cktrain.comm.group import Group
    from cktrain.session import Session

EXIT_INPUT = 2
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
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


def run(options: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.process import bind_for

    process = read_process_environment(os.environ)
    try:
        config = load_config(options.config, options.overrides)
    except (ValueError, OSError):
        if process.rank > 0:
            time.sleep(AFTER_RANK_0_S)
        raise
    binding = bind_for(config.launch, config.parallel.tensor, process)
    from cktrain.session import Session
    from cktrain.training.stop import StopRequested

    session = Session(config, process, binding, options.flag, os.environ, _say)
    try:
        return _train(options, session)
    except StopRequested:
        return _stopped_before_the_first_step(options, session)
    except Exception:  # what a signal has interrupted may raise another error in its place
        if options.flag.signal is None or not options.flag.at_once:
            raise
        return _stopped_before_the_first_step(options, session)
    finally:
        session.release()


def _train(options: argparse.Namespace, session: Session) -> int:
    """Every rank ends with a status of its own; one that cannot go on ends the others, after the folder is given back."""
    from cktrain.agreed import AgreedError
    from cktrain.comm import bootstrap
    from cktrain.consistency_check import AgreedProblem, LoneProblem
    from cktrain.training.stop import StopRequested

    group = session.meet()
    try:
        try:
            session.compose()
        except AgreedProblem as problem:
            if group.rank == 0:
                print(f"cktrain: {problem}", file=sys.stderr, flush=True)
            group.close()
            return EXIT_INPUT
        except LoneProblem:
            if group.rank > 0:  # rank 0 may have it too, and be the one to say it
                time.sleep(AFTER_RANK_0_S)
            raise
        done = session.train()
    except StopRequested:  # on all ranks
        group.close()
        raise
    except BaseException as error:
        status = _report(error, options, session)
        if isinstance(error, KeyboardInterrupt) and group.rank == 0 and session.trains:
            _say_how_to_resume(options, session)
        if group.size > 1:
            session.release()
            if isinstance(error, AgreedError) and group.rank > 0:
                time.sleep(AFTER_RANK_0_S)
            bootstrap.abort(group, status)
        return status
    group.close()
    if done:
        return 0
    _say_how_to_resume(options, session)
    return EXIT_STOPPED


def _say_how_to_resume(options: argparse.Namespace, session: Session) -> None:
    saved = session.config.checkpoint.resume != "auto" and session.has_saved()
    logging.getLogger("cktrain").info("resume with: %s", _command_line(options, session.group, saved))


def _say(text: str) -> None:
    """To the terminal, before there is a log."""
    print(f"cktrain: {text}", file=sys.stderr, flush=True)


def _stopped_before_the_first_step(options: argparse.Namespace, session: Session) -> int:
    """Say that nothing is lost, and how to start again."""
    from cktrain.comm.environment import read_process_environment

    rank = read_process_environment(os.environ).rank
    again = f"resume with: {_command_line(options, session.group)}"
    text = f"stopped by {session.flag.reason} before the first step: nothing was trained, nothing is lost"
    logger = logging.getLogger("cktrain")
    for line in (text, again):
        if logger.handlers:
            logger.info(line)
        elif rank == 0:
            print(line, flush=True)
    return EXIT_STOPPED


def _report(error: BaseException, options: argparse.Namespace, session: Session) -> int:
    """Say why the run ends, on standard error and in this rank's log; returns the exit status."""
    from cktrain.agreed import AgreedError, AgreedFault
    from cktrain.comm.errors import CommError

    group = session.group
    assert group is not None
    # The others were asked to stop too, and are gone: there is nothing that could be lost.
    if isinstance(error, CommError) and session.flag.signal and not session.trains:
        return _stopped_before_the_first_step(options, session)
    who = f" rank {group.rank}:" if group.size > 1 else ""
    told = isinstance(error, AgreedError) and group.rank > 0  # rank 0 says what all know
    status = EXIT_INPUT if isinstance(error, ValueError) else 1
    if isinstance(error, KeyboardInterrupt):
        text, status = f"interrupted. {session.fate}".strip(), EXIT_INTERRUPTED
    else:
        text = f"{error} {session.fate}".strip()
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
