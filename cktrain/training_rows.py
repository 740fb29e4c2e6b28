"""`data.train`: rows of chats become the prepared folder run.dir/data, once, by rank 0, while the other ranks wait.

The folder is kept while the same rows, options, tokenizer and template would give the same (`data/reuse.py`), so that a run
that goes on, or begins again, prepares nothing. From then on the run's configuration names the folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cktrain.comm.group import Group
from cktrain.config import OF_ROWS, Config, DataConfig
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.long_work import together_for_long

log = logging.getLogger("cktrain")

DATA_FOLDER = "data"
"""In the run's folder."""


def prepare_rows(config: Config, base: Path | None, group: Group) -> Config:
    """The configuration whose `data.path` is a prepared folder, made where `data.train` has rows. Collective.

    `base` is the model's folder or GGUF file; None, where it is gone: what was prepared before is taken as it is. Raises
    ValueError on all ranks for rows that cannot be used and OSError's text where writing fails.
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
        log.info("data.train: %s -> %s", source, folder)
        summary = prepare_chat(
            source,
            folder,
            tokenizer=base,
            options=chat_options(data),
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


def chat_options(data: DataConfig) -> ChatOptions:
    """How the rows become sequences, by the keys that are given and the defaults of `cktrain data prepare`."""
    given = {key: getattr(data, key) for key in OF_ROWS} | {"validation_fraction": data.validation.fraction}
    known = {name: value for name, value in given.items() if value is not None}
    return ChatOptions(sequence_length=data.sequence_length, **known)
