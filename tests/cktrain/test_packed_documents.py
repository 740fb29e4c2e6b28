"""Documents packed in one sequence, from the configuration to the gradient: nothing crosses a document's border.

A row of a window holds two documents, each ending with the end-of-document id 0; with `data.document_mask` their losses
and gradients are those of the two alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest

from cktrain.data.shards import ShardWriter

EOS, VOCAB = 0, 61
LENGTHS = 45, 83  # neither starts or ends where the attention kernels' tiles do


@dataclass
class Result:
    loss: float
    count: int
    grad: np.ndarray


def document(length: int, seed: int) -> list[int]:
    return [*np.random.default_rng(seed).integers(1, VOCAB, length - 1).tolist(), EOS]


@pytest.fixture
def train(tiny, composed, tmp_path):
    """`train(documents, precision)` -> Result of one sequence that holds these documents, through `data.path`."""

    def run(documents, precision, *, mask=True, ignored=None, family="llama"):
        ids = [*chain(*documents), 1]  # the last target, which belongs to a next document
        path = tmp_path / f"{abs(hash(tuple(ids)))}.cktok"
        if not path.exists():
            with ShardWriter(path, VOCAB, EOS) as shard:
                shard.append(ids, len(ids))
        values = {
            "model.family": family,
            "model.max_position_embeddings": sum(LENGTHS),
            "data.path": str(path),
            "data.sequence_length": len(ids) - 1,
            "data.document_mask": mask,
            "batch.micro_batch_size": 1,
            "batch.global_batch_size": 1,
        }
        made = composed(tiny(precision=precision, **values), isa=None)
        part, trainer = made.trainer.part, made.trainer
        (batch,) = made.loader.micro_batches(0)
        if ignored is not None:
            labels = batch.labels.copy()
            labels[:, ignored] = -100
            batch = replace(batch, labels=labels)
        part.data.begin()
        (sums,) = part.stage.train([batch], part.schedule[0])
        return Result(sums.loss, sums.labels, trainer.params.grad.copy())

    return run


# fp32: the same sums in another order. bf16: attention's tiles lie elsewhere, so a sum that differs by 1e-7 may be
# rounded to the other neighbour, 2^-8 away; a few of those per element of a gradient.
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-2}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_documents_in_one_sequence_are_the_two_alone(train, precision, family):
    one, two = (document(length, seed) for seed, length in enumerate(LENGTHS))
    packed = train([one, two], precision, family=family)
    alone = [train([d], precision, family=family) for d in (one, two)]
    assert packed.count == sum(a.count for a in alone) == sum(LENGTHS) - 2
    tolerance = TOLERANCES[precision]
    assert packed.loss == pytest.approx(sum(a.loss for a in alone), rel=tolerance)
    expected = alone[0].grad + alone[1].grad
    error = np.abs(packed.grad - expected).max() / np.abs(expected).max()
    assert error < tolerance
    leaking = train([one, two], precision, mask=False, family=family)
    assert np.abs(leaking.grad - expected).max() / np.abs(expected).max() > 3 * tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changed", [0, 1])
def test_not_a_bit_of_one_document_depends_on_the_other(train, precision, changed):
    """With one document's targets ignored, its tokens change neither the loss nor any gradient: terms are zeros."""
    borders = slice(0, LENGTHS[0]), slice(LENGTHS[0], sum(LENGTHS))
    documents = [document(length, seed) for seed, length in enumerate(LENGTHS)]
    others = list(documents)
    others[changed] = document(LENGTHS[changed], 9)
    before = train(documents, precision, ignored=borders[changed])
    after = train(others, precision, ignored=borders[changed])
    assert before.count == LENGTHS[1 - changed] - 1
    assert before.loss == after.loss
    np.testing.assert_array_equal(before.grad, after.grad)
    if changed == 0:  # without the mask the second document sees the first
        leaking = [train(d, precision, ignored=borders[0], mask=False).loss for d in (documents, others)]
        assert leaking[0] != leaking[1]


ROWS = 30, 41, 57  # of the data; one sequence holds them all


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_rows_have_the_losses_of_the_rows_alone(tiny, composed, tmp_path, family):
    """fp32: the same sums in another order, 1e-5. Of each row the second half is learned."""

    def run(name: str, lengths: tuple[int, ...]) -> Result:
        total = sum(ROWS)
        path = tmp_path / f"{name}.cktok"
        with ShardWriter(path, VOCAB, loss_mask=True, row_length=total) as shard:
            ids, learned, begins = [0] * total, [False] * total, [False] * total
            place = 0
            for length in lengths:
                ids[place : place + length] = document(length, length)
                learned[place + length // 2 : place + length] = [True] * (length - length // 2)
                begins[place] = True
                place += length
            if place < total:
                begins[place] = True  # padding
            shard.append(ids, 1, learned, begins)
        values = {
            "model.family": family,
            "model.max_position_embeddings": total,
            "data.path": str(path),
            "data.sequence_length": total,
            "batch.micro_batch_size": 1,
            "batch.global_batch_size": 1,
        }
        made = composed(tiny(precision="fp32", **values), isa=None)
        part, trainer = made.trainer.part, made.trainer
        part.data.begin()
        (sums,) = part.stage.train(made.loader.micro_batches(0), part.schedule[0])
        return Result(sums.loss, sums.labels, trainer.params.grad.copy())

    packed = run("packed", ROWS)
    alone = [run(f"row {length}", (length,)) for length in ROWS]
    assert packed.count == sum(a.count for a in alone) == sum(n - n // 2 for n in ROWS)
    assert packed.loss == pytest.approx(sum(a.loss for a in alone), rel=1e-5)
    expected = sum(a.grad for a in alone)
    assert np.abs(packed.grad - expected).max() / np.abs(expected).max() < 1e-5
