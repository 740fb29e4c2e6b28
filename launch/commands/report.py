"""`cktrain report RUN`: loss curve, bits per byte on the whole validation split, n-gram models of the same tokens.

It reads only. What is measured are the weights and the configuration of the newest complete checkpoint; what cannot be
told, since data or a split are not there, is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktrain.launch.arguments import path

if TYPE_CHECKING:
    from cktrain.config import Config
    from cktrain.models.transformer import Transformer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain report`."""
    parser.add_argument("run_dir", type=path, help="folder of a run, or one of its checkpoints")
    parser.add_argument(
        "--plot",
        type=path,
        metavar="FILE",
        help="also draw the losses into FILE, as loss.png (extra plots)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cktrain.checkpoint import MARKER
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment({}))
    from cktrain import cython_kernels
    from cktrain.frozen_base import ChangedBaseError
    from cktrain.report import METRICS_FILE, Curve, plot_losses, read_curve

    found: dict[str, Any] = {"notes": []}

    def say(text: str, note: bool = False) -> None:
        if note:
            found["notes"].append(text)
        if not options.json:
            print(text)

    given = Path(options.run_dir)
    if given.name == METRICS_FILE and given.is_file():
        given = given.parent
    run_dir = given.parent.parent if (given / MARKER).is_file() else given
    if not (run_dir / METRICS_FILE).exists() and (run_dir.parent / METRICS_FILE).is_file():
        run_dir = run_dir.parent  # RUN/best and RUN/checkpoints are given
    try:
        curve = read_curve(run_dir / METRICS_FILE)
    except ValueError as error:
        say(str(error), note=True)
        curve = Curve([], [])
    else:
        found |= {"training": curve.training, "validation": curve.validation}
        say(curve.text())
        if options.plot is not None:
            say(f"loss curve: {plot_losses(curve, run_dir.name, Path(options.plot))}")
    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    try:
        checkpoint, step, config, model = _newest(given, kernels)
    except ChangedBaseError as error:  # of an adapter's run: what was logged is known all the same
        say(f"validation: not measured, because {error}", note=True)
    else:
        found |= {"checkpoint": str(checkpoint), "step": step}
        say(f"checkpoint of step {step}: {checkpoint}")
        found |= _measured(model, config, step, say)
    recorded = next((data for _, data in sorted(curve.measured_on.items(), reverse=True) if data), "")
    if recorded and found.get("data", recorded) != recorded:
        say(
            "validation: these tokens are others than those that the run was validated on: the two losses cannot be "
            "compared",
            note=True,
        )
    if options.json:
        print(json.dumps(found))
    return 0


def _measured(model: Transformer, config: Config, step: int, say: Callable[..., None]) -> dict[str, Any]:
    """Loss over the whole validation split and bits per byte beside n-gram models, as far as they can be had."""
    from cktrain.report import compare_with_ngrams, measure
    from cktrain.training_data import open_training, open_validation

    data = config.data
    try:
        held_out = open_validation(config)
        result = measure(model, config, held_out)
    except ValueError as error:
        say(f"validation: not measured, because {error}", note=True)
        return {}
    found: dict[str, Any] = {
        "loss": result.loss,
        "tokens": result.tokens,
        "bits_per_byte": result.bits_per_byte,
        "data": result.data,
    }
    say(f"validation after step {step}: loss {result.loss:.4f} over {result.tokens:,} tokens")
    if result.parts:
        say("\n".join(f"  {name:<22}loss {loss:.4f}" for name, loss in result.parts.items()))
        return found | {"loss_of_parts": result.parts}
    if result.bits_per_byte is None:
        say(
            "bits per byte: unknown, since the data has a loss mask or does not say how much text it encodes",
            note=True,
        )
        return found
    try:
        (source,) = open_training(data, config.model.vocab_size).values()
        (split,) = held_out.values()
        comparison = compare_with_ngrams(result.bits_per_byte, source, split)
        found["n_grams_bits_per_byte"] = {"2": comparison.bigram, "5": comparison.five_gram}
        say(comparison.table())
    except ValueError as error:
        say(f"  this model            {result.bits_per_byte:.4f} bits per byte")
        say(f"n-gram models: not measured, because {error}", note=True)
    return found


def _newest(given: Path, kernels: Any) -> tuple[Path, int, Config, Transformer]:
    """The newest complete checkpoint, its step, configuration and model; another one where it was rotated away meanwhile.

    Raises ValueError when there is none: untrained weights are not reported.
    """
    from cktrain.config_file import load_config
    from cktrain.foreign_file import read_json
    from cktrain.nn.numerics import Numerics
    from cktrain.precision import choose_precision
    from cktrain.report import State
    from cktrain.saved_model import find_saved_model

    while True:
        saved = find_saved_model(given)
        if saved.hugging_face:
            raise ValueError(f"[report] {given} is a Hugging Face folder, no run. Give the folder of a run.")
        try:
            config = load_config(saved.path / "config.yaml")
            config = config.model_copy(update={"model": saved.config})
            state = read_json(
                saved.path / "state.json", State, area="report", remedy="Give another checkpoint of the run."
            )
            precision = choose_precision(state.precision, [kernels.isa])
            model, _ = saved.load(Numerics(kernels, precision), config.data.sequence_length)
            return saved.path, state.step, config, model
        except (ValueError, OSError):
            if saved.path == given or saved.path.exists():
                raise
            print(f"{saved.path} was removed meanwhile; looking for a newer one", file=sys.stderr)
