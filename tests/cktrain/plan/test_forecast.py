"""A whole run's forecast, by hand, and the size of a checkpoint against one that was written."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from cktrain.parallel.mesh import Mesh
from cktrain.plan.forecast import Forecast, checkpoint_bytes, forecast, forecast_text, sequences_of
from cktrain.plan.plan import Machine, Plan, make_plan
from cktrain.plan.step import StepPrediction

ALONE = Mesh(1, 1, 1)
NOON = datetime.datetime(2026, 1, 1, 12, 0)


def plan_of(config, step: float | None = 2.0, memory: int | None = None) -> Plan:
    """A plan whose step takes so many seconds, on a machine with so much memory, or with what it needs."""
    plan = make_plan(config, ALONE, "fp32", Machine(1, 1, memory or 0))
    time = None if step is None else StepPrediction(step, step, 0.0, 0.0, 0.0, 0.0, 0.0)
    machine = plan.machine if memory else Machine(1, 1, plan.node_bytes)
    return replace(plan, step=time, spread=0.03, machine=machine)


def test_time_energy_and_price(tiny):
    """6,000 tokens are 374 sequences of 16; 2 epochs are 748, in 94 steps of 8 and 188 s."""
    config = tiny(**{"run.steps": None, "run.epochs": 2})
    found = forecast(config, plan_of(config), watts=3600.0, price_per_hour=36.0)
    assert (found.sequences, found.steps, found.seconds) == (374, 94, 188.0)
    assert (found.kwh, found.price) == (pytest.approx(0.188), pytest.approx(1.88))
    text = forecast_text(found, config, NOON)
    assert "data: 374 sequences of 16 tokens" in text
    assert "run: 94 steps, 3m08s ± 3 % and validation: done at 2026-01-01 12:03 if it began now" in text
    assert "energy: 0.188 kWh" in text and "price: 1.88" in text


def test_max_time_is_the_end(tiny):
    config = tiny(**{"run.max_time": "30s"})
    found = forecast(config, plan_of(config))
    assert found.seconds == 30.0
    assert "20 steps, 30s (run.max_time) ± 3 %" in forecast_text(found, config, NOON)
    assert found.kwh is None and found.price is None


def test_what_is_not_known_is_said(tiny):
    config = tiny(**{"run.steps": None, "run.tokens": 5000, "data.path": "not/there"})
    found = forecast(config, plan_of(config, step=None))
    assert (found.sequences, found.steps, found.seconds) == (None, None, None)
    assert "how many steps it has is not known, since not/there is not there yet" in forecast_text(
        found, config, NOON
    )


def test_rows_and_their_trained_share(tiny):
    found = Forecast(40, 122, 9000, 0.4567, 10, None, None, 2**20, 5 * 2**20, None, None, 16, 3)
    text = forecast_text(found, tiny(), NOON)
    assert "data: 122 rows in 40 sequences of 16 tokens; of the rows' 9,000 tokens 45.7% are trained" in text
    assert "disk: checkpoints of 1.0 MiB, 5.0 MiB at most at a time (checkpoint.keep 3)" in text
    assert "this memory would hold sequences of about 16 tokens, or about 3 layers of this shape" in text


def test_sequences_of_a_prepared_folder():
    packed = {"splits": {"train": {"sequences": 7, "shards": []}}}
    assert sequences_of(packed, "train", 16) == 7
    text = {"splits": {"train": {"shards": [{"tokens": 100}, {"tokens": 61}]}}}
    assert sequences_of(text, "train", 16) == 10


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "muon", "sgd"])
def test_the_size_of_a_checkpoint(tiny, composed, tmp_path, optimizer):
    """But for the headers of its files and the state."""
    config = tiny(
        **{"run.steps": 1, "optimizer.name": optimizer, "schedule.warmup_steps": 0, "precision": "fp32"}
    )
    assert composed(config, "generic").trainer.run()
    (written,) = (tmp_path / "run" / "checkpoints").glob("step-*/rank*.safetensors")
    assert 0 <= written.stat().st_size - checkpoint_bytes(config) < 10_000


def test_the_largest_that_fits_fits_and_the_next_does_not(tiny):
    config = tiny(**{"model.max_position_embeddings": 4096})
    memory = plan_of(config).node_bytes + 3 * 2**20
    plan = plan_of(config, memory=memory)
    found = forecast(config, plan)

    def bytes_of(**changes):
        return make_plan(
            tiny(**{"model.max_position_embeddings": 4096, **changes}), ALONE, "fp32", plan.machine
        ).node_bytes

    assert 16 < found.longest_sequence < 4096 and found.most_layers is not None
    assert bytes_of(**{"data.sequence_length": found.longest_sequence}) <= memory
    assert bytes_of(**{"data.sequence_length": 2 * found.longest_sequence}) > memory
    assert bytes_of(**{"model.num_hidden_layers": found.most_layers}) <= memory
    assert bytes_of(**{"model.num_hidden_layers": found.most_layers + 1}) > memory


def test_what_does_not_fit_as_it_is_has_no_largest(tiny):
    config = tiny()
    found = forecast(config, plan_of(config, memory=1000))
    assert (found.longest_sequence, found.most_layers) == (0, 0)
    assert "would hold" not in forecast_text(found, config, NOON)
