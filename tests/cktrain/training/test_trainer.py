"""The step: unnormalised sums whatever the split, clipping, decay groups, skipped steps, signals, checkpointing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from cktrain.data.loader import Batch
from cktrain.data.shards import ShardWriter
from cktrain.training.divergence import TrainingDiverged

FP64 = {"precision": "fp64"}


def losses(run, steps: int) -> list[float]:
    return [run.trainer.step().loss for _ in range(steps)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_falls(tiny, composed, family):
    config = tiny(**FP64, **{"model.family": family})
    result = losses(composed(config), 20)
    assert result[0] == pytest.approx(np.log(61), abs=0.1)  # fresh weights know nothing
    assert result[-1] < 3.1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("micro", [1, 2, 4, 8])
def test_accumulation_gives_the_whole_batch(tiny, composed, tmp_path, family, micro):
    """fp64 on the reference kernels: only the order of additions differs, 1e-10 over 20 steps."""
    whole = tiny(**FP64, **{"batch.micro_batch_size": 8, "model.family": family})
    parts = tiny(
        **FP64, **{"batch.micro_batch_size": micro, "model.family": family, "run.dir": str(tmp_path / "b")}
    )
    np.testing.assert_allclose(losses(composed(parts), 20), losses(composed(whole), 20), rtol=0, atol=1e-10)


class UnequalLoader:
    """Micro-batches whose numbers of valid targets differ a lot: 1, 31, 0 and 32 of 32."""

    wait_seconds = 0.0

    def __init__(self, micro: int) -> None:
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 61, (8, 16)).astype(np.int32)
        targets = rng.integers(0, 61, (8, 16)).astype(np.int32)
        flat = targets.reshape(4, 32)
        flat[0, 1:] = -100
        flat[1, 5] = -100
        flat[2, :] = -100
        self.batches = [Batch(tokens[i : i + micro], targets[i : i + micro]) for i in range(0, 8, micro)]

    def batch(self, consumed: int) -> list[Batch]:
        return self.batches


def test_unequal_ignore_counts_are_weighted_by_token(tiny, composed, tmp_path):
    """A mean of the micro-batches' means would be off by far more than 1e-10."""
    results = []
    for i, micro in enumerate((2, 8)):
        run = composed(tiny(**FP64, **{"batch.micro_batch_size": micro, "run.dir": str(tmp_path / str(i))}))
        run.trainer.loader = UnequalLoader(micro)
        steps = [run.trainer.step() for _ in range(5)]
        results.append([(s.loss, s.grad_norm, s.tokens) for s in steps])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-10)
    assert results[0][0][2] == 64


def test_tokens_outside_the_loss_mask_do_not_train(tiny, composed, tmp_path):
    """Of two ids in turn only one is learned: the loss is that of its labels alone, and so is the count."""
    path = tmp_path / "masked.cktok"
    with ShardWriter(path, 61, loss_mask=True) as writer:
        writer.append([7, 9] * 400, 0, [True, False] * 400)
    trainer = composed(tiny(**FP64, **{"data.path": str(path)})).trainer
    assert trainer.step().tokens == 8 * 16 // 2
    for _ in range(19):
        result = trainer.step()
    assert result.loss < 0.5
    (batch,) = trainer.loader.micro_batches(0)[:1]
    both = {}
    for label in (7, 9):
        labels = np.where(batch.labels == -100, -100, label).astype(np.int32)
        both[label] = trainer.stage.evaluate(Batch(batch.ids, labels))[0]
    assert both[7] < 0.5 * both[9]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_block_checkpointing_changes_nothing_but_memory(tiny, composed, tmp_path, family):
    plain = composed(tiny(**FP64, **{"model.family": family, "model.num_hidden_layers": 4}))
    again = composed(
        tiny(
            **FP64,
            **{
                "memory.checkpointing": "block",
                "run.dir": str(tmp_path / "b"),
                "model.family": family,
                "model.num_hidden_layers": 4,
            },
        )
    )
    assert losses(plain, 5) == losses(again, 5)
    plans = [run.trainer.model.plan(8, 16) for run in (plain, again)]
    assert plans[1].saved_bytes < 0.5 * plans[0].saved_bytes


def test_weight_decay_spares_biases_and_norms(tiny, composed):
    """With gradients of zero only decay moves weights: matrices shrink, norm weights and biases stay."""
    run = composed(tiny(**FP64, **{"model.family": "gpt2", "optimizer.weight_decay": 0.5}))
    params = run.trainer.params
    for param in params.params:
        param.data[...] = 1.0
    params.grad.fill(0)
    run.trainer.optimizer.step(lr=0.1, grad_scale=1.0, step=1)
    for param in params.params:
        is_matrix = len(param.shape) == 2
        np.testing.assert_allclose(param.data, 0.95 if is_matrix else 1.0, rtol=1e-12, err_msg=param.name)


def test_a_step_starts_from_no_gradient(tiny, composed):
    """The same batch at a learning rate of zero has the same gradient again."""
    trainer = composed(tiny(**FP64, **{"optimizer.lr": 0.0})).trainer
    start = trainer.progress
    first = trainer.step()
    trainer.progress = start
    second = trainer.step()
    assert first.grad_norm > 0 and second.grad_norm == first.grad_norm


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_starts_from_no_gradient_after_a_skipped_one(tiny, composed, monkeypatch, name):
    """What a step leaves in the gradients is nowhere added to, were it not a number."""
    trainer = composed(tiny(**FP64, **{"optimizer.lr": 0.0, "optimizer.name": name})).trainer
    start = trainer.progress
    first = trainer.step()
    assert trainer.params.grad.any()
    backward = trainer.model.backward_loss

    def poisoned(tokens, slot):
        backward(tokens, slot)
        trainer.params.grad[5] = np.nan

    with monkeypatch.context() as patch:
        patch.setattr(trainer.model, "backward_loss", poisoned)
        trainer.progress = start
        assert not trainer.step().applied
    trainer.progress = start
    assert trainer.step().grad_norm == first.grad_norm


def test_clipping_bounds_the_norm(tiny, composed):
    run = composed(
        tiny(
            **FP64,
            **{
                "optimizer.name": "sgd",
                "optimizer.momentum": 0.0,
                "optimizer.weight_decay": 0.0,
                "optimizer.clip_grad_norm": 0.01,
                "schedule.name": "constant",
                "schedule.warmup_steps": 0,
                "optimizer.lr": 1.0,
            },
        )
    )
    before = run.trainer.params.data.copy()
    result = run.trainer.step()
    assert result.grad_norm > 0.1
    moved = np.linalg.norm(run.trainer.params.data - before)
    np.testing.assert_allclose(moved, 0.01, rtol=1e-9)


def test_a_non_finite_gradient_skips_the_step_and_three_end_the_run(tiny, composed, monkeypatch):
    run = composed(tiny(**FP64))
    trainer = run.trainer
    trainer.step()
    before = trainer.params.data.copy()
    moments = {k: v.copy() for k, v in trainer.optimizer.state.items()}
    backward = trainer.model.backward_loss

    def poisoned(tokens, slot):
        backward(tokens, slot)
        trainer.params.grad[5] = np.inf

    monkeypatch.setattr(trainer.model, "backward_loss", poisoned)
    result = trainer.step()
    assert not result.applied
    np.testing.assert_array_equal(trainer.params.data, before)
    for name, moment in moments.items():
        np.testing.assert_array_equal(trainer.optimizer.state[name], moment)
    assert trainer.progress.updates == 1 and trainer.progress.step == 2
    with pytest.raises(TrainingDiverged, match="third skipped step in a row"):
        trainer.run()


def test_metrics_have_the_fields_that_were_promised(tiny, composed, tmp_path):
    config = tiny(**FP64, **{"run.steps": 12, "log.every": 5})
    assert composed(config).trainer.run()
    lines = [json.loads(line) for line in (Path(config.run.dir) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 5, 10, 12]
    wanted = {
        "step",
        "loss",
        "grad_norm",
        "lr",
        "tokens",
        "tps",
        "tflops",
        "mfu",
        "memory_bytes",
        "comm_ms",
        "data_ms",
    }
    assert all(set(line) == wanted for line in lines)
    assert lines[-1]["tokens"] == 12 * 8 * 16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(tiny, composed, tmp_path, number, monkeypatch):
    run = composed(tiny(**FP64))
    trainer = run.trainer
    step = trainer.step

    def signalled(*, stop=False):
        if trainer.progress.step == 3:
            os.kill(os.getpid(), number)
        return step(stop=stop)

    monkeypatch.setattr(trainer, "step", signalled)
    assert trainer.run() is False
    assert trainer.progress.step == 5  # the flag is read before the next step
    assert (trainer.checkpoint_folder / "step-00000005" / "COMPLETE").exists()


def test_bad_data_in_mid_run_saves_what_was_trained(tiny, composed, tokens_file):
    """Windows are read in order, so the id at 900 comes in step 8 (8 sequences of 16 tokens a step)."""
    ids = np.fromfile(tokens_file, np.uint16)
    ids[900] = 999
    ids.tofile(tokens_file)
    trainer = composed(tiny(**FP64, **{"data.shuffle": False})).trainer
    with pytest.raises(
        ValueError, match=r"token id 999 at position 900 .*vocabulary of 61.* 7 steps are saved in"
    ) as error:
        trainer.run()
    path = Path(str(error.value).split("saved in ")[1].rstrip("."))
    assert (path / "COMPLETE").exists() and path.name == "step-00000007"


def test_a_step_without_a_label_is_said_with_its_rows(tiny, composed, tmp_path, caplog):
    path = tmp_path / "masked.cktok"
    with ShardWriter(path, 61, loss_mask=True, row_length=16) as shard:
        for learned in ([True] * 15, [False] * 15, [True] * 15):
            shard.append(range(16), 1, [False, *learned], [True, *[False] * 15])
    values = {"data.path": str(path), "data.shuffle": False, "batch.micro_batch_size": 1}
    run = composed(tiny(**FP64, **values, **{"batch.global_batch_size": 1}))
    tokens = [run.trainer.step().tokens for _ in range(3)]
    assert tokens == [15, 0, 15]
    (record,) = (record for record in caplog.records if "no label" in record.getMessage())
    assert "step 2 has no label: every token of its 1 sequences (1 of the data" in record.getMessage()
