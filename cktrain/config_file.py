"""Reads a run's YAML file into a `Config`, and writes a resolved one back.

An error names the file, the line, the key path and, for an unknown key, the closest known one. `--set a.b=c` goes
through the same checks.
"""

from __future__ import annotations

import copy
import difflib
import logging
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cktrain.checkpoint_folder import free_name
from cktrain.config import Config
from cktrain.foreign_file import shorten, spell
from cktrain.foreign_keys import translated
from cktrain.models import FAMILIES, FOLDER, families_with
from cktrain.models.family import FromFolder, ModelConfig
from cktrain.run_length import without_counted_steps
from cktrain.yaml_text import Lines, dump_yaml, parse_yaml, read_yaml

log = logging.getLogger("cktrain")

BLOCKS = "a run is a mapping of blocks (run:, model:, data: …)"


Values = typing.Mapping[str, Any]


def load_config(path: str | Path | Values, overrides: typing.Sequence[str] | Values = ()) -> Config:
    """The configuration of `path` with overrides applied: texts `a.b=value`, or `{"a.b": value}`.

    Instead of a path also its content, as nested mappings. Raises ValueError with one line per problem:
    `FILE:LINE: key.path: what is wrong. What to do.`
    """
    values: Any
    lines: Lines
    if isinstance(path, typing.Mapping):
        name, values, lines = "the configuration", copy.deepcopy(dict(path)), {}
    else:
        name = str(path)
        values, lines = read_yaml(name, area="config", remedy="Give the path of a YAML file")
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise ValueError(f"{name}:1: {BLOCKS}, found {found}. Start from a file in examples/")
    _override(values, lines, overrides)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, lines, name) for problem in error.errors()]
        raise ValueError("\n".join(problems)) from None


def with_overrides(values: Values, overrides: typing.Sequence[str] | Values) -> dict[str, Any]:
    """Nested mappings with overrides applied, as `load_config` does it, and not yet checked."""
    found = copy.deepcopy(dict(values))
    _override(found, {}, overrides)
    return found


def save_config(config: Config, path: str | Path) -> None:
    """Write every key with its resolved value (the architecture spelled out); it reads back equal.

    A file that stands there and was not written so, a user's own with comments for one, keeps its bytes under the name
    `config.yaml.before`, which is said.
    """
    assert isinstance(config.model, ModelConfig), "the model is resolved before it is saved"
    config = without_counted_steps(config)
    path = Path(path)
    if path.is_file() and not _was_saved(path):
        kept = free_name(path.with_name(path.name + ".before"))
        path.rename(kept)
        log.warning(
            "[run] %s was not written by a run: it is %s now, and the resolved one stands there", path, kept
        )
    path.write_text(dump_yaml(_spelled_out(config)), encoding="utf-8")
    assert load_config(path) == config, "a saved configuration must read back equal"


def _was_saved(path: Path) -> bool:
    """Whether a file's text is what `save_config` makes of its values, so that nothing is lost with it."""
    try:
        return path.read_bytes() == dump_yaml(_spelled_out(load_config(path))).encode()
    except ValueError:
        return False


def _spelled_out(section: BaseModel) -> dict[str, Any]:
    """Every key with its value; without those that are nothing by default and were not given."""
    found: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            found[key] = _spelled_out(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            found[key] = [_spelled_out(item) for item in value]
        elif value is not None or field.default is not None:
            found[key] = value
    return found


def _override(values: dict[str, Any], lines: Lines, overrides: typing.Sequence[str] | Values) -> None:
    if isinstance(overrides, typing.Mapping):
        for key, value in overrides.items():
            _put(values, lines, key, value, f"{key}={shorten(value)}")
    else:
        for override in overrides:
            _apply(values, lines, override)


def _apply(values: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, text = override.partition("=")
    said = f"--set {override}" if len(override) <= 200 else f"--set {override[:200]}…"
    if not equals or not key.strip():
        raise ValueError(f"{said}: expected key.path=value, for instance --set optimizer.lr=1e-3")
    parts = tuple(part.strip() for part in key.split("."))
    _put(values, lines, key, _value(parts, text.strip(), said), said)


def _put(values: dict[str, Any], lines: Lines, key: str, value: Any, said: str) -> None:
    parts = tuple(part.strip() for part in key.split("."))
    target = values
    for depth, part in enumerate(parts[:-1]):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ValueError(f"{said}: {'.'.join(parts[: depth + 1])} is not a block")
        lines.setdefault(parts[: depth + 1], said)
    target[parts[-1]] = os.fspath(value) if isinstance(value, os.PathLike) else value
    lines[parts] = said


def _value(parts: tuple[str, ...], text: str, said: str) -> Any:
    """The value of an override: YAML; but where a text belongs, it is that text, with all its colons and `#`."""
    if _takes_text(parts) and text not in ("", "~", "null") and text[0] not in "\"'":
        return text
    return parse_yaml(text, said)[0]


def _takes_text(parts: tuple[str, ...]) -> bool:
    """Whether the key of this path holds a text, or nothing."""
    kinds: list[Any] = [Config]
    for part in parts:
        fields = [section.model_fields[part] for section in _blocks(kinds) if part in section.model_fields]
        kinds = [kind for field in fields for kind in _kinds(field.annotation)]
    return bool(kinds) and all(_is_text(kind) for kind in kinds)


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation unites, None left out."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return [kind for arg in get_args(annotation) if arg is not type(None) for kind in _kinds(arg)]
    return [annotation]


def _blocks(kinds: list[Any]) -> list[type[BaseModel]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def key_from_elsewhere(key: str) -> str | None:
    """What to write instead of another trainer's key, or of one of ours without its block; None: nobody knows it."""
    return translated(key, _places(Config))


def _places(section: type[BaseModel], prefix: str = "") -> list[str]:
    """The paths of all keys and blocks below a block."""
    found = []
    for key, field in section.model_fields.items():
        found.append(prefix + key)
        for block in _blocks(_kinds(field.annotation)):
            found += _places(block, f"{prefix}{key}.")
    return list(dict.fromkeys(found))


def _is_text(kind: Any) -> bool:
    return kind is str or (
        get_origin(kind) is Literal and all(isinstance(arg, str) for arg in get_args(kind))
    )


def _describe(problem: Any, lines: dict[tuple, str], name: str) -> str:
    path, block = tuple(problem["loc"]), ""
    if path[:1] == ("model",) and len(path) > 1:  # pydantic puts in which of the families' blocks it is
        block, path = str(path[1]), (path[0], *path[2:])
    if problem["type"] == "union_tag_invalid":
        path += ("family",)
    known = path
    while known and known not in lines:
        known = known[:-1]
    where = lines.get(known, name)
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        return f"{where}: {key}: {_unknown(path, block)}"
    if problem["type"] == "missing":
        return f"{where}: {key}: {_missing(path, block)}"
    if problem["type"] == "model_type":
        message = f"a block of keys belongs here, found {shorten(problem['input'])}"
    elif problem["type"] == "invalid_key":
        message = f"{shorten(problem['input'])} is no key. Keys are words"
    elif problem["type"] == "union_tag_invalid":
        message = _unknown_family(problem["ctx"]["tag"])
    else:
        message = f"{spell(problem)}{_hint(problem)}"
    return f"{where}: {key}: {message}" if path else f"{where}: {message}"


def _unknown(path: tuple, block: str) -> str:
    """What to do with a key that its block does not have. `block` says which of the `model:` blocks it is."""
    key, choices = str(path[-1]), _fields_at(path[:-1], block)
    first, dot, rest = key.partition(".")
    if dot and first in choices:
        return f"unknown key. Write it as a block: {first}: {{{rest}: …}}"
    others = families_with(key) if path[:-1] == ("model",) else []
    if others and block == FOLDER:
        return f"{FOLDER} takes the architecture from its config.json. Remove {key}"
    if others:
        have = "has" if len(others) == 1 else "have"
        return f"{block} has no {key}, {' and '.join(others)} {have}. Remove it, or set another family"
    elsewhere = key_from_elsewhere(key)
    if elsewhere:
        return f"unknown key. {elsewhere}"
    close = difflib.get_close_matches(key, choices, n=1, cutoff=0.5)
    if close:
        return f"unknown key. Did you mean {'.'.join([*map(str, path[:-1]), close[0]])!r}?"
    return f"unknown key. Known keys: {', '.join(choices)}."


def _missing(path: tuple, block: str) -> str:
    if block in FAMILIES:
        return f"missing. A fresh {block} needs it; add it, or name a folder with {FOLDER}"
    return "missing. It has no default; add it"


def _unknown_family(found: str) -> str:
    inside = [name for name, family in FAMILIES.items() if found in family.model_types]
    hint = f"{found} is a model of family {inside[0]}" if inside else f"Use one of {', '.join(FAMILIES)}"
    return f"there is no family {shorten(found)}. {hint}"


def _hint(problem: Any) -> str:
    """What to write instead, where YAML's reading of the value surprises."""
    kind, found = problem["type"], problem["input"]
    if (
        kind == "bool_type"
        and isinstance(found, str)
        and found.lower() in ("yes", "on", "no", "off", "y", "n")
    ):
        return f". Write {'true' if found.lower() in ('yes', 'on', 'y') else 'false'}"
    if kind == "bool_type" and found in (0, 1):
        return f". Write {'true' if found else 'false'}"
    if kind == "int_type" and isinstance(found, float) and found.is_integer() and abs(found) < 1e15:
        return f". Write {int(found)}"
    if kind in ("int_type", "float_type") and isinstance(found, str):
        if found.lstrip(
            "+-"
        ).isdigit():  # quoted, or with a leading zero, which YAML 1.1 took for an octal number
            return f". Write {int(found)}, without quotes and leading zeros"
        return ". Write a number, as 30 or 1e-3" if found.strip() else ". Give a number"
    if kind == "string_type" and found is not None and not isinstance(found, (dict, list)):
        return f'. Quote it to make it text: "{found}"'
    return ""


def _fields_at(path: tuple, block: str) -> list[str]:
    if path == ("model",):
        return list((FAMILIES[block].config if block in FAMILIES else FromFolder).model_fields)
    section: type[BaseModel] = Config
    for part in path:
        if isinstance(part, int):  # an entry of a list of blocks
            continue
        kinds = _kinds(section.model_fields[part].annotation)
        (section,) = _blocks([get_args(kind)[0] if get_origin(kind) is list else kind for kind in kinds])
    return list(section.model_fields)
