"""`cktrain demo`: train a small Llama on the source of this Python's standard library, measure it, and let it write.

It is four commands one after the other, in one process: `data prepare`, `train` with examples/demo.yaml, which is installed
with the package, `report` and `generate`. Each says what it does; the first that does not succeed ends the demo with its
status. Begun again it goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
from importlib import resources

from cktrain.launch import arguments

DATA = "data/demo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain demo`."""
    parser.add_argument(
        "-o", "--out", type=arguments.path, default="runs/demo", metavar="RUN", help="folder of the run"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the configuration, for instance --set run.steps=100",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind
    from cktrain.launch.cli import main

    process = read_process_environment(os.environ)
    if (process.size or 1) > 1:
        raise ValueError(
            f"[demo] {process.size} ranks were started, and it prepares as one. Start `cktrain data prepare` alone, then "
            "`cktrain train` with them."
        )
    # What draws is an extra.
    drawn = importlib.util.find_spec("matplotlib") is not None
    plot = ["--plot", os.path.join(options.out, "loss.png")] if drawn else []
    bind(process)  # before the first of the commands loads numpy
    with resources.as_file(resources.files("cktrain") / "demo.yaml") as config:
        sets = [word for given in (f"run.dir={options.out}", *options.overrides) for word in ("--set", given)]
        for words in (
            ["data", "prepare", "python-stdlib", DATA, "--vocab-size", "2048", "--reuse"],
            ["train", str(config), *sets],
            ["report", options.out, *plot],
        ):
            if status := main(words):
                return status
    if not drawn:
        print("No curve was drawn: matplotlib is not installed (`pip install 'cktrain[plots]'`).", flush=True)
    print('\nThe model continues "def ":', flush=True)
    return main(["generate", options.out, "--prompt", "def "])
