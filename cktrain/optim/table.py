"""The optimizers that a run can ask for, by the name in its configuration."""

from __future__ import annotations

from cktrain.optim.adamw_8bit import AdamW8bit
from cktrain.optim.muon import Muon
from cktrain.optim.optimizer import SGD, AdamW, Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": AdamW, "adamw_8bit": AdamW8bit, "muon": Muon, "sgd": SGD}
