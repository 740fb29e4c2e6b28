"""Slots: no overlap, what is shared by role and by phase, and steps that allocate nothing."""

from __future__ import annotations

import itertools
import resource
import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.bench.step import RandomLoader
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import Slot, SlotPlan, plan_slot
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

FP32 = np.dtype(np.float32)


def span(array: np.ndarray) -> tuple[int, int]:
    start = array.ctypes.data
    return start, start + array.nbytes


def slots(composed_model, count: int, checkpointing: bool = False):
    config, numerics = composed_model
    model = build_model(config.model, numerics, 16, checkpointing)
    ParamStore(model.params(), numerics)
    return model, model.plan(2, 16), model.plan(2, 16).allocate(count)


@pytest.fixture
def composed_model(tiny):
    return tiny(), Numerics(cython_kernels.load(), "fp32")


def test_slots_keep_their_own_and_share_temporaries(composed_model):
    _, plan, (one, two) = slots(composed_model, 2)
    own, common = 0, 0
    for key, array in one._arrays.items():
        if array is two._arrays[key]:
            common += 1
        else:
            own += 1
            a, b = span(array), span(two._arrays[key])
            assert a[1] <= b[0] or b[1] <= a[0]
    assert own > common > 0
    arrays = sorted(span(one._arrays[key]) for key in plan._saved)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(arrays))
    assert plan.saved_bytes > 0 < plan.shared_bytes


def test_phases_lie_in_the_same_memory_unless_an_array_is_asked_in_several():
    class Named:
        def __init__(self, role: str) -> None:
            self.role = self.name = role

    def ask(slot, name, size):
        return slot.shared(Named("m"), name, (size,), FP32)

    def run(slot):
        ask(slot, "always", 16)
        with slot.phase("block"):
            with slot.phase("attention"):
                ask(slot, "a", 160)
                ask(slot, "both", 32)
            with slot.phase("mlp"):
                ask(slot, "m", 320)
                ask(slot, "both", 32)
        with slot.phase("head"):
            ask(slot, "h", 64)
            ask(slot, "always", 16)

    plan = plan_slot(1, 1, run)
    (slot,) = plan.allocate()
    base = min(span(a)[0] for a in slot._arrays.values())
    starts = {name: (span(a)[0] - base) // 4 for (_, name), a in slot._arrays.items()}
    assert starts == {"always": 0, "both": 16, "a": 48, "m": 48, "h": 16}
    assert plan.shared_bytes == 4 * (16 + 32 + 320)


class PoisonedSlot(Slot):
    """Writes NaN over the arrays of a phase when it begins and when it ends."""

    def __init__(self, plan: SlotPlan) -> None:
        super().__init__(plan.batch_size, plan.sequence_length)
        self.plan = plan
        self.path: tuple[str, ...] = ()
        self.poisoned: set[tuple[str, str]] = set()

    @contextmanager
    def phase(self, name):
        before, self.path = self.path, (*self.path, name)
        self.poison()
        yield
        self.poison()
        self.path = before

    def poison(self):
        for key, path in self.plan.paths.items():
            if path[: len(self.path)] == self.path:
                self._arrays[key].fill(np.nan)
                self.poisoned.add(key)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_is_read_outside_its_phase(tiny, family, checkpointing):
    """Losses and gradients are the same bits when all that has no right to be read is NaN."""
    config = tiny(**{"model.family": family})
    numerics = Numerics(cython_kernels.load(), "fp32")
    model = build_model(config.model, numerics, 16, checkpointing)
    params = ParamStore(model.params(), numerics)
    params.initialize(3)
    plan = model.plan(2, 16)
    poisoned = PoisonedSlot(plan)
    poisoned._arrays = plan.allocate()[0]._arrays
    ids = np.random.default_rng(1).integers(0, 61, (2, 17)).astype(np.int32)
    tokens, targets = np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])
    found = []
    for slot in (plan.allocate()[0], poisoned):
        params.begin_sums()
        loss, _ = model.forward_loss(tokens, targets, slot)
        model.backward_loss(tokens, slot)
        found.append((loss, params.grad.copy()))
    assert np.isfinite(found[0][1]).all() and found[0][1].any()
    assert found[1][0] == found[0][0]
    np.testing.assert_array_equal(found[1][1], found[0][1])
    assert {"logits", "normed", "dqkv", "hidden"} <= {name for _, name in poisoned.poisoned}


def test_block_checkpointing_saves_one_array_per_block(composed_model):
    _, plain, _ = slots(composed_model, 1)
    _, plan, (slot,) = slots(composed_model, 1, checkpointing=True)
    kept = {name for name, _ in plan._saved}
    assert {"model.layers.0", "model.layers.1"} <= kept
    assert not any("self_attn" in name or "mlp" in name for name in kept)
    assert plan.saved_bytes < plain.saved_bytes
    assert slot.rows == 32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_page_faults_are_flat_from_step_3_and_python_keeps_nothing(tiny, composed, precision, checkpointing):
    """A few faults are the allocator's own; an array of a step's would be hundreds."""
    config = tiny(
        precision=precision,
        **{
            "model.hidden_size": 256,
            "model.intermediate_size": 512,
            "model.vocab_size": 2000,
            "data.sequence_length": 256,
            "memory.checkpointing": checkpointing,
        },
    )
    trainer = composed(config, isa=None).trainer
    trainer.loader.close()
    trainer.loader = RandomLoader(config, 2000)
    for _ in range(2):
        trainer.step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        trainer.step()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 50
    tracemalloc.start()
    try:
        trainer.step()
        held = tracemalloc.get_traced_memory()[0]
        trainer.step()
        assert tracemalloc.get_traced_memory()[0] - held < 4096
    finally:
        tracemalloc.stop()
