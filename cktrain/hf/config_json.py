"""config.json of Hugging Face to a family's config and back.

What all families share is read here; each family's file reads and writes the rest (`Family.read_config`,
`Family.write_config`). A missing key has the default of transformers' class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cktrain.foreign_file import read_json, shorten, spell
from cktrain.hf.config_keys import ConfigKeys
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.missing_families import MISSING
from cktrain.hf.no_model import what_to_give
from cktrain.hf.text_part import text_part
from cktrain.models import FAMILIES
from cktrain.models.family import Family, ModelConfig

CONFIG_FILE = "config.json"
ARCHITECTURES = {
    model_type: kind.name for family in FAMILIES.values() for model_type, kind in family.model_types.items()
}
"""transformers' class of each model_type."""
_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "intermediate_size",
)


def read_model_config(folder: str | Path) -> ModelConfig:
    """The architecture that a folder's config.json describes, or a GGUF file. ValueError for what is not supported."""
    if is_gguf(folder):
        from cktrain.hf.gguf_file.source import read_config

        return _config_of(Path(folder), read_config(folder))
    path = Path(folder) / CONFIG_FILE
    remedy = "Give a folder with a Hugging Face model in it, or fetch the file again."
    if not path.exists():
        remedy = what_to_give(Path(folder)) or _how_to_fetch(Path(folder)) or remedy
    return _config_of(path, read_json(path, dict[str, Any], area="hugging_face", remedy=remedy))


def _config_of(path: Path, values: Mapping[str, Any]) -> ModelConfig:
    """The architecture that a config.json's values describe; `path` is where they were read."""
    try:
        values = text_part(values)
    except ValueError as error:
        raise ValueError(f"[hugging_face] {path}: {error}") from None
    model_type = values.get("model_type")
    if isinstance(model_type, str) and model_type in MISSING:
        missing, nearest = MISSING[model_type]
        raise ValueError(
            f"[hugging_face] {path}: model_type {model_type!r} is not supported: {missing}. The nearest that is, is "
            f"{nearest}."
        )
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ValueError(
            f"[hugging_face] {path}: model_type {shorten(model_type)} is not supported. Use one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    family = next(family for family in FAMILIES.values() if model_type in family.model_types)
    if other := _other_head(values.get("architectures")):
        raise ValueError(
            f"[hugging_face] {path}: the model is a {shorten(other)}, whose head predicts no tokens. Give a "
            f"{ARCHITECTURES[model_type]}."
        )
    try:
        return _read(family, ConfigKeys(model_type, values, family.model_types[model_type].defaults))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(
            f"[hugging_face] {path}: {key + ': ' if key else ''}{spell(problem)}. Correct the file."
        ) from None
    except ValueError as error:
        raise ValueError(f"[hugging_face] {path}: {error}") from None


def _other_head(architectures: Any) -> str | None:
    """The class of a model for another task (LlamaForSequenceClassification); None: one of language, or not said."""
    names = (
        [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    )
    others = [name for name in names if "For" in name and "ForCausalLM" not in name]
    return others[0] if others and len(others) == len(names) else None


def _how_to_fetch(folder: Path) -> str | None:
    """What to do with a name of the hub, which other tools download by themselves."""
    if folder.exists() or folder.is_absolute() or len(folder.parts) != 2:
        return None
    return (
        f"Give a folder with a Hugging Face model in it. If {folder} is a name of the hub: nothing is downloaded here, "
        f"fetch it first (hf download {folder} --local-dir FOLDER)."
    )


def _read(family: Family, keys: ConfigKeys) -> ModelConfig:
    keys.refuse(family.computes)
    found: dict[str, Any] = {}
    for key in ("vocab_size", *_SIZES):
        name = family.size_keys.get(key, key)
        value = keys.get(name, keys.get(key))
        if value is not None:
            found[key] = value
        elif key == "max_position_embeddings" or family.config.model_fields[key].is_required():
            raise ValueError(f"{name} is missing. Fetch the file again.")
    if keys.get("initializer_range") is not None:
        found["initializer_range"] = keys.get("initializer_range")
    found["tie_word_embeddings"] = keys.get("tie_word_embeddings", False)
    return family.config(**found, **family.read_config(keys))


def write_model_config(config: ModelConfig, dtype: str, special_ids: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's content. `dtype` is float32 or bfloat16; `special_ids` are bos_token_id and so on.

    Raises ValueError when no Hugging Face class has this architecture.
    """
    family = FAMILIES[config.family]
    own = family.write_config(config)
    if config.max_position_embeddings is None:
        raise ValueError("[hugging_face] the model has no max_position_embeddings. Give it before saving.")
    return {
        "architectures": [ARCHITECTURES[own["model_type"]]],
        "model_type": own["model_type"],
        "vocab_size": config.vocab_size,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        **{key: special_ids.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
        **{family.size_keys.get(key, key): getattr(config, key) for key in _SIZES},
        **own,
    }


def model_type_of(config: ModelConfig) -> str:
    """config.json's model_type for this architecture. Raises ValueError where no class has all of its parts."""
    return str(FAMILIES[config.family].write_config(config)["model_type"])
