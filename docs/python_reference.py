"""Writes the reference of docs/python.md from the docstrings of what `cktrain` exports; a test holds both together.

python docs/python_reference.py
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cktrain

PAGE = Path(__file__).with_name("python.md")
HEADING = "## Reference\n"
FUNCTIONS = ("bind", "load", "generate", "train", "finetune", "evaluate")
CLASSES = ("Model", "TrainedRun")


def reference() -> str:
    """The section, in Markdown."""
    parts = [HEADING, "Made from the docstrings by `docs/python_reference.py`.\n"]
    for name in FUNCTIONS:
        parts.append(_entry(f"cktrain.{name}", getattr(cktrain, name)))
    for name in CLASSES:
        found = getattr(cktrain, name)
        parts.append(f"### `cktrain.{name}`\n{inspect.getdoc(found)}\n")
        parts += [_entry(f"{name}.{member}", value) for member, value in _members(found)]
    return "\n".join(parts)


def _members(found: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(found).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def _entry(name: str, value: Any) -> str:
    text = inspect.cleandoc(inspect.getdoc(value) or "")
    if isinstance(value, property):
        return f"#### `{name}`\n{_listed(text)}\n"
    signature = inspect.signature(value)
    shown = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    kept = [p for p in shown if p.name != "self"]
    bare = signature.replace(parameters=kept, return_annotation=inspect.Signature.empty)
    return f"#### `{name}{bare}`\n{_listed(text)}\n"


def _listed(text: str) -> str:
    """A docstring's `Args:` and `Raises:` as lists."""
    lines = []
    for line in text.splitlines():
        if line in ("Args:", "Raises:"):
            lines += [f"{line[:-1]}:", ""]
        elif line.startswith("    ") and not line.startswith("     ") and ":" in line:
            name, _, rest = line.strip().partition(":")
            lines.append(f"- `{name}`:{rest}")
        elif line.startswith("        "):
            lines.append(f"  {line.strip()}")
        else:
            lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """Replace the section."""
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text[: text.index(HEADING)] + reference(), encoding="utf-8")


if __name__ == "__main__":
    main()
