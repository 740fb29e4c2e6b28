"""Distillation: divergences and gradients of the head, and runs with a teacher beside them."""

from __future__ import annotations

import numpy as np
import pytest
from chat_models import write_rows, write_weights

from cktrain import cython_kernels
from cktrain.config import Config
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.memory.param_store import ParamStore
from cktrain.memory.slot import plan_slot
from cktrain.nn import head as head_module
from cktrain.nn.head import Head
from cktrain.nn.linear import Linear
from cktrain.nn.norm import RMSNorm
from cktrain.nn.numerics import Numerics
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank

ROWS, SIZE, WORDS = 23, 6, 13


class Bench:
    """A head, rows of a stream and a teacher's logits of them, in fp64."""

    def __init__(self, **options) -> None:
        self.num = Numerics(cython_kernels.load("reference"), "fp64")
        output = Linear("head", self.num, SIZE, WORDS, bias=False, std=1.0)
        self.head = Head(RMSNorm("norm", self.num, SIZE, 1e-5), output, **options)
        self.params = ParamStore(self.head.params(), self.num)
        rng = np.random.default_rng(3)
        self.params.data[...] = rng.standard_normal(self.params.size)
        self.x, self.teacher = rng.standard_normal((ROWS, SIZE)), 3 * rng.standard_normal((ROWS, WORDS))
        self.labels = rng.integers(0, WORDS, ROWS).astype(np.int32)
        self.labels[[0, 3, 4, 22]] = -100
        with self.num.dry():
            (self.slot,) = plan_slot(
                1, ROWS, lambda slot: self.head.plan_divergence(self.x, self.x, self.labels, slot)
            ).allocate()

    def divergence(self, temperature: float, alpha: float, dx: np.ndarray | None = None):
        return self.head.divergence(
            self.x, dx, self.labels, lambda rows: self.teacher[rows].copy(), temperature, alpha, self.slot
        )

    def loss(self, temperature: float, alpha: float) -> float:
        divergence, entropy, _ = self.divergence(temperature, alpha)
        return alpha * divergence + (1 - alpha) * entropy


OPTIONS = pytest.mark.parametrize("options", [{}, {"softcap": 1.5, "multiplier": 0.7}], ids=["plain", "bent"])


@pytest.fixture(params=[4, 100], ids="{} rows in a chunk".format)
def chunk(request, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_BYTES", request.param * WORDS * 8)
    monkeypatch.setattr(head_module, "LEAST_ROWS", 1)


@OPTIONS
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (2.5, 0.6)])
def test_gradients_are_central_differences(chunk, options, temperature, alpha):
    bench = Bench(**options)
    bench.params.begin_sums()
    dx = np.empty_like(bench.x)
    bench.divergence(temperature, alpha, dx)
    for array, gradient in ((bench.x, dx), (bench.params.data, bench.params.grad)):
        flat, found = array.reshape(-1), gradient.reshape(-1).copy()
        for index in range(0, flat.size, 5):
            before, moved = flat[index], []
            for move in (1e-6, -1e-6):
                flat[index] = before + move
                moved.append(bench.loss(temperature, alpha))
            flat[index] = before
            assert (moved[0] - moved[1]) / 2e-6 == pytest.approx(found[index], rel=1e-6, abs=1e-6)


@OPTIONS
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_those_of_whole_logits(chunk, options, temperature):
    bench = Bench(**options)
    found, entropy, count = bench.divergence(temperature, 1.0)
    here = bench.labels >= 0
    q, p = (each[here] / temperature for each in (bench.head.logits(bench.x), bench.teacher))
    q, p = (each - np.logaddexp.reduce(each, axis=1)[:, None] for each in (q, p))
    assert found == pytest.approx((np.exp(p) * (p - q)).sum(), rel=1e-12)
    assert count == here.sum()
    assert entropy == pytest.approx(bench.head.loss(bench.x, None, bench.labels, bench.slot)[0], rel=1e-12)


@pytest.mark.judge
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergences_and_gradients_are_those_of_pytorch(temperature):
    """TRL's GKD computes this with beta 0."""
    torch = pytest.importorskip("torch")
    bench = Bench()
    dx, here = np.empty_like(bench.x), bench.labels >= 0
    bench.params.begin_sums()
    found, _, _ = bench.divergence(temperature, 1.0, dx)
    x = torch.tensor(bench.x, requires_grad=True)
    normed = torch.nn.functional.rms_norm(x, (SIZE,), torch.tensor(bench.head.norm.weight.value), 1e-5)
    logits = (normed @ torch.tensor(bench.head.output.weight.value).T)[here]
    q, p = (torch.log_softmax(each / temperature, -1) for each in (logits, torch.tensor(bench.teacher[here])))
    wanted = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    wanted.backward()
    assert found == pytest.approx(wanted.item(), rel=1e-10)
    np.testing.assert_allclose(dx, x.grad.numpy(), atol=1e-10)


@pytest.fixture
def distilled(tmp_path, composed):
    """`distilled(objective, **blocks)` -> a composed run beside a teacher, of some chats."""
    student, teacher = (
        write_weights(tmp_path / name, seed) for name, seed in (("student", 5), ("teacher", 8))
    )
    rows = [
        {"messages": [{"role": "user", "content": "a" * n}, {"role": "assistant", "content": "b" * n}]}
        for n in range(1, 21)
    ]
    source = write_rows(tmp_path / "rows.jsonl", rows)
    options = ChatOptions(sequence_length=128, validation_fraction=0.2)
    prepare_chat(source, tmp_path / "data", tokenizer=student, options=options, progress=False)

    def make(objective=None, build=composed, **blocks):
        values = {
            "run": {"dir": str(tmp_path / "run"), "steps": 16, "seed": 3},
            "model": {"from_pretrained": str(student)},
            "data": {
                "path": str(tmp_path / "data"),
                "sequence_length": 128,
                "validation": {"every": 4, "batches": None},
            },
            "batch": {"micro_batch_size": 1, "global_batch_size": 2},
            "objective": {"name": "distill", "teacher": str(teacher), **(objective or {})},
            "optimizer": {"lr": 1e-2, "weight_decay": 0.0},
            "precision": "fp64",
            "checkpoint": {"every": 0, "resume": "none"},
        }
        return build(Config.model_validate({**values, **blocks}))

    return make


def test_a_run_comes_near_its_teacher(distilled):
    trainer = distilled().trainer
    before = trainer.validator.run()
    steps = [trainer.step() for _ in range(16)]
    after = trainer.validator.run()
    assert after.loss < 0.7 * before.loss and steps[-1].loss < steps[0].loss
    assert after.loss == pytest.approx(after.measures["divergence"])
    assert before.bits_per_byte is None


def test_a_teacher_of_itself_has_nothing_to_say(distilled, tmp_path):
    trainer = distilled({"teacher": str(tmp_path / "student")}, adapter={"r": 2}).trainer
    step = trainer.step()
    assert step.loss == pytest.approx(0.0, abs=1e-12) and step.grad_norm == pytest.approx(0.0, abs=1e-12)
    assert trainer.step().measures["cross_entropy"] > 1


def test_micro_batches_are_of_no_matter(distilled, tmp_path):
    one, two = (
        distilled(
            {"alpha": 0.5, "temperature": 2.0}, batch={"micro_batch_size": size, "global_batch_size": 2}
        ).trainer
        for size in (1, 2)
    )
    for _ in range(2):
        a, b = one.step(), two.step()
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), abs=1e-12)


def test_a_teacher_with_another_vocabulary_is_refused(distilled, tmp_path):
    other = write_weights(tmp_path / "other", 8)
    config = (other / "tokenizer.json").read_text().replace('"<|user|>"', '"<|someone|>"')
    (other / "tokenizer.json").write_text(config)
    with pytest.raises(ValueError, match=r"teacher .*other has another vocabulary: its tokenizer differs in"):
        distilled({"teacher": str(other)})


def test_a_teacher_is_named(distilled):
    with pytest.raises(ValueError, match="nothing says from which model"):
        distilled({"teacher": None})


def test_the_plan_counts_the_teacher(distilled):
    config = distilled(build=lambda config: config)
    run = distilled()
    config = run.trainer.config
    plain = config.model_copy(update={"objective": type(config.objective)()})
    planned, without = (plan_rank(each, Mesh(1, 1, 1), 0, "fp32").memory for each in (config, plain))
    assert planned.weights > 1.4 * without.weights and planned.activations > without.activations
