"""`cktrain doctor [CONFIG]`: what this machine offers, what is in the way, and the command that mends it.

Exit status: 0 when training can start, else 1. Under a launcher the first rank of each host prints.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING

from cktrain.config import CommConfig
from cktrain.config_file import load_config
from cktrain.launch import arguments

if TYPE_CHECKING:
    from rich.console import Console

    from cktrain.launch.diagnosis import Choice, Diagnosis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain doctor`."""
    parser.add_argument(
        "config",
        type=arguments.path,
        nargs="?",
        help="YAML file of a run, whose comm: is judged; default: comm's defaults",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of CONFIG",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.overrides and options.config is None:
        raise ValueError("[doctor] --set changes keys of a CONFIG, and none is given. Give one.")
    comm = CommConfig()
    if options.config is not None:
        comm = load_config(options.config, options.overrides).comm
    from cktrain.comm.environment import ProcessEnvironment, read_process_environment
    from cktrain.comm.errors import RendezvousError
    from cktrain.launch.diagnosis_comm import diagnose

    try:
        process = read_process_environment(os.environ)
    except RendezvousError:  # one of the findings
        process = ProcessEnvironment()
    found = diagnose(
        transport=comm.transport, device=comm.device, gid_index=comm.gid_index, interface=comm.interface
    )
    if process.local_rank in (0, None):
        if options.json:
            print(json.dumps(found.as_dict()), flush=True)
        else:
            from rich.console import Console

            render(found, Console(highlight=False, soft_wrap=True))
    return 0 if found.ready else 1


def render(found: Diagnosis, console: Console) -> None:
    """Print it for a person; a command stands on one line, to be copied."""
    from rich.markup import escape

    console.print(f"[bold]{escape(found.host)}[/bold]")
    width = max(len(label) for section in found.sections for label in section.facts)
    for section in found.sections:
        console.print(f"\n[bold]{section.name}[/bold]")
        for label, value in section.facts.items():
            console.print(f"  {escape(label):<{width}}  {escape(value)}")
        for finding in section.findings:
            mark, colour = ("x", "red") if finding.blocks else ("!", "yellow")
            console.print(f"  [{colour}]{mark} {escape(finding.problem)}[/{colour}]")
            console.print(f"    -> {escape(finding.remedy)}")
    console.print("\n[bold]between ranks[/bold]")
    for choice in found.choices:
        console.print(f"  {choice.where}: {escape(_in_words(choice))}")
    verdict = (
        "[green]ready: training can start[/green]" if found.ready else "[red]training cannot start[/red]"
    )
    console.print(f"\n{verdict}")


def _in_words(choice: Choice) -> str:
    words = choice.transport or "none"
    if choice.passed_over:
        words += "; not used: " + "; ".join(f"{each.name}: {each.reason}" for each in choice.passed_over)
    return words
