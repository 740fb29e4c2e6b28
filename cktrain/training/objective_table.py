"""The objectives that a run can ask for, by the name in its configuration (`objective.name`)."""

from __future__ import annotations

from cktrain.training.distillation import Distillation
from cktrain.training.objective import NextToken, Objective
from cktrain.training.preference import Preference

OBJECTIVES: dict[str, type[Objective]] = {"next_token": NextToken, "dpo": Preference, "distill": Distillation}
