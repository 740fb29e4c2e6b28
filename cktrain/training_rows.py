"""`data.train`: rows of chats become the prepared folder run.dir/data, once, by rank 0, while the other ranks wait.

The folder is kept while the same rows, options, tokenizer and template would give the same (`data/reuse.py`), so that a run
that goes on, or begins again, prepares nothing. What a run that goes on may not change is told before they are replaced.
From then on the run's configuration names the folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cktrain.checkpoint_record import Checkpoint, other_model_error
from cktrain.comm.group import Group
from cktrain.config import OF_ROWS, Config, DataConfig
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.data.same_tokenizer import other_tokenizer_error, tokenizer_differences, where_of
from cktrain.long_work import together_for_long
from cktrain.resume import model_differences, saved_config
from cktrain.side_files import FOLDER, read_record, read_side_files

log = logging.getLogger("cktrain")

DATA_FOLDER = "data"
"""In the run's folder."""


def prepare_rows(config: Config, base: Path | None, checkpoint: Checkpoint | None, group: Group) -> Config:
    """The configuration whose `data.path` is a prepared folder, made where `data.train` has rows. Collective.

    `base` is the model's folder or GGUF file; None, where it is gone: what was prepared before is taken as it is. Raises
    ValueError on all ranks for rows that cannot be used, for a model that is not that of the `checkpoint` that the run
    goes on from, and OSError's text where writing fails.
    """
    data = config.data
    if data.train is None:
        return config
    named = with_folder(config)
    folder, source = Path(named.data.resolved_path), data.train

    def work() -> None:
        if base is None:
            log.info("data.train: %s is taken as it is, since its model is gone", folder)
            return
        if checkpoint is not None:
            refuse_other_run(checkpoint, config, base)
        log.info("data.train: %s -> %s", source, folder)
        summary = prepare_chat(
            source,
            folder,
            tokenizer=base,
            options=chat_options(data, config.objective.name),
            reuse=True,
            progress=False,
            say=lambda text: log.info("%s", text),
        )
        splits, chat = summary["splits"], summary["chat"]
        held_out = splits.get("validation", {}).get("documents", 0)
        log.info(
            "data.train: %s rows for training, %s for validation; of %s tokens %s are trained (%.1f %%)",
            f"{splits['train']['documents']:,}",
            f"{held_out:,}",
            f"{chat['row_tokens']:,}",
            f"{chat['trained_tokens']:,}",
            100 * chat["trained_share"],
        )

    together_for_long(group, lambda: work() if group.rank == 0 else None)
    return named


def refuse_other_run(checkpoint: Checkpoint, config: Config, base: Path) -> None:
    """Raises ValueError where the model, its tokenizer or the optimizer is not the checkpoint's: a run cannot go on so.

    `config` has its model and adapter resolved; `base` is the folder or file that rows would be prepared with.
    """
    if differences := model_differences(saved_config(checkpoint), config):
        raise other_model_error(checkpoint.path, differences)
    run, model = read_record(checkpoint.path / FOLDER), read_side_files(base)
    if run is None or not run.has_tokenizer or not model.has_tokenizer or config.data.allow_other_tokenizer:
        return
    if found := tokenizer_differences(model, run):
        raise other_tokenizer_error(
            f"the model's, {where_of(model)},",
            f"the tokenizer of {checkpoint.path}",
            found,
            f"Nothing was changed. Put the run's back (it is in {checkpoint.path / FOLDER}), start afresh, or set "
            "data.allow_other_tokenizer: true.",
        )


def with_folder(config: Config) -> Config:
    """The configuration that reads the folder of its rows, prepared or not, and says no more how they are prepared."""
    data = config.data
    if data.train is None:
        return config
    validation = data.validation.model_copy(update={"fraction": None})
    named = {
        **dict.fromkeys(("train", *OF_ROWS)),
        "path": str(Path(config.run.dir) / DATA_FOLDER),
        "validation": validation,
    }
    return config.model_copy(update={"data": data.model_copy(update=named)})


def chat_options(data: DataConfig, objective: str = "next_token") -> ChatOptions:
    """How the rows become sequences for an objective, by the given keys and the defaults of `cktrain data prepare`."""
    given = {key: getattr(data, key) for key in OF_ROWS} | {"validation_fraction": data.validation.fraction}
    known = {name: value for name, value in given.items() if value is not None}
    return ChatOptions(sequence_length=data.sequence_length, preference=objective == "dpo", **known)
