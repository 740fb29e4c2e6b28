"""Hugging Face folders: config.json, safetensors and tokenizer files, loaded and saved.

`config_json.py` maps the architecture, `tensors.py` the weights; `cktrain.side_files` has what stands beside them. A folder
is written under a temporary name and renamed when it is whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cktrain.data.special_tokens import KEYS, end_token, special_ids
from cktrain.data.tokenizer_backend import read_backend
from cktrain.foreign_file import read_json
from cktrain.hf.config_json import ARCHITECTURES, CONFIG_FILE, read_model_config, write_model_config
from cktrain.hf.hub import local_path
from cktrain.hf.tensors import save_weights
from cktrain.hf.text_part import has_text_part, text_part
from cktrain.memory.param_store import ParamStore
from cktrain.models.family import FromFolder, ModelConfig
from cktrain.side_files import GENERATION_FILE, TOKENIZER_CONFIG_FILE, SideFiles
from cktrain.whole_output import whole_folder

log = logging.getLogger(__name__)

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""config.json's names of types, and those of safetensors."""
_SPELLED_OTHERWISE = ("dtype", "rope_parameters", "auto_map", "_name_or_path")
"""Keys of a source's config.json that are written in another spelling, or name files and code that do not come along."""


def resolve_model(model: ModelConfig | FromFolder) -> tuple[ModelConfig, Path | None]:
    """The architecture, and the folder whose weights to load (None: fresh ones). ValueError if it is bad.

    An id of a Hugging Face Hub becomes the folder that has it (`cktrain/hf/hub.py`).

    A model that names its folder and its architecture too was resolved before, so the folder's config.json is not
    read again: a saved run can be opened where the folder is gone.
    """
    if isinstance(model, FromFolder):
        folder = local_path(model.from_pretrained)
        found = read_model_config(folder)
        _say_what_is_left_out(folder)
        kept = {"from_pretrained": str(folder), "freeze": model.freeze, "quantize": model.quantize}
        model = found.model_copy(update=kept)
    return model, None if model.from_pretrained is None else Path(model.from_pretrained)


def _say_what_is_left_out(folder: Path) -> None:
    path = folder / CONFIG_FILE
    if not path.is_file():  # a GGUF file
        return
    values = read_json(path, dict[str, Any], area="hugging_face", remedy="Fetch the file again.")
    if has_text_part(values):
        log.info(
            "model: %s is a %s, which reads images too: its text part is taken, and saved alone; what sees is left out",
            folder,
            values["model_type"],
        )


def save_folder(
    folder: str | Path,
    config: ModelConfig,
    params: ParamStore,
    side: SideFiles | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a folder that `transformers` loads with `from_pretrained`.

    `config` needs max_position_embeddings; `side` is what stands beside the weights, and is written byte for byte,
    except config.json, which keeps what it says beyond the architecture. Raises ValueError when `folder` exists and is
    not empty, when no Hugging Face class has this architecture, when a weight is NaN or infinite, and OSError when
    writing fails, a full disk for one; `folder` is then as it was.
    """
    save = partial(save_weights, config=config, params=params)
    write_folder(folder, config, save, side, dtype, max_shard_bytes)


def write_folder(
    folder: str | Path,
    config: ModelConfig,
    weights: Callable[[Path, str, int], None],
    side: SideFiles | None,
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """As `save_folder`; `weights(folder, type, max_shard_bytes)` writes them, in a type of safetensors."""
    side = side or SideFiles()
    ids = special_ids(side)
    plain = write_model_config(config, dtype, ids)
    extra: dict[str, dict[str, Any]] = {}
    if GENERATION_FILE not in side.files:
        extra[GENERATION_FILE] = ids
    if side.has_tokenizer and TOKENIZER_CONFIG_FILE not in side.files:
        extra[TOKENIZER_CONFIG_FILE] = _tokenizer_config(side)
    with whole_folder(Path(folder), "hugging_face") as temporary:
        side.write(temporary)
        weights(temporary, STORED[dtype], max_shard_bytes)
        for name, values in extra.items():
            _write_json(temporary / name, values)
        _write_config(temporary, plain, side)


def _write_config(folder: Path, plain: dict[str, Any], side: SideFiles) -> None:
    """config.json: `plain`, with what that of the source says beyond it. ValueError when they are of different models."""
    _write_json(folder / CONFIG_FILE, plain)
    source = text_part(side.json(CONFIG_FILE))
    if not source:
        return
    wanted = read_model_config(folder)
    values = {key: value for key, value in source.items() if key not in _SPELLED_OTHERWISE} | plain
    values |= {key: source[key] for key in KEYS if source.get(key) is not None}
    if source.get("model_type") in ARCHITECTURES:
        values["model_type"] = source["model_type"]
        values["architectures"] = [ARCHITECTURES[source["model_type"]]]
    _write_json(folder / CONFIG_FILE, values)
    if read_model_config(folder) != wanted:
        raise ValueError(
            f"[hugging_face] {Path(side.found_in) / CONFIG_FILE} describes another model than the one that was trained. "
            "Nothing was written."
        )


def _tokenizer_config(side: SideFiles) -> dict[str, Any]:
    """What transformers needs beside a tokenizer.json that came alone."""
    token = end_token(side, read_backend(side))
    return {"tokenizer_class": "PreTrainedTokenizerFast"} | ({} if token is None else {"eos_token": token})


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
