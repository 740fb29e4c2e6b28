"""Preference: losses and gradients of pairs, their references, and what a run of them leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from preferences import preference_config, prepared

from cktrain.cython_kernels import load
from cktrain.training.preference import Answers, Preference, pair_loss
from cktrain.training.reference import FILE, AdapterOff, Precomputed, adapters_off

SMOOTHED = {"name": "dpo", "beta": 0.7, "label_smoothing": 0.2}
NORMALIZED = {"name": "dpo", "beta": 2.0, "length_normalized": True}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    return prepared(tmp_path)


@pytest.fixture
def run(tmp_path, data, composed):
    """`run(**blocks)` -> a composed run of preference."""
    load("reference")
    return lambda **blocks: composed(preference_config(tmp_path, *data, **blocks))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.3}, {"length_normalized": True}])
def test_the_slope_of_a_pair_is_its_central_difference(options):
    rng = np.random.default_rng(1)
    logp, reference, lengths = -50 * rng.random(8), -50 * rng.random(8), rng.integers(1, 9, 8)
    found = pair_loss(logp, reference, lengths, 0.3, **options)
    for index in range(8):
        moved = [logp.copy(), logp.copy()]
        moved[0][index] += 1e-6
        moved[1][index] -= 1e-6
        above, below = (pair_loss(each, reference, lengths, 0.3, **options).loss.sum() for each in moved)
        assert (above - below) / 2e-6 == pytest.approx(found.gradient[index], rel=1e-6, abs=1e-8)


def test_losses_far_from_zero_do_not_overflow():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = pair_loss(np.array([0.0, -9e4, -9e4, 0.0]), np.zeros(4), np.ones(4, int), 1.0)
    assert found.loss.tolist() == [0.0, 9e4]
    assert found.gradient.tolist() == [0.0, 0.0, -1.0, 1.0]


@pytest.mark.parametrize("objective", [{"name": "dpo"}, SMOOTHED, NORMALIZED])
@pytest.mark.parametrize("adapter", [{"r": 3}, None], ids=["lora", "full"])
def test_gradients_are_those_of_the_loss(run, objective, adapter):
    """Central differences of the objective's own loss, in fp64, after a step away from the reference."""
    trainer = run(objective=objective, adapter=adapter).trainer
    trainer.step()
    trainer.step()
    batches = trainer.objective.prepare(trainer.part.stage, trainer.loader.micro_batches(4), "train")
    trainer.part.gradients(batches, trainer.objective)
    grad, values = trainer.params.grad.copy(), trainer.params.data
    largest = np.argsort(-np.abs(grad))[:3]
    for index in [*largest, *np.random.default_rng(0).integers(0, values.size, 4)]:
        losses = []
        for move in (1e-5, -1e-5):
            values[index] += move
            trainer.params.refresh()
            losses.append(sum(trainer.stage.evaluate(b, trainer.objective).loss for b in batches))
            values[index] -= move
        trainer.params.refresh()
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(grad[index], rel=1e-5, abs=1e-8)
    assert np.abs(grad).max() > 1e-3


def test_a_run_begins_at_its_reference_and_learns_to_prefer(run):
    trainer = run(run={"steps": 16}, adapter=None, objective={"name": "dpo", "beta": 1.0}).trainer
    steps = [trainer.step() for _ in range(16)]
    assert steps[0].loss == pytest.approx(np.log(2), abs=1e-12)
    assert steps[0].measures["rewards/margins"] == pytest.approx(0.0, abs=1e-12)
    assert steps[-1].loss < 0.3 and steps[-1].measures["rewards/accuracies"] == 1.0
    last = steps[-1].measures
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"])
    assert last["logps/chosen"] < 0


def test_both_references_are_the_same_numbers(run, tmp_path):
    """With an adapter the reference is computed beside each step, or before all of them."""
    off, before = (
        run(
            objective={**SMOOTHED, "reference": kind},
            run={"dir": str(tmp_path / kind), "steps": 4},
        ).trainer
        for kind in ("adapter_off", "precomputed")
    )
    assert type(off.objective.references) is AdapterOff and not (tmp_path / "adapter_off" / FILE).exists()
    assert type(before.objective.references) is Precomputed and (tmp_path / "precomputed" / FILE).exists()
    for _ in range(3):
        mine, other = off.step(), before.step()
        assert (mine.loss, mine.grad_norm, mine.measures) == (other.loss, other.grad_norm, other.measures)
    assert np.array_equal(off.params.data, before.params.data)
    assert off.validator.run() == before.validator.run()


def test_all_weights_are_held_to_what_they_were(run):
    trainer = run(adapter=None).trainer
    batches = trainer.loader.micro_batches(0)
    first = [b.reference for b in trainer.objective.prepare(trainer.stage, batches, "train")]
    trainer.step()
    again = [b.reference for b in trainer.objective.prepare(trainer.stage, batches, "train")]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert trainer.step().loss != pytest.approx(np.log(2), abs=1e-3)


def test_micro_batches_are_of_no_matter(run, tmp_path):
    one, two = (
        run(
            run={"dir": str(tmp_path / str(size)), "steps": 4},
            batch={"micro_batch_size": size, "global_batch_size": 2},
        ).trainer
        for size in (1, 2)
    )
    for _ in range(3):
        a, b = one.step(), two.step()
        assert a.loss == pytest.approx(b.loss, abs=1e-12)
        assert a.measures == pytest.approx(b.measures, abs=1e-10)


@pytest.mark.parametrize("adapter", [{"r": 3, "lora_dropout": 0.1}, None], ids=["lora", "full"])
def test_a_run_that_goes_on_is_the_same_bit_by_bit(run, tmp_path, adapter):
    whole = run(adapter=adapter, run={"dir": str(tmp_path / "whole"), "steps": 4}).trainer
    steps = [whole.step() for _ in range(4)]
    first = run(adapter=adapter).trainer
    for _ in range(2):
        first.step()
    first.save()
    second = run(adapter=adapter).trainer
    assert second.progress.step == 2
    again = [second.step() for _ in range(2)]
    assert [(s.loss, s.grad_norm, s.measures) for s in again] == [
        (s.loss, s.grad_norm, s.measures) for s in steps[2:]
    ]
    assert np.array_equal(whole.params.data, second.params.data)


def test_a_reference_that_is_gone_ends_a_run_of_all_weights(run, tmp_path):
    first = run(adapter=None).trainer
    first.step()
    first.save()
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(ValueError, match=r"is no longer that\. Put the file back"):
        run(adapter=None)


def test_a_reference_of_other_data_is_computed_again(run, tmp_path):
    """Beside a run that begins afresh stands that of the one before."""
    run(adapter=None)
    made = (tmp_path / "run" / FILE).read_bytes()
    run(adapter=None)
    assert (tmp_path / "run" / FILE).stat().st_size == len(made)
    (tmp_path / "more").mkdir()
    _, other = prepared(tmp_path / "more", count=30)
    run(adapter=None, data={"path": str(other), "sequence_length": 128})
    assert (tmp_path / "run" / FILE).stat().st_size != len(made)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ({"adapter": None}, "there is no adapter"),
        ({"adapter": {"r": 2, "modules_to_save": ["norm"]}}, "adapter.modules_to_save trains weights"),
    ],
)
def test_an_adapter_that_cannot_be_switched_off_is_told(run, blocks, why):
    with pytest.raises(ValueError, match=f"adapter_off, and {why}.*precomputed"):
        run(objective={"name": "dpo", "reference": "adapter_off"}, **blocks)


def test_rows_are_of_the_objective(run, tiny, composed, data):
    with pytest.raises(ValueError, match=r"holds preference pairs, and objective\.name is next_token"):
        run(objective={"name": "next_token"})
    with pytest.raises(ValueError, match=r"objective\.name is dpo, and .* holds no preference pairs"):
        composed(tiny(objective={"name": "dpo"}))


def test_keys_of_another_objective_are_told(tmp_path, data):
    with pytest.raises(ValueError, match="beta is of the objective dpo, and name is next_token"):
        preference_config(tmp_path, *data, objective={"beta": 0.2})


def test_metrics_have_the_names_of_trl(run, tmp_path):
    trainer = run(log={"every": 1}).trainer
    assert trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train, validation = ([line for line in lines if key in line] for key in ("loss", "val_loss"))
    assert len(train) == 4 and len(validation) == 2
    for name in Preference.measures:
        assert all(name in line for line in train) and all(f"val_{name}" in line for line in validation)
    assert train[-1]["tokens"] > 4 * 2


def test_an_answer_is_all_of_its_labels(run):
    trainer = run().trainer
    (batch, *_) = trainer.loader.micro_batches(0)
    answers = Answers.of(batch)
    assert len(answers.lengths) % 2 == 0 and answers.lengths.sum() == (batch.labels != -100).sum()
    with adapters_off(trainer.model):
        assert all(not m.adapters for m in trainer.model.modules() if hasattr(m, "adapters"))
