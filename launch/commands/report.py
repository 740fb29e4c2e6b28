"""`cktrain report RUN`: loss curve, bits per byte on the whole validation split, n-gram models of the same tokens."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain report`."""
    parser.add_argument("run_dir", help="folder of a run")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cktrain.config_file import load_config

    run_dir = Path(options.run_dir)
    config = load_config(run_dir / "config.yaml", ["run.dir=" + str(run_dir), "data.validation.every=1"])
    from cktrain.comm.environment import read_process_environment
    from cktrain.launch.bind import bind

    binding = bind(
        read_process_environment(os.environ), mode=config.launch.bind, threads=config.launch.threads
    )
    from cktrain.comm.solo_group import SoloGroup
    from cktrain.launch.compose import compose
    from cktrain.report import compare_with_ngrams, plot_losses

    print(f"loss curve: {plot_losses(run_dir)}")
    built = compose(config, SoloGroup(), binding.threads)
    try:
        validator = built.trainer.validator
        assert validator is not None
        result = validator.run(batches=None)
        print(
            f"validation after step {built.trainer.progress.step}: loss {result.loss:.4f} over {result.tokens:,} tokens"
        )
        if result.bits_per_byte is None:
            print("bits per byte: unknown, since raw token files don't say how much text they encode")
        else:
            print(compare_with_ngrams(result.bits_per_byte, built.loader.source, validator.source).table())
    finally:
        built.close()
    return 0
