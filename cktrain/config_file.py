"""Reads a run's YAML file into a `Config`, and writes a resolved one back.

An error names the file, the line, the key path and, for an unknown key, the closest known one. `--set a.b=c` goes
through the same checks.
"""

from __future__ import annotations

import difflib
import re
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cktrain.config import Config


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2), refuses a key given twice and keeps no YAML 1.1 yes/no."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":float", ":bool"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.nan)$", re.IGNORECASE
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tfTF")
)


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """The configuration of `path` with `a.b=value` overrides applied.

    Raises ValueError with one line per problem: `FILE:LINE: key.path: what is wrong. What to do.`
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"[config] cannot read {path}: {reason}. Give the path of a YAML file") from None
    values, lines = _parse(text, str(path))
    for override in overrides:
        _apply(values, lines, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_describe(problem, lines, str(path)) for problem in error.errors()]
        raise ValueError("\n".join(problems)) from None


def save_config(config: Config, path: str | Path) -> None:
    """Write every key with its resolved value (the architecture spelled out); it reads back equal."""
    assert config.model.hidden_size is not None, "the model is resolved before it is saved"
    text = yaml.safe_dump(config.model_dump(exclude_none=True), sort_keys=False)
    Path(path).write_text(text, encoding="utf-8")
    assert load_config(path) == config, "a saved configuration must read back equal"


def _parse(text: str, name: str) -> tuple[dict[str, Any], dict[tuple, str]]:
    """The values, and where each key path stands as `FILE:LINE`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[tuple, str] = {}
        if node is not None:
            _locate(node, (), lines, name)
        values = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ValueError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ValueError(
            f"{name}:1: a run is a mapping of blocks (run:, model:, data: …), found {type(values).__name__}"
        )
    return values, lines


def _locate(node: yaml.Node, path: tuple, lines: dict[tuple, str], name: str) -> None:
    lines.setdefault(path, f"{name}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            if here in lines:
                raise ValueError(
                    f"{name}:{key.start_mark.line + 1}: {'.'.join(here)}: the key stands twice "
                    f"(first at {lines[here]}). Keep one"
                )
            lines[here] = f"{name}:{key.start_mark.line + 1}"
            _locate(value, here, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _locate(value, (*path, index), lines, name)


def _apply(values: dict[str, Any], lines: dict[tuple, str], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {override}: expected key.path=value, for instance --set optimizer.lr=1e-3")
    parts = tuple(key.strip().split("."))
    try:
        value = yaml.load(text, Loader=_Loader) if text.strip() else None
    except yaml.YAMLError as error:
        raise ValueError(
            f"--set {override}: {text!r} is not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
    target = values
    for depth, part in enumerate(parts[:-1]):
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise ValueError(f"--set {override}: {'.'.join(parts[: depth + 1])} is not a block")
        lines.setdefault(parts[: depth + 1], f"--set {override}")
    target[parts[-1]] = value
    lines[parts] = f"--set {override}"


def _describe(problem: Any, lines: dict[tuple, str], name: str) -> str:
    path = tuple(problem["loc"])
    known = path
    while known and known not in lines:
        known = known[:-1]
    where = lines[known] if path else name
    key = ".".join(str(part) for part in path)
    if problem["type"] == "extra_forbidden":
        choices = _fields_at(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), choices, n=1, cutoff=0.5)
        hint = (
            f"Did you mean {'.'.join([*map(str, path[:-1]), close[0]])!r}?"
            if close
            else f"Known keys: {', '.join(choices)}."
        )
        return f"{where}: {key}: unknown key. {hint}"
    if problem["type"] == "missing":
        return f"{where}: {key}: missing. It has no default; add it"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{where}: {key}: {message[0].lower() + message[1:]}{given}" if path else f"{where}: {message}"


def _fields_at(path: tuple) -> list[str]:
    section: type[BaseModel] = Config
    for part in path:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        section = annotation
    return list(section.model_fields)
