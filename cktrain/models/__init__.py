"""The families of models, one per file, found by what the files define: `FAMILY` (see `family.py`).

`model:` in a YAML file is the config of one family, which its key `family` names, or a Hugging Face folder alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BaseModel, BeforeValidator, Discriminator, Tag, TypeAdapter

from cktrain.models.family import Family, FromFolder, ModelConfig

DEFAULT_FAMILY = "llama"
FOLDER = "from_pretrained"
_SHARED = ("build", "family", "transformer")
"""Files here that are no family's."""
_ONCE_TOGETHER = ("gpt2", "llama")
"""Families whose keys older versions wrote into every run's config.yaml, at their defaults."""


def _find_families() -> dict[str, Family]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _SHARED)
    found = [importlib.import_module(f"{__name__}.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


FAMILIES = _find_families()
"""By the key `family`."""


def families_with(key: str) -> list[str]:
    """The families whose config has the key."""
    return [name for name, family in FAMILIES.items() if key in family.config.model_fields]


def _tag(values: Any) -> str:
    """Whose config the values of a `model:` block are."""
    if isinstance(values, BaseModel):
        return values.family if isinstance(values, ModelConfig) else FOLDER
    if not isinstance(values, Mapping):
        return DEFAULT_FAMILY
    if values.get(FOLDER) is not None and values.get("hidden_size") is None:
        return FOLDER
    return str(values.get("family", DEFAULT_FAMILY))


def _without_idle_keys(values: Any) -> Any:
    """Without keys of another family that hold their default there, as older versions wrote them (`_ONCE_TOGETHER`)."""
    family = FAMILIES.get(_tag(values))
    if family is None or not isinstance(values, Mapping):
        return values

    def idle(key: Any, value: Any) -> bool:
        names = [name for name in families_with(key) if name in _ONCE_TOGETHER]
        fields = [FAMILIES[name].config.model_fields[key] for name in names]
        return key not in family.config.model_fields and any(field.default == value for field in fields)

    return {key: value for key, value in values.items() if not idle(key, value)}


if TYPE_CHECKING:
    AnyModel = ModelConfig
    """Of a `model:` block; a `FromFolder` before `cktrain.hf.folder.resolve_model`."""
else:
    _CONFIGS = {FOLDER: FromFolder} | {name: family.config for name, family in FAMILIES.items()}
    AnyModel = Annotated[
        Union[tuple(Annotated[config, Tag(name)] for name, config in _CONFIGS.items())],  # noqa: UP007
        Discriminator(_tag),
        BeforeValidator(_without_idle_keys),
    ]


def parse_model(values: Mapping[str, Any]) -> ModelConfig:
    """The keys of a `model:` block as the config of their family. Raises pydantic's ValidationError, a ValueError."""
    return TypeAdapter(AnyModel).validate_python(values)
