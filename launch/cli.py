"""The command line. Only the parser is imported at the start: each command binds the process to its cores first and
then imports what it needs.

Exit status: 0 done; 2 the user's input; 75 stopped by a signal after writing a checkpoint; 130 interrupted by Ctrl-C where
there is nothing to save, 128 and a signal's number ended by that there; 1 anything else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cktrain.training.stop import StopFlag

EXIT_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 2, 75, 130

_COMMANDS = {
    "train": ("cktrain.launch.commands.train", "train a model from a YAML file"),
    "finetune": (
        "cktrain.launch.commands.finetune",
        "fine-tune a model on chats or instructions: prepare, plan, train, compare",
    ),
    "launch": ("cktrain.launch.commands.launch", "start a command's ranks, here or on several hosts"),
    "demo": (
        "cktrain.launch.commands.demo",
        "train a small model on Python's own library, measure it, and let it write",
    ),
    "data": ("cktrain.launch.commands.data", "prepare token shards"),
    "generate": ("cktrain.launch.commands.generate", "continue a text with a trained model"),
    "chat": ("cktrain.launch.commands.chat", "talk with a model in the terminal"),
    "evaluate": (
        "cktrain.launch.commands.evaluate",
        "losses, metrics of answers and their intervals on held-out rows",
    ),
    "export": ("cktrain.launch.commands.export", "write a model as a Hugging Face folder or a GGUF file"),
    "import": (
        "cktrain.launch.commands.import_folder",
        "check a Hugging Face folder, or make one of a GGUF file, and print a config that starts from it",
    ),
    "plan": ("cktrain.launch.commands.plan", "memory, bytes on the wire and time of a run, before it starts"),
    "report": ("cktrain.launch.commands.report", "loss curve and bits per byte of a run"),
    "doctor": ("cktrain.launch.commands.doctor", "say what this machine offers, and what is in the way"),
    "bench": ("cktrain.launch.commands.bench", "measure this machine and the framework on it"),
}

_WATCHED = {"train", "finetune", "launch", "export"}
"""Commands whose work is not what they print: it goes on whatever happens to standard output. `data prepare` sees to it
itself, and `data show` is asked for its rows."""

_ALONE = {"generate", "chat", "evaluate", "export", "import", "report", "data"}
"""Commands that work as one process: where a launcher has started several, rank 0 alone does it."""

_STOPPED = {"train", "finetune", "launch"}
"""Commands that signals stop with status 75, whatever they are doing."""

_ANSWERS = {"chat", "generate"}
"""Commands that Ctrl-C may ask to end an answer alone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):  # a locale without the character, a name without an encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    from cktrain.best_effort import watched_streams
    from cktrain.training.stop import StopRequested

    command = arguments[0] if arguments else ""
    with _stopping(command) as flag:
        try:
            with watched_streams(output=command in _WATCHED):
                status = _run(arguments, flag)
        except StopRequested:
            status = _say_stopped(command, flag)
        if argv is None:
            flag.ignore()  # the status is said: no signal changes it while Python ends
        return status


@contextlib.contextmanager
def _stopping(command: str) -> Iterator[StopFlag]:
    """Take the signals before anything else is imported; then let those come that were held back.

    A command that has nothing to save ends by the first, and further ones wait for what it has to tidy; those that were
    ignored stay so, and an interrupt ends what `_ANSWERS` say, not always the command.
    """
    from cktrain.training.stop import SIGNALS, StopFlag

    taken = None
    if command not in _STOPPED:
        taken = [
            number
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
            and not (number == signal.SIGINT and command in _ANSWERS)
        ]
    with StopFlag(at_once=True, signals=taken, second_interrupts=command in _STOPPED) as flag:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield flag


def _say_stopped(command: str, flag: StopFlag) -> int:
    """Say that a signal has ended a command that has nothing to save, or has not begun; returns the exit status."""
    from cktrain.best_effort import watched_streams

    if command in _STOPPED:
        with watched_streams():
            print(f"stopped by {flag.reason} before anything was started: nothing is lost", flush=True)
        return EXIT_STOPPED
    assert flag.signal is not None
    how = "interrupted" if flag.signal == signal.SIGINT else f"ended by {flag.signal.name}"
    print(f"cktrain: {how}; nothing half made was kept", file=sys.stderr)
    _give_up_output()
    return 128 + flag.signal


def _run(arguments: list[str], flag: StopFlag) -> int:
    from cktrain.comm.errors import CommError

    try:
        parser = build_parser(arguments[0] if arguments else None)
        options, unknown = parser.parse_known_args(arguments)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{_as_keys(unknown, options)}")
        options.flag = flag
        _say_unknown_variables()
        flag.check()
        if arguments[0] in _ALONE and _is_another_rank(arguments[0]):
            return 0
        status = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except SystemExit:  # --help, or a mistake on the command line
        _give_up_output()
        raise
    except KeyboardInterrupt:
        print("cktrain: interrupted", file=sys.stderr)
        _give_up_output()
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # who reads what was asked for has seen enough
        _give_up_output()
        return 1
    except OSError as error:
        from cktrain.system_error import in_words

        print(f"cktrain: {in_words(error)}", file=sys.stderr)
        _give_up_output()
        return EXIT_INPUT
    except ValueError as error:
        print(f"cktrain: {error}", file=sys.stderr)
        _give_up_output()
        return EXIT_INPUT
    except CommError as error:  # a RuntimeError
        print(f"cktrain: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        print(
            "cktrain: [system] no thread can be started: a limit of threads (ulimit -u) or memory (ulimit -v) is reached. "
            "Raise it.",
            file=sys.stderr,
        )
        return EXIT_INPUT
    except MemoryError as error:
        said = str(error)
        if not said.startswith("["):  # no sentence of ours
            said = f"[memory] there is not enough: {said or 'an allocation failed'}. Use a smaller model or batch."
        print(f"cktrain: {said}", file=sys.stderr)
        return 1


def _is_another_rank(command: str) -> bool:
    """Whether a launcher has started this process beside rank 0, which says that it alone works."""
    from cktrain.comm.environment import read_process_environment

    process = read_process_environment(os.environ)
    if process.rank == 0 and (process.size or 1) > 1:
        print(
            f"cktrain: note: {command} works as one process: of {process.size} ranks ({process.variables}) rank 0 alone "
            "does it. Start it without a launcher.",
            file=sys.stderr,
            flush=True,
        )
    return process.rank > 0


def _say_unknown_variables() -> None:
    """Once: by rank 0, or by the `cktrain launch` that has started it."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.comm.errors import CommError
    from cktrain.host.variables import unknown_variables

    said = unknown_variables(os.environ)
    if not said or "CKTRAIN_LAUNCHER" in os.environ:
        return
    with contextlib.suppress(
        CommError, OSError, ValueError
    ):  # whoever follows these variables says what is wrong
        if read_process_environment(os.environ).rank == 0:
            for line in said:
                print(f"cktrain: warning: {line}", file=sys.stderr, flush=True)


def _give_up_output() -> None:
    """Where standard output cannot be written, let Python's end not try again: its exit status would be 120."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _as_keys(unknown: Sequence[str], options: argparse.Namespace) -> str:
    """Of arguments that no command has: which keys of the configuration they are, where --set takes these."""
    if not hasattr(options, "overrides"):
        return ""
    from cktrain.config_file import key_from_elsewhere

    answers = ""
    for name in (word.partition("=")[0] for word in unknown if word.startswith("--")):
        known = key_from_elsewhere(name.removeprefix("--").replace("-", "_"))
        answers += f". {name} is a key of the configuration, for --set KEY=VALUE: {known}" if known else ""
    return answers


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser; with a command's name only that command's module is imported and its options are known."""
    parser = argparse.ArgumentParser(prog="cktrain", description="Train transformer language models on CPUs.")
    from cktrain import __version__

    parser.add_argument("--version", action="version", version=f"cktrain {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (module, summary) in _COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=summary)
        if command == name:
            importlib.import_module(module).add_arguments(sub)
    return parser


if __name__ == "__main__":
    sys.exit(main())
