"""Hugging Face folders: config.json, safetensors and tokenizer files, loaded and saved.

`hf_config.py` maps the architecture, `hf_weights.py` the tensors, `hf_tokenizer.py` the tokenizer's files. A
folder is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Literal

from cktrain.config import ModelConfig
from cktrain.models.hf_config import CONFIG_FILE, read_model_config, write_model_config
from cktrain.models.hf_tokenizer import GENERATION_FILE, copy_tokenizer, generation_config, special_ids
from cktrain.models.hf_weights import check_weights, load_weights, save_weights
from cktrain.nn.params import FlatParams

__all__ = ["check_weights", "load_weights", "read_model_config", "resolve_model", "save_folder"]

_STORED = {"float32": "F32", "bfloat16": "BF16"}


def resolve_model(model: ModelConfig) -> tuple[ModelConfig, Path | None]:
    """The architecture, and the folder whose weights to load (None: fresh ones). ValueError if it is bad.

    A model that names its folder and its architecture too was resolved before, so the folder's config.json is not
    read again: a saved run can be opened where the folder is gone.
    """
    if model.from_pretrained is None:
        return model, None
    folder = Path(model.from_pretrained)
    if model.hidden_size is None:
        model = read_model_config(folder).model_copy(update={"from_pretrained": model.from_pretrained})
    return model, folder


def save_folder(
    folder: str | Path,
    config: ModelConfig,
    params: FlatParams,
    tokenizer_from: str | Path | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that `transformers` loads with `from_pretrained`.

    `config` needs max_position_embeddings; `tokenizer_from` is a folder whose tokenizer is copied. Raises
    ValueError when `folder` exists and is not empty, when no Hugging Face class has this architecture, when a
    weight is NaN or infinite, and OSError when writing fails, a full disk for one; `folder` is then as it
    was.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"[hugging_face] {folder} exists and is not an empty folder. Choose another or delete it."
        )
    source = None if tokenizer_from is None else Path(tokenizer_from)
    ids = {} if source is None else special_ids(source)
    content = write_model_config(config, dtype, ids)
    temporary = folder.with_name(f".{folder.name}.tmp{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        if source is not None:
            copy_tokenizer(source, temporary)
        save_weights(temporary, params, _STORED[dtype], max_shard_bytes)
        _write_json(temporary / GENERATION_FILE, generation_config(source, ids))
        _write_json(temporary / CONFIG_FILE, content)
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        os.rename(temporary, folder)
        _sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            full = error.errno == errno.ENOSPC
            remedy = "Free some space" if full else "Check the folder's permissions"
            raise OSError(
                error.errno,
                f"[hugging_face] cannot write {folder}: {error.strerror}. {remedy}; nothing was kept",
            ) from None
        raise


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
