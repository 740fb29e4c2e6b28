"""TRL judges preference: of the same pairs the same tokens, and step by step the same losses, rewards and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_models import write_rows, write_weights
from preferences import pairs, preference_config

from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.hf.tensors import hf_tensors

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")
datasets = pytest.importorskip("datasets")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.judge

STEPS, ROWS, LENGTH, LR = 4, 2, 128, 0.02
# Nothing stands behind the end of a turn: TRL learns all that follows the prompt, and cktrain up to the token that ends it.
TEMPLATE = (
    r"{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOOTHING = 0.2
# name -> (our keys, TRL's). TRL's sigmoid has no label smoothing; (1 - e) A + e B, with A and B the losses of a pair and of
# the same pair turned round, is 2 (1 - e) A - (1 - 2 e) R with R = ((1 - e) A - e B) / (1 - 2 e), which TRL calls robust.
LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({"beta": 0.3}, {"beta": 0.3}),
    "smoothed": (
        {"beta": 1.0, "label_smoothing": SMOOTHING},
        {
            "beta": 1.0,
            "label_smoothing": SMOOTHING,
            "loss_type": ["sigmoid", "robust"],
            "loss_weights": [2 * (1 - SMOOTHING), -(1 - 2 * SMOOTHING)],
        },
    ),
    "normalized": (
        {"beta": 2.0, "length_normalized": True},
        {"beta": 2.0, "loss_type": ["sigmoid_norm"]},
    ),
}


def rows_of_one_shape(conversations: bool) -> list[dict[str, Any]]:
    """TRL reads the shape of all rows from the first."""
    rows = [row for row in pairs(9 * ROWS * STEPS) if isinstance(row["chosen"], list) == conversations]
    if conversations:
        rows = [row for row in rows if "prompt" not in row]  # whose prompt is implicit
    return rows[: ROWS * STEPS]


def trl_trainer(
    folder: Path, model: Path, rows: list[dict[str, Any]], adapter: Path | None, keys: dict[str, Any]
):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    if adapter is not None:
        loaded = peft.PeftModel.from_pretrained(loaded, str(adapter), is_trainable=True).double()
    settings = trl.DPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        gradient_checkpointing=False,
        optim="sgd",
        learning_rate=LR,
        weight_decay=0.0,
        max_grad_norm=1e9,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        max_length=None,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **keys,
    )
    trainer = trl.DPOTrainer(
        model=loaded,
        args=settings,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def our_run(folder: Path, composed, model: Path, rows: Path, adapter: Path | None, keys: dict[str, Any]):
    options = ChatOptions(preference=True, sequence_length=LENGTH, validation_fraction=0, packing="none")
    prepare_chat(rows, folder / "data", tokenizer=model, options=options, progress=False)
    config = preference_config(
        folder,
        model,
        folder / "data",
        run={"steps": STEPS},
        adapter=None if adapter is None else {"from_pretrained": str(adapter)},
        data={"path": str(folder / "data"), "sequence_length": LENGTH, "shuffle": False},
        objective={"name": "dpo", **keys},
        optimizer={"name": "sgd", "momentum": 0.0, "lr": LR, "clip_grad_norm": 0.0},
        schedule={"name": "constant"},
    )
    return composed(config).trainer


@pytest.mark.parametrize(
    ("name", "kind", "conversations"),
    [
        ("sigmoid", "lora", True),
        ("sigmoid", "full", False),
        ("smoothed", "full", True),
        ("normalized", "lora", False),
    ],
)
def test_losses_rewards_and_gradients_are_those_of_trl(
    tmp_path, composed, monkeypatch, name, kind, conversations
):
    """To 1e-5, gradients to 1e-6 of the tensor's largest, norms of later steps to 1e-4 of their own: all here is fp64, and
    there the norms and the head round to fp32.

    An adapter that has been trained before is its own reference.
    """
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    model = write_weights(tmp_path / "model", positions=LENGTH, template=TEMPLATE)
    found = rows_of_one_shape(conversations)
    rows = write_rows(tmp_path / "rows.jsonl", found)
    adapter = None
    if kind == "lora":
        adapter = tmp_path / "adapter"
        loaded = transformers.AutoModelForCausalLM.from_pretrained(model)
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear", init_lora_weights=False
        )
        torch.manual_seed(0)
        peft.get_peft_model(loaded, settings).save_pretrained(str(adapter))
    ours_keys, their_keys = LOSSES[name]
    ours = our_run(tmp_path, composed, model, rows, adapter, ours_keys)
    theirs = trl_trainer(tmp_path / "trl", model, found, adapter, their_keys)

    tokens = [ours.loader.micro_batches(index)[0] for index in range(0, ROWS * STEPS, ROWS)]
    for batch, row in zip(tokens, list(theirs.train_dataset)[::ROWS], strict=True):
        both = row["prompt_ids"] + row["chosen_ids"] + row["prompt_ids"] + row["rejected_ids"]
        assert batch.ids[0][: len(both)].tolist() == both
        assert (batch.labels[0] >= 0).sum() == len(row["chosen_ids"]) + len(row["rejected_ids"])

    gradients: dict[str, np.ndarray] = {}

    def keep(optimizer, *_: Any) -> None:
        if not gradients:
            named = theirs.model.named_parameters()
            gradients.update({k: p.grad.detach().numpy().copy() for k, p in named if p.grad is not None})

    theirs.create_optimizer()
    theirs.optimizer.register_step_pre_hook(keep)
    theirs.train()
    logged = [entry for entry in theirs.state.log_history if "loss" in entry]

    first = ours.step()
    if kind == "full":
        for tensor in hf_tensors(ours.config.model, ours.params.params):
            mine, wanted = tensor.param.grad[tensor.rows] / ROWS, gradients[tensor.name]
            apart = np.abs(mine.reshape(wanted.shape) - wanted).max()
            assert apart <= 1e-6 * np.abs(wanted).max(), tensor.name
    steps = [first, *(ours.step() for _ in range(STEPS - 1))]
    assert all(abs(step.loss - steps[0].loss) > 1e-3 for step in steps[1:]), (
        "nothing was learned, or compared"
    )
    for step, entry in zip(steps, logged, strict=True):
        assert step.loss == pytest.approx(float(entry["loss"]), abs=1e-5)
        assert step.grad_norm == pytest.approx(float(entry["grad_norm"]), rel=1e-4)
        for key, value in step.measures.items():
            assert value == pytest.approx(
                float(entry[key]), rel=1e-5, abs=1e-5 * max(1, ours_keys["beta"])
            ), key
