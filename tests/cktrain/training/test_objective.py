"""An objective is the one place that says what is minimised: another one trains another thing, on any layout."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cktrain.config import ObjectiveConfig
from cktrain.config_file import load_config
from cktrain.training.objective import LossSums, NextToken
from cktrain.training.objective_table import OBJECTIVES


class EverySecondLabel(NextToken):
    """Next token, of the even positions alone."""

    def loss(self, model, x, batch, slot, train):
        labels = batch.labels.copy()
        labels[:, 1::2] = -100
        loss, count = model.loss(x, labels, slot, train)
        return LossSums(loss, count, count)


def test_the_objective_decides_what_counts(tiny, composed):
    trainer = composed(tiny(precision="fp64")).trainer
    start, before = trainer.progress, trainer.params.data.copy()
    assert trainer.step().tokens == 8 * 16
    trainer.progress, trainer.params.data[...] = start, before
    trainer.params.refresh()
    trainer.objective = EverySecondLabel()
    assert trainer.step().tokens == 8 * 8


def test_gradients_are_those_of_the_objective(tiny, composed):
    """Central differences of the objective's own loss, in fp64."""
    trainer = composed(tiny(precision="fp64", **{"batch.global_batch_size": 2})).trainer
    objective = EverySecondLabel()
    (batch,) = trainer.loader.micro_batches(0)
    trainer.part.gradients([batch], objective)
    grad, data = trainer.params.grad.copy(), trainer.params.data
    for index in np.random.default_rng(0).integers(0, data.size, 5):
        losses = []
        for move in (1e-6, -1e-6):
            data[index] += move
            trainer.params.refresh()
            losses.append(trainer.stage.evaluate(batch, objective)[0])
            data[index] -= move
        trainer.params.refresh()
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(grad[index], rel=1e-5, abs=1e-7)
    assert type(composed(trainer.config).trainer.objective) is NextToken


def test_the_configuration_names_the_objectives_that_there_are(tiny, composed):
    assert set(get_args(ObjectiveConfig.model_fields["name"].annotation)) == set(OBJECTIVES)
    values = tiny().model_dump(mode="json")
    config = load_config({**values, "objective": {"name": "next_token"}})
    assert config == tiny() and type(composed(config).trainer.objective) is NextToken


def test_an_unknown_objective_is_told_the_known_ones(tiny):
    with pytest.raises(ValueError, match=r"objective\.name: .*next_token.*next-tokens"):
        load_config({**tiny().model_dump(mode="json"), "objective": {"name": "next-tokens"}})
