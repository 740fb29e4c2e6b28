"""What becomes of `micro_batch_size: auto` and of accumulation, and that losses are the same whatever is chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain import cython_kernels
from cktrain.parallel.mesh import Mesh
from cktrain.plan.batch_sizes import ROWS_AT_ONCE, resolve_batch
from cktrain.plan.plan import Machine, node_bytes

ALONE = Mesh(1, 1, 1)
FP64 = {"precision": "fp64", "run.steps": 4}


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    """The kernel set that keeps no memory of its own."""
    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    yield
    monkeypatch.delenv("CKTRAIN_ISA", raising=False)
    cython_kernels.load()


def sizes(config, mesh=ALONE, memory=1 << 40, before=None):
    resolved, words = resolve_batch(config, mesh, "fp64", Machine(1, mesh.world, memory), before)
    batch = resolved.batch
    assert batch.gradient_accumulation_steps is None
    return (batch.micro_batch_size, batch.global_batch_size), words


@pytest.mark.parametrize(
    ("batch", "length", "mesh", "chosen"),
    [
        (16, 64, ALONE, 16),
        (36, 64, ALONE, 18),  # 36 x 64 tokens would be more than are of use
        (16, 4096, ALONE, 1),
        (6, 512, ALONE, 3),
        (16, 64, Mesh(4, 1, 1), 4),
        (16, 64, Mesh(1, 2, 1), 2),  # eight micro-batches for two stages
        (4, 64, Mesh(1, 2, 1), 1),
        (6, 3, Mesh(1, 1, 2), 6),  # 2 x 3 tokens divide over two tensor ranks, 3 x 3 do not
    ],
)
def test_auto_is_the_largest_that_is_of_use(tiny, batch, length, mesh, chosen):
    keys = {
        "batch.micro_batch_size": "auto",
        "batch.global_batch_size": batch,
        "data.sequence_length": length,
    }
    found, words = sizes(tiny(**keys), mesh)
    assert found == (chosen, batch)
    assert f"micro_batch_size auto: {chosen} of {batch} sequences, {chosen * length:,} tokens" in words


@given(
    batch=st.integers(1, 300), length=st.integers(1, 3000), data=st.integers(1, 4), stages=st.integers(1, 3)
)
def test_auto_divides_the_batch(batch, length, data, stages):
    from cktrain.plan.batch_sizes import _sizes

    mesh = Mesh(data, stages, 1)
    found = list(_sizes(batch, length, mesh))
    assert found == sorted(found, reverse=True) and found[-1] == 1
    assert all(batch % size == 0 for size in found)
    assert all(size * length <= ROWS_AT_ONCE for size in found[:-1])


def test_auto_fits_into_the_memory(tiny):
    config = tiny(**{"batch.micro_batch_size": "auto"})
    enough = node_bytes(tiny(**{"batch.micro_batch_size": 4}), ALONE, "fp64", Machine(1, 1, 0))
    found, words = sizes(config, memory=enough)
    assert found == (4, 8) and "8 would be of use and do not fit" in words
    assert sizes(config, memory=enough - 1)[0] == (2, 8)
    assert sizes(config, memory=1)[0] == (1, 8)  # whether it fits is another question


def test_accumulation_is_of_all_data_ranks(tiny):
    config = tiny(**{"batch.global_batch_size": None, "batch.gradient_accumulation_steps": 3})
    found, words = sizes(config, Mesh(2, 1, 1))
    assert found == (2, 12)
    assert "12 sequences a step: micro_batch_size 2 x gradient_accumulation_steps 3 x data ranks 2" in words


def test_data_ranks_that_do_not_divide_the_batch_are_told(tiny):
    with pytest.raises(ValueError, match="global_batch_size 8 is not a multiple of 3 data ranks"):
        sizes(tiny(**{"batch.micro_batch_size": "auto"}), Mesh(3, 1, 1))


def test_a_run_that_goes_on_keeps_its_size_where_the_batch_has_it(tiny):
    auto = {"batch.micro_batch_size": "auto"}
    before = tiny(**{"batch.micro_batch_size": 2})
    found, words = sizes(tiny(**auto), before=before)
    assert found == (2, 8) and words == "batch: micro_batch_size auto: 2, as the run began"
    assert sizes(tiny(**auto, **{"batch.global_batch_size": 4}), before=before)[0] == (4, 4)
    assert sizes(tiny(**auto), Mesh(8, 1, 1), before=before)[0] == (1, 8)


def test_bits_that_hang_on_nothing_need_a_size_that_hangs_on_nothing(tiny):
    keys = {"batch.micro_batch_size": "auto", "run.deterministic": True}
    assert {sizes(tiny(**keys), Mesh(n, 1, 1), memory)[0] for n in (1, 2) for memory in (1, 1 << 40)} == {
        (1, 8)
    }


def test_losses_are_those_of_any_size(tiny, composed, tmp_path):
    """Sums of fp64 in another order: 1e-12 of a loss of about 4. A run that goes on from `auto` is the same run."""
    chosen = {
        "auto": {"batch.micro_batch_size": "auto"},
        "ones": {"batch.micro_batch_size": 1},
        "steps": {"batch.global_batch_size": None, "batch.gradient_accumulation_steps": 4},
    }
    losses = {}
    for name, keys in chosen.items():
        trainer = composed(tiny(**FP64, **keys, **{"run.dir": str(tmp_path / name)})).trainer
        losses[name] = [trainer.step().loss for _ in range(4)]
    assert losses["auto"] == pytest.approx(losses["ones"], rel=1e-12)
    assert losses["auto"] == pytest.approx(losses["steps"], rel=1e-12)
    assert len(set(losses["auto"])) == 4


def test_a_saved_run_names_the_number_and_keeps_it(tiny, composed, monkeypatch):
    from cktrain.config_file import load_config

    config = tiny(**FP64, **{"batch.micro_batch_size": "auto"})
    enough = node_bytes(tiny(**{"batch.micro_batch_size": 4}), ALONE, "fp64", Machine(1, 1, 0))
    monkeypatch.setattr("cktrain.plan.admission.node_memory", lambda: enough)
    monkeypatch.setattr("cktrain.plan.admission.proportional_set_size", lambda: 0)
    composed(config).trainer.run()
    saved = load_config(f"{config.run.dir}/config.yaml").batch
    assert saved.model_dump() == {
        "micro_batch_size": 4,
        "global_batch_size": 8,
        "gradient_accumulation_steps": None,
    }
    monkeypatch.setattr("cktrain.plan.admission.node_memory", lambda: 1 << 40)
    again = composed(tiny(**{**FP64, "run.steps": 5, "batch.micro_batch_size": "auto"})).trainer
    assert again.config.batch == saved and again.progress.step == 4
