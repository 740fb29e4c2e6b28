"""Prompts from a file: JSON lines with a key "prompt", or text with a prompt on each line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cktrain.foreign_file import parse_json, read_text

SUFFIXES = (".jsonl", ".ndjson", ".json")
"""Of files whose lines are JSON."""
KEY = "prompt"
_REMEDY = f'Give one object per line: {{"{KEY}": "text"}}.'


def read_prompts(path: str | os.PathLike[str]) -> list[str]:
    """The prompts in order; blank lines are none. Raises ValueError that names file and line, and where there is none."""
    text = read_text(path, area="generate", remedy="Give a file of prompts in UTF-8.")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"[generate] {path} has no prompt. Give one per line.")
    if Path(path).suffix.lower() not in SUFFIXES:
        return [line.removesuffix("\r") for _, line in lines]
    return [_prompt(line, f"{path}:{number}") for number, line in lines]


def _prompt(line: str, name: str) -> str:
    row = parse_json(line, dict[str, Any], name=name, area="generate", remedy=_REMEDY)
    if not isinstance(row.get(KEY), str):
        what = "missing" if KEY not in row else f"{type(row[KEY]).__name__}, not text"
        raise ValueError(f'[generate] {name}: "{KEY}" is {what}. {_REMEDY}')
    return str(row[KEY])
