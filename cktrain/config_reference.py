"""Writes docs/configuration.md from the typed configuration.

    python -m cktrain.config_reference > docs/configuration.md

A test compares the file with what this prints, so the reference can't drift from the code.
"""

from __future__ import annotations

import sys
import types
import typing
from typing import Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cktrain.config import Config
from cktrain.models import DEFAULT_FAMILY, FAMILIES
from cktrain.models.family import ModelConfig

INTRODUCTION = """\
# Configuration

Made from `cktrain/config.py` and `cktrain/models/` by `python -m cktrain.config_reference`; do not edit.

A run is one YAML file. Unknown keys and wrong types are errors that name the line, the key and the closest known key.
`--set block.key=value` overrides a key on the command line; where a text belongs, all after the `=` is that text.
`1e-3` and `1_000` are numbers; `yes`, `1:30`, `010` and dates are text, and so errors where a number or true and false
belong. `~` is expanded in paths, variables like `$HOME` are not: the shell does that for `--set`. The resolved
configuration is saved in the run's folder and in each checkpoint.
"""


def reference() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for name, field in Config.model_fields.items():
        section = next((kind for kind in get_args(field.annotation) if _is_block(kind)), field.annotation)
        if name == "model":
            parts += _models()
        elif _is_block(section):
            parts.append(_section(name, section))
        else:
            parts.append(
                f"## {name}\n{field.description} Type: {_type(field)}. Default: {_default(field)}.\n"
            )
    return "\n".join(parts)


def _models() -> list[str]:
    """The keys that all families have, then those of each."""
    names = " \\| ".join(f"`{name}`" for name in FAMILIES)
    shared = _section("model", ModelConfig).replace(
        "| `family` | text | required |", f"| `family` | {names} | `{DEFAULT_FAMILY}` |"
    )
    parts = [shared]
    for name, family in FAMILIES.items():
        own = {
            key: field
            for key, field in family.config.model_fields.items()
            if key != "family" and repr(field) != repr(ModelConfig.model_fields.get(key))
        }
        parts.append(_section(f"model, family: {name}", family.config, own))
    return parts


def _section(name: str, section: type[BaseModel], fields: dict[str, FieldInfo] | None = None) -> str:
    lines = [
        f"## {name}",
        f"{' '.join((section.__doc__ or '').split())}\n",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    nested = []
    for key, field in (section.model_fields if fields is None else fields).items():
        if _is_block(field.annotation):
            nested.append(_section(f"{name}.{key}", field.annotation))
            continue
        if (entry := _entry(field.annotation)) is not None:
            nested.append(_section(f"{name}.{key}, each", entry))
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field)} | {_default(field)} | {meaning} |")
    return "\n".join(lines) + "\n" + "".join("\n" + text for text in nested)


def _is_block(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _entry(annotation: Any) -> type[BaseModel] | None:
    """The block that each entry of a list is, of a key that holds such a list."""
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is list and _is_block(get_args(kind)[0]):
            return get_args(kind)[0]
    return None


def _type(field: FieldInfo) -> str:
    return ", ".join([_spell(field.annotation), *_bounds(field.metadata)])


def _bounds(constraints: list[Any]) -> list[str]:
    found = []
    for constraint in constraints:
        for item in getattr(constraint, "metadata", None) or [constraint]:
            for symbol, bound in (("> ", "gt"), ("≥ ", "ge"), ("< ", "lt"), ("≤ ", "le")):
                if getattr(item, bound, None) is not None:
                    found.append(f"{symbol}{getattr(item, bound)}")
    return found


def _spell(annotation: Any) -> str:
    if get_origin(annotation) is typing.Annotated:
        inner, *constraints = get_args(annotation)
        return ", ".join([_spell(inner), *_bounds(constraints)])
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return " or ".join(_spell(arg) for arg in get_args(annotation) if arg is not type(None))
    if get_origin(annotation) is list and _is_block(get_args(annotation)[0]):
        return "list of blocks"
    if get_origin(annotation) is list:
        return f"list of {_spell(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None:
        return "-"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    sys.stdout.write(reference())
