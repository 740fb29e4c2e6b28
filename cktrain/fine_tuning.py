"""From a model and a file of chats to the configuration of a run that fine-tunes it: what `cktrain finetune` does first.

    RUN/data/              the rows, prepared with the model's own tokenizer and template; kept while they would be the same
    RUN/base-0123456789/   a GGUF file or another run as a Hugging Face folder, by the digest of what it was made from
    RUN/finetune.yaml      the configuration, for `cktrain train` too; one that was changed by hand is kept as .before

A Hugging Face folder and a prepared folder are used where they are. Defaults follow the task (few weights beside frozen
ones, or all of them) and the data; what is given goes before them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cktrain import cython_kernels
from cktrain.base_folder import base_folder, make_base
from cktrain.checkpoint_folder import find_candidates, free_name
from cktrain.config import DPO_OPTIMIZER, Config
from cktrain.config_file import load_config, with_overrides
from cktrain.config_types import AUTO
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.data.shards import DATASET_FILE, read_dataset
from cktrain.folder_lock import FolderLock, lock_folder
from cktrain.hf.folder import resolve_model
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.peft_folder import resolve_adapter
from cktrain.hf.tensors import matching_tensors
from cktrain.loaded_model import Model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.plan.batch_sizes import with_accumulation
from cktrain.plan.forecast import sequences_of
from cktrain.run_length import count_steps, length_in_words
from cktrain.saved_model import SavedModel, find_saved_model, refuse_model_folder
from cktrain.side_files import CONFIG_FILE as MODEL_FILE
from cktrain.trained_run import TrainedRun
from cktrain.training.preference import kind_of_reference
from cktrain.training.run_objective import refuse_other_rows
from cktrain.training_rows import DATA_FOLDER, refuse_other_run
from cktrain.yaml_text import dump_yaml

CONFIG_FILE = "finetune.yaml"

LENGTH = 2048
"""Tokens in a sequence, where the model has positions for as many."""
BATCH, STEPS_PER_EPOCH = 16, 20
"""Sequences in a step; fewer where an epoch would have fewer steps than these."""
FEW_STEPS = 30
_ANY_DATA = {"splits": {split: {"sequences": 1_000_000} for split in ("train", "validation")}}

Values = Mapping[str, Any]
Say = Callable[[str], None]

_OPTIMIZER = {
    "adapter": {
        "name": "adamw",
        "lr": 2.0e-4,
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "clip_grad_norm": 1.0,
    },
    "full": {
        "name": "adamw",
        "lr": 1.0e-5,
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
        "clip_grad_norm": 1.0,
    },
}
_EPOCHS = {"adapter": 3, "full": 2, "dpo": 1}
_INSTEAD = {
    ("run", "epochs"): ("steps", "tokens"),
    ("schedule", "warmup_ratio"): ("warmup_steps",),
    ("data.validation", "times_per_epoch"): ("every",),
}
"""A default of ours that gives way where its owner says the same by another key."""


@dataclass(frozen=True)
class FineTuning:
    """What is to be fine-tuned, on what, and how."""

    model: str | Path
    """A Hugging Face folder, a GGUF file, a run or a checkpoint."""
    data: str | Path
    """A file of chats or instructions, a folder of such, or one that `cktrain data prepare` made."""
    out: str | Path
    """The run's folder."""
    full: bool = False
    """Train all weights, without an adapter."""
    adapter: Values | None = None
    """Keys of the adapter's block; None: the defaults."""
    epochs: float | None = None
    chat: Values = field(default_factory=dict)
    """Fields of `ChatOptions`."""
    overrides: Sequence[str] | Values = ()
    """Keys of the configuration, as `load_config` takes them."""


@dataclass(frozen=True)
class Prepared:
    """A configuration that can be trained, its model resolved and its steps counted, and where it stands."""

    file: Path
    config: Config
    lines: list[str]
    """What is to be expected of it."""


def path_of(model: str | Path | Model | TrainedRun) -> str | Path:
    """Where the weights of a model or a run are. Raises ValueError where an adapter stands beside them."""
    if isinstance(model, str | Path):
        return model
    if isinstance(model, Model) and model.adapter_path is not None:
        raise ValueError(
            f"[finetune] {model.path} was loaded with the adapter {model.adapter_path} beside it. Give the model's path, "
            f'and adapter={{"from_pretrained": {str(model.adapter_path)!r}}} to go on with that adapter.'
        )
    return model.path


def refuse_used(out: str | Path) -> None:
    """Raises ValueError where the folder holds a run already."""
    if holds_run(out):
        raise ValueError(
            f"[finetune] {out} holds a run already. Choose another folder; --resume goes on with it, also with more "
            "--epochs; --overwrite starts afresh and sets its checkpoints aside."
        )


def holds_run(out: str | Path) -> bool:
    """Whether a run was started in the folder; what `prepare` makes is none."""
    return any((Path(out) / name).exists() for name in ("checkpoints", "config.yaml", "metrics.jsonl"))


@contextmanager
def owned_run(out: str | Path) -> Iterator[FolderLock]:
    """The run's folder, held while the run is prepared and until it has the lock; a new one that stays empty goes again."""
    folder = Path(out)
    is_new = not os.path.lexists(folder)
    try:
        with lock_folder(folder, "cktrain finetune") as lock:
            yield lock
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def prepare(
    asked: FineTuning,
    say: Say = lambda text: None,
    progress: bool = True,
    lock: FolderLock | None = None,
    goes_on: bool = False,
) -> Prepared:
    """Prepare the model and the data, and write the configuration. `say` hears what was found, a line at a time.

    `lock` is the folder's, where the caller holds it. Of a run that goes on in another process nothing is replaced, nor of
    one that `goes_on` here and cannot, since the model, its tokenizer or the optimizer is another.
    Raises ValueError for what the user can mend, and OSError when writing fails.
    """
    out = Path(asked.out)
    given = with_overrides({}, asked.overrides)
    if asked.full and (asked.adapter is not None or given.get("adapter") is not None):
        raise ValueError(
            "[finetune] full trains all weights, and adapter is given as well. Leave one of them out."
        )
    if not asked.full and given.get("adapter", {}) is None:
        raise ValueError(
            "[finetune] adapter is null, which trains all weights. Give --full (full=True) for that."
        )
    if (rows := _block(given, "data").get("train")) is not None:
        raise ValueError(
            f"[finetune] data.train {rows} is set, and DATA is {asked.data}. Give the rows as DATA alone."
        )
    if (other := _block(given, "run").get("dir")) is not None:
        raise ValueError(
            f"[finetune] run.dir {other} is set, and RUN is {out}. Give the folder as RUN alone."
        )
    refuse_model_folder(out)
    saved = find_saved_model(asked.model)
    positions = saved.config.max_position_embeddings
    assert positions is not None, "a saved model has them resolved"
    assumed = _values(asked, saved.path, out, _ANY_DATA, min(LENGTH, positions), given)
    load_config(_merged(assumed, given))  # a mistyped key is told before anything is prepared
    with nullcontext() if lock is not None else owned_run(out):
        return _prepare(asked, saved, given, positions, say, progress, goes_on)


def _prepare(
    asked: FineTuning,
    saved: SavedModel,
    given: Values,
    positions: int,
    say: Say,
    progress: bool,
    goes_on: bool,
) -> Prepared:
    out = Path(asked.out)
    in_blocks = _block(given, "model").get("quantize", "none") != "none"
    base = _base(asked.model, saved, out, in_blocks, say)
    if goes_on:
        _refuse_other_run(asked, base, out, positions, given)
    folder, dataset = _data(asked, base, out, positions, given, say, progress)
    length = _length(dataset, positions, given)
    values = _values(asked, base, folder, dataset, length, given)
    file = out / CONFIG_FILE
    config = load_config(_merged(values, given))
    refuse_other_rows(config.data, config.objective.name)
    _write(file, _merged(values, given), say)
    config = with_accumulation(_resolved(config), data_ranks=1)
    config = count_steps(config, sequences_of(dataset, "train", length))
    return Prepared(file, config, _expected(config, dataset, length))


def _base(model: str | Path, saved: SavedModel, out: Path, in_blocks: bool, say: Say) -> Path:
    """A Hugging Face folder of the model: its own, or one that is made of it; or a GGUF file whose blocks are wanted."""
    if saved.hugging_face and (in_blocks or not is_gguf(saved.path)):
        numerics = Numerics(cython_kernels.load(), "fp32")
        # Files that are missing or do not fit are told before rows are prepared; nothing of them is read.
        matching_tensors(saved.path, saved.config, build_model(saved.config, numerics, positions=1).params())
        return saved.path
    folder = base_folder(saved, out)
    make_base(saved, folder, model, say)
    return folder


def _refuse_other_run(asked: FineTuning, base: Path, out: Path, positions: int, given: Values) -> None:
    """ValueError where the run that stands there cannot go on so, by what is known before its rows are prepared."""
    found = find_candidates(out / "checkpoints").found
    if not found or (Path(asked.data) / DATASET_FILE).is_file():
        return
    length = _block(given, "data").get(
        "sequence_length", asked.chat.get("sequence_length", min(LENGTH, positions))
    )
    config = load_config(_merged(_values(asked, base, out, _ANY_DATA, length, given), given))
    refuse_other_run(found[0], _resolved(config), base)


def _resolved(config: Config) -> Config:
    adapter = resolve_adapter(config.adapter)
    return config.model_copy(update={"model": resolve_model(config.model)[0], "adapter": adapter})


def _data(
    asked: FineTuning, base: Path, out: Path, positions: int, given: Values, say: Say, progress: bool
) -> tuple[Path, dict[str, Any]]:
    """The prepared folder, and what its dataset.json says."""
    if (Path(asked.data) / DATASET_FILE).is_file():
        if asked.chat:
            name = min(asked.chat).replace("_", "-")
            raise ValueError(
                f"[finetune] --{name} says how rows are prepared, and {asked.data} is prepared. Leave it out, or "
                "give the rows."
            )
        return Path(asked.data), read_dataset(asked.data)
    if (Path(asked.data) / MODEL_FILE).is_file() or holds_run(asked.data):
        raise ValueError(
            f"[finetune] {asked.data} holds a model, and DATA is a file or folder of rows. Give MODEL first, then DATA."
        )
    known = [option.name for option in fields(ChatOptions)]
    if unknown := sorted(set(asked.chat) - set(known)):
        raise ValueError(f"[finetune] chat: {unknown[0]!r} is none of {', '.join(known)}. Correct it.")
    length = _block(given, "data").get("sequence_length", min(LENGTH, positions))
    preference = {"preference": True} if _objective(given) == "dpo" else {}
    options = ChatOptions(**{"sequence_length": length, **asked.chat, **preference})
    if options.sequence_length > positions:
        raise ValueError(
            f"[finetune] --sequence-length {options.sequence_length:,} is longer than the model's {positions:,} positions. "
            f"Give {positions} or less."
        )
    folder = out / DATA_FOLDER
    out.mkdir(parents=True, exist_ok=True)
    summary = prepare_chat(
        asked.data, folder, tokenizer=base, options=options, reuse=True, progress=progress, say=say
    )
    return folder, summary


def _length(dataset: dict[str, Any], positions: int, given: Values) -> int:
    if "chat" in dataset:
        return int(dataset["chat"]["sequence_length"])
    return int(_block(given, "data").get("sequence_length", min(LENGTH, positions)))


def _values(
    asked: FineTuning, base: Path, folder: Path, dataset: dict[str, Any], length: int, given: Values
) -> dict[str, Any]:
    """The configuration by default."""
    task = "full" if asked.full else "adapter"
    objective = _objective(given)
    sequences = sequences_of(dataset, "train", length)
    validates = sequences_of(dataset, "validation", length) > 0
    epochs = _EPOCHS.get(objective, _EPOCHS[task])
    values: dict[str, Any] = {
        "run": {"dir": str(asked.out), "epochs": epochs if asked.epochs is None else asked.epochs},
        "model": {"from_pretrained": str(base)},
    }
    if not asked.full:
        keys = {} if asked.adapter is None else dict(asked.adapter)
        from_folder = "from_pretrained" in {**keys, **_block(given, "adapter")}  # which says the rest
        values["adapter"] = keys if from_folder else {"r": 16, "lora_alpha": 32, **keys}
    values["data"] = {"path": str(folder), "sequence_length": length}
    if validates:
        values["data"]["validation"] = {"times_per_epoch": 5, "at_start": True, "batches": None}
    values |= {
        "batch": _batch(sequences, _block(given, "batch")),
        "optimizer": {**_OPTIMIZER[task], **(DPO_OPTIMIZER if objective == "dpo" else {})},
        "schedule": {"name": "cosine", "warmup_ratio": 0.03},
    }
    if validates:
        values["checkpoint"] = {"save_best": True}
    for (path, ours), theirs in _INSTEAD.items():
        block, mine = given, values
        for part in path.split("."):
            block, mine = _block(block, part), mine.get(part, {})
        said = next((key for key in theirs if block.get(key) is not None), None)
        if said is not None and ours not in block:
            if path == "run" and asked.epochs is not None:
                raise ValueError(
                    f"[finetune] --epochs {asked.epochs:g} and run.{said} {block[said]} both say how long it is. Give one."
                )
            mine.pop(ours, None)
    return values


def _batch(sequences: int, given: Values) -> dict[str, Any]:
    """The block by default; what is given wrongly, the configuration says."""
    micro = given.get("micro_batch_size", AUTO)
    if given.get("gradient_accumulation_steps") is not None:
        return {"micro_batch_size": micro}
    batch = max(size for size in (1, 2, 4, 8, BATCH) if size == 1 or sequences >= size * STEPS_PER_EPOCH)
    if isinstance(micro, int) and micro > 0:
        batch = -(-batch // micro) * micro
    return {"micro_batch_size": micro, "global_batch_size": batch}


def _block(given: Values, name: str) -> Values:
    """What was given of a block; a value where a block belongs is the configuration's to refuse."""
    block = given.get(name)
    return block if isinstance(block, Mapping) else {}


def _objective(given: Values) -> str:
    return str(_block(given, "objective").get("name", "next_token"))


def _merged(values: Values, given: Values) -> dict[str, Any]:
    merged = dict(values)
    for key, value in given.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _write(file: Path, values: dict[str, Any], say: Say) -> None:
    blocks = (f"{key + ':':<11} {dump_yaml(value, flow=True)}\n" for key, value in values.items())
    text = "# Made by cktrain finetune; cktrain train runs it.\n" + "".join(blocks)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and file.read_text(encoding="utf-8") != text:
        kept = free_name(file.with_name(file.name + ".before"))
        file.rename(kept)
        say(f"configuration: {file} is another than before, which is {kept.name} now")
    file.write_text(text, encoding="utf-8")


def _expected(config: Config, dataset: dict[str, Any], length: int) -> list[str]:
    """What is known before anything is allocated or measured."""
    splits = {name: sequences_of(dataset, name, length) for name in ("train", "validation")}
    sizes = ", ".join(
        f"{dataset['splits'][name]['documents']:,} rows in {count:,} sequences for {word}"
        for name, count, word in (
            ("train", splits["train"], "training"),
            ("validation", splits["validation"], "validation"),
        )
        if count > 0
    )
    lines = [f"data: {config.data.resolved_path}: {sizes}, of {length:,} tokens each"]
    if (chat := dataset.get("chat")) is not None:
        lines.append(
            f"tokens: {chat['row_tokens']:,}, of which {chat['trained_tokens']:,} are trained "
            f"({chat['trained_share']:.1%}); sequences are {chat['packing_efficiency']:.1%} filled"
        )
    steps = config.run.total_steps
    if said := length_in_words(config, splits["train"]):
        lines.append(said)
    else:
        lines.append(f"steps: {steps:,} of {config.batch.resolved_global_batch_size:,} sequences")
    if steps < FEW_STEPS:
        longest = f"; the longest row has {chat['length']['max']:,} tokens" if chat is not None else ""
        lines.append(
            f"note: {steps:,} steps are few. More --epochs, a shorter --sequence-length or a smaller "
            f"batch.global_batch_size give more{longest}"
        )
    lines.append(_weights_in_words(config))
    if config.objective.name != "next_token":
        told = config.objective.model_copy(update={"reference": kind_of_reference(config)})
        lines.append(f"objective: {told.in_words()}")
    optimizer, schedule = config.optimizer, config.schedule
    betas = (
        f", betas {optimizer.betas[0]:g}/{optimizer.betas[1]:g}"
        if optimizer.name in ("adamw", "adamw_8bit")
        else ""
    )
    lines.append(
        f"optimizer: {optimizer.name}, lr {optimizer.lr:g}{betas}, weight_decay {optimizer.weight_decay:g}, clip "
        f"{optimizer.clip_grad_norm:g}; {schedule.name}, warm-up {schedule.warmup(steps):,} of {steps:,} steps"
    )
    if not config.data.validation.wanted:
        lines.append("note: nothing is validated, since the data holds nothing out (--validation)")
    return lines


def _weights_in_words(config: Config) -> str:
    model = resolve_model(config.model)[0]
    params = build_model(model, Numerics(cython_kernels.load(), "fp32"), 1, False, config.adapter).params()
    count = sum(param.size for param in params)
    trained = sum(param.size for param in params if param.trainable)
    how = (
        "all weights" if config.adapter is None else f"{config.adapter.peft_type} of rank {config.adapter.r}"
    )
    return (
        f"model: {config.model.from_pretrained}: {count:,} parameters, {trained:,} trained ({how}), "
        f"{count - trained:,} frozen"
    )
