"""A run that goes on with another configuration: what is another model, what else has changed, and where the data stands.

A checkpoint fits when its tensors have the right shapes, but a shape says nothing of rotary frequencies, windows or
epsilons: so the model's keys are compared too, by what they mean. Every other key may change; each change is told in a
line that says what it does. The place in the data is counted in sequences, so that another batch size skips none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from cktrain.checkpoint_record import CONFIG_FILE, Checkpoint, CheckpointError
from cktrain.config import Config
from cktrain.config_file import load_config
from cktrain.optim.schedule import learning_rate
from cktrain.training.metrics import format_seconds

_ROUNDING = "sums are added in another order, so results differ in their rounding"
_ORDER = "the data comes in another order from here: sequences of this epoch may come again, or not at all"
_RATE = "{rate}"

# What a change of a key does, by the longest prefix that fits; None: nothing that needs to be said.
_EFFECTS: dict[str, str | None] = {
    "run.dir": None,
    "run.seed": _ORDER,
    "run.steps": _RATE,
    "run.epochs": "the run ends after {steps:,} steps",
    "run.tokens": "the run ends after {steps:,} steps",
    "run.max_time": "the schedule ends after that time of training, of which {seconds} are over",
    "run.deterministic": _ROUNDING,
    "model.from_pretrained": "nothing, the weights are the checkpoint's",
    "model.initializer_range": "nothing, it is of fresh weights",
    "model.max_position_embeddings": "sequences up to the new length are allowed",
    "adapter.from_pretrained": "nothing, the weights are the checkpoint's",
    "adapter.lora_dropout": "another share of each input is left out from here",
    "data.path": "{data}",
    "data.mixture": "{mixture}",
    "data.stages": "{mixture}",
    "data.sequence_length": "sequences are cut anew; the next step begins with sequence {examples:,} of the new length",
    "data.shuffle": _ORDER,
    "data.dtype": "the ids of a raw file are read as another type",
    "data.eos_id": "documents end with another id from here",
    "data.document_mask": "what a token sees of its row, and which targets count, is another from here",
    "data.validation": "validation is another from here, and its losses do not compare with those before",
    "data.validation.every": "validation comes at other steps",
    "data.validation.times_per_epoch": "validation comes at other steps",
    "data.validation.at_start": None,
    "batch.global_batch_size": "the next step begins with sequence {examples:,}, the first that was not consumed",
    "batch.micro_batch_size": _ROUNDING,
    "objective": "what is minimised is another from here, and its losses do not compare with those before",
    "optimizer": "updates follow the new value from here",
    "optimizer.lr": _RATE,
    "schedule": _RATE,
    "precision": "products are computed in another type from here; the checkpoint's master weights are kept",
    "parallel": _ROUNDING,
    "comm": None,
    "comm.algorithm": _ROUNDING,
    "comm.table": _ROUNDING,
    "comm.wire_dtype": "gradients travel in another type, and are rounded to it",
    "comm.weight_dtype": "weights travel in another type",
    "launch": None,
    "memory": "no number changes, only memory and time",
    "checkpoint": "holds from here",
    "checkpoint.resume": None,
    "log": None,
}


def saved_config(checkpoint: Checkpoint) -> Config:
    """The configuration that wrote the checkpoint. Raises CheckpointError when it can't be read."""
    try:
        config = load_config(checkpoint.path / CONFIG_FILE)
    except ValueError as error:
        raise CheckpointError(f"[checkpoint] {error}. Resume from another checkpoint.") from None
    if config.run.steps is None:  # of epochs or tokens, counted when it began
        steps = checkpoint.state.steps or checkpoint.state.step
        config = config.model_copy(update={"run": config.run.model_copy(update={"steps": steps})})
    return config


def consumed_examples(checkpoint: Checkpoint, old: Config, new: Config) -> int:
    """Where the next step begins: sequences of the new length that lie before the first token not consumed."""
    state = checkpoint.state
    examples = state.step * old.batch.resolved_global_batch_size if state.examples is None else state.examples
    before, after = old.data.sequence_length, new.data.sequence_length
    return examples if before == after else -(-examples * before // after)


def model_differences(old: Config, new: Config) -> list[str]:
    """`key is OLD in the checkpoint and NEW here`, for every key that changes what the model computes, or its moments."""
    return [
        f"{block}.{key} is {_spell(before.get(key))} in the checkpoint and {_spell(after.get(key))} here"
        for block, before, after in (
            ("model", _meaning(old), _meaning(new)),
            ("adapter", _adapter(old), _adapter(new)),
            ("optimizer", {"name": old.optimizer.name}, {"name": new.optimizer.name}),
        )
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def other_changes(checkpoint: Checkpoint, old: Config, new: Config, precision: str, data: str) -> list[str]:
    """`key: OLD -> NEW: what it does`, for every key that may change. `new.model` is resolved.

    `precision` is what this run computes in and `data` the fingerprint of its tokens; the checkpoint has its own.
    """
    state = checkpoint.state
    same_data = bool(state.data) and state.data == data
    words = {
        "examples": consumed_examples(checkpoint, old, new) + 1,
        "steps": new.run.total_steps,
        "seconds": format_seconds(state.seconds),
        "rate": _rate(old, new, state.step + 1),
        "data": "the tokens are the same" if same_data else "the tokens are others",
    }
    words["mixture"] = (
        "examples are of other parts from here, each of which goes on where the new shares would be in it"
    )
    if not state.data:
        words["data"] = "whether the tokens are the same is not known"
    before, after = dict(_flat(old)), dict(_flat(new))
    before["precision"], after["precision"] = state.precision, precision
    found = []
    for key in dict.fromkeys([*before, *after]):
        effect = _effect(key)
        if before.get(key) != after.get(key) and effect is not None:
            found.append(
                f"{key}: {_spell(before.get(key))} -> {_spell(after.get(key))}: {effect.format(**words)}"
            )
    if state.data and not same_data:
        found.append(
            f"data: {state.data} -> {data} (fingerprints): the training tokens have changed; the next step begins with "
            f"sequence {words['examples']:,} of the new ones"
        )
    return found


def _rate(old: Config, new: Config, step: int) -> str:
    before, after = (learning_rate(c.schedule, c.optimizer.lr, c.run.total_steps, step) for c in (old, new))
    if before == after:
        return "the rate of the next step is the same, later ones are others"
    return f"the rate of the next step is {after:.4g} instead of {before:.4g}"


def _meaning(config: Config) -> dict[str, Any]:
    return config.model.meaning(config.data.sequence_length)


def _adapter(config: Config) -> dict[str, Any]:
    return {} if config.adapter is None else config.adapter.meaning()


def _flat(config: Config) -> Iterator[tuple[str, Any]]:
    """Every key that is not part of the model's meaning, with its value."""
    values = config.model_dump(mode="json")
    meaning = _meaning(config)

    def walk(block: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in block.items():
            if isinstance(value, dict) and prefix != "model.":
                yield from walk(value, f"{prefix}{key}.")
            elif prefix != "model." or key not in meaning:
                yield prefix + key, value

    return walk(values, "")


def _effect(key: str) -> str | None:
    while key not in _EFFECTS:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return "holds from here"
    return _EFFECTS[key]


def _spell(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
