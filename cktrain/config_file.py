"""Reads a run's YAML file into a `Config`, and writes a resolved one back.

An error names the file, the line, the key path and, for an unknown key, the closest known one. `--set a.b=c` goes
through the same checks.
"""

from __future__ import annotations

import difflib
import logging
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cktrain.checkpoint_folder import free_name
from cktrain.config import Config
from cktrain.foreign_file import shorten, spell
from cktrain.yaml_text import Lines, dump_yaml, parse_yaml, read_yaml

log = logging.getLogger("cktrain")

BLOCKS = "a run is a mapping of blocks (run:, model:, data: …)"


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration of `path` with `a.b=value` overrides applied.

    Raises ValueError with one line per problem: `FILE:LINE: key.path: what is wrong. What to do.`
    """
    name = str(path)
    values, lines = read_yaml(name, area="config", remedy="Give the path of a YAML file")
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise ValueError(f"{name}:1: {BLOCKS}, found {found}. Start from a file in examples/")
    for override in overrides:
        _apply(values, lines, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, lines, name) for problem in error.errors()]
        raise ValueError("\n".join(problems)) from None


def save_config(config: Config, path: str | Path) -> None:
    """Write every key with its resolved value (the architecture spelled out); it reads back equal.

    A file that stands there and was not written so, a user's own with comments for one, keeps its bytes under the name
    `config.yaml.before`, which is said.
    """
    assert config.model.hidden_size is not None, "the model is resolved before it is saved"
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
    found = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, BaseModel):
            found[key] = _spelled_out(value)
        elif value is not None or field.default is not None:
            found[key] = value
    return found


def _apply(values: dict[str, Any], lines: Lines, override: str) -> None:
    key, equals, text = override.partition("=")
    said = f"--set {override}" if len(override) <= 200 else f"--set {override[:200]}…"
    if not equals or not key.strip():
        raise ValueError(f"{said}: expected key.path=value, for instance --set optimizer.lr=1e-3")
    parts = tuple(part.strip() for part in key.split("."))
    target = values
    for depth, part in enumerate(parts[:-1]):
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ValueError(f"{said}: {'.'.join(parts[: depth + 1])} is not a block")
        lines.setdefault(parts[: depth + 1], said)
    target[parts[-1]] = _value(parts, text.strip(), said)
    lines[parts] = said


def _value(parts: tuple[str, ...], text: str, said: str) -> Any:
    """The value of an override: YAML; but where a text belongs, it is that text, with all its colons and `#`."""
    if _takes_text(parts) and text not in ("", "~", "null") and text[0] not in "\"'":
        return text
    return parse_yaml(text, said)[0]


def _takes_text(parts: tuple[str, ...]) -> bool:
    """Whether the key of this path holds a text, or nothing."""
    section: Any = Config
    for depth, part in enumerate(parts):
        field = section.model_fields.get(part)
        if field is None:
            return False
        section = field.annotation
        inside = isinstance(section, type) and issubclass(section, BaseModel)
        if depth + 1 < len(parts) and not inside:
            return False
    return all(_is_text(kind) for kind in _kinds(section))


def _kinds(annotation: Any) -> list[Any]:
    """The types that an annotation unites, None left out."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return [kind for arg in get_args(annotation) if arg is not type(None) for kind in _kinds(arg)]
    return [annotation]


def _is_text(kind: Any) -> bool:
    return kind is str or (
        get_origin(kind) is Literal and all(isinstance(arg, str) for arg in get_args(kind))
    )


def _describe(problem: Any, lines: dict[tuple, str], name: str) -> str:
    path = tuple(problem["loc"])
    known = path
    while known and known not in lines:
        known = known[:-1]
    where = lines[known] if path else name
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        choices = _fields_at(path[:-1])
        block, dot, rest = str(path[-1]).partition(".")
        if dot and block in choices:
            return f"{where}: {key}: unknown key. Write it as a block: {block}: {{{rest}: …}}"
        close = difflib.get_close_matches(str(path[-1]), choices, n=1, cutoff=0.5)
        hint = (
            f"Did you mean {'.'.join([*map(str, path[:-1]), close[0]])!r}?"
            if close
            else f"Known keys: {', '.join(choices)}."
        )
        return f"{where}: {key}: unknown key. {hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: missing. It has no default; add it"
    if problem["type"] == "model_type":
        message = f"a block of keys belongs here, found {shorten(problem['input'])}"
    elif problem["type"] == "invalid_key":
        message = f"{shorten(problem['input'])} is no key. Keys are words"
    else:
        message = f"{spell(problem)}{_hint(problem)}"
    return f"{where}: {key}: {message}" if path else f"{where}: {message}"


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


def _fields_at(path: tuple) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return list(section.model_fields)
