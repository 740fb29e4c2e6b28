"""The trackers that a run is configured with: who watches it for TensorBoard and for Weights & Biases."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cktrain.config import Config
from cktrain.training.observer import Observer
from cktrain.training.tensorboard_events import TensorBoardEvents
from cktrain.training.wandb_run import WandbRun


def missing_package(config: Config) -> str:
    """What is wrong where a tracker is asked for and its package is not installed; empty otherwise."""
    log = config.log
    for key, wanted, package in (
        ("tensorboard", log.tensorboard, "tensorboardX"),
        ("wandb", log.wandb is not None, "wandb"),
    ):
        if wanted and importlib.util.find_spec(package) is None:
            return (
                f"[log] log.{key} needs {package}, which is not installed. Install it (pip install {package}), or leave "
                "the key out."
            )
    return ""


def trackers(config: Config, identity: str) -> list[Observer]:
    """For rank 0; `identity` is the run's name for itself."""
    found: list[Observer] = []
    folder = Path(config.run.dir)
    if config.log.tensorboard:
        found.append(TensorBoardEvents(folder))
    if config.log.wandb is not None:
        found.append(WandbRun(config.log.wandb, folder, identity, config.model_dump(mode="json")))
    return found
