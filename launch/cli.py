"""The command line. Only the parser is imported at the start: each command binds the process to its cores first and
then imports what it needs.

Exit status: 0 done; 2 the user's input; 75 stopped by a signal after writing a checkpoint; 1 anything else.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

EXIT_INPUT = 2

_COMMANDS = {
    "train": ("cktrain.launch.commands.train", "train a model from a YAML file"),
    "launch": ("cktrain.launch.commands.launch", "start a command's ranks, here or on several hosts"),
    "data": ("cktrain.launch.commands.data", "prepare token shards"),
    "generate": ("cktrain.launch.commands.generate", "continue a text with a trained model"),
    "export": ("cktrain.launch.commands.export", "write a checkpoint as a Hugging Face folder"),
    "import": (
        "cktrain.launch.commands.import_folder",
        "check a Hugging Face folder and print a config that starts from it",
    ),
    "plan": ("cktrain.launch.commands.plan", "memory, bytes on the wire and time of a run, before it starts"),
    "report": ("cktrain.launch.commands.report", "loss curve and bits per byte of a run"),
    "doctor": ("cktrain.launch.commands.doctor", "say what this machine offers, and what is in the way"),
    "bench": ("cktrain.launch.commands.bench", "measure this machine and the framework on it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):  # a locale without the character, a name without an encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    from cktrain.comm.errors import CommError

    parser = build_parser(arguments[0] if arguments else None)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except OSError as error:
        from cktrain.launch.system_error import in_words

        print(f"cktrain: {in_words(error)}", file=sys.stderr)
        return EXIT_INPUT
    except ValueError as error:
        print(f"cktrain: {error}", file=sys.stderr)
        return EXIT_INPUT
    except MemoryError as error:
        print(
            f"cktrain: [memory] there is not enough: {error}. Use a smaller model or batch.", file=sys.stderr
        )
        return 1
    except CommError as error:
        print(f"cktrain: {error}", file=sys.stderr)
        return 1


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
