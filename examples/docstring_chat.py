"""Chat rows out of the docstrings of this Python's standard library: what does X do -> the docstring's first paragraph.

    python examples/docstring_chat.py docstrings.jsonl
    cktrain data prepare docstrings.jsonl data/docstrings --tokenizer MODEL --sequence-length 512 --group-by module

A row is {"messages": [question, answer], "module": "json.decoder"}. The same Python gives the same rows in the same order;
no module is imported. `--group-by module` keeps what one module says on one side of the split.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__"}
SHORTEST, LONGEST = 20, 400
"""Of an answer, in characters: shorter ones say nothing, longer ones are no first paragraph."""


def modules(library: Path) -> Iterator[tuple[str, ast.Module]]:
    """(name, syntax tree) of each module whose name does not begin with an underscore, by name."""
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not parts or LEFT_OUT & set(parts) or any(part.startswith("_") for part in parts):
            continue
        try:
            yield ".".join(parts), ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a file that is there to be wrong
            continue


def documented(tree: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """(kind, dotted name, first paragraph) of what is public and says what it does, in the order of the file."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        full = f"{name}.{node.name}"
        paragraph = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
        if SHORTEST <= len(paragraph) <= LONGEST and not paragraph.startswith(">>>"):
            yield "class" if isinstance(node, ast.ClassDef) else "function", full, paragraph
        if isinstance(node, ast.ClassDef):
            yield from documented(node, full)


def rows(library: Path) -> Iterator[dict[str, object]]:
    """Chat rows of a folder of Python sources."""
    for module, tree in modules(library):
        for kind, name, paragraph in documented(tree, module):
            question = f"What is the class {name} for?" if kind == "class" else f"What does {name} do?"
            messages = [
                {"role": "user", "content": f"{question} (Python's standard library)"},
                {"role": "assistant", "content": paragraph},
            ]
            yield {"messages": messages, "module": module}


def main() -> None:
    """Write the rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, help="so many, evenly spread; default: all")
    options = parser.parse_args()
    found = list(rows(Path(sysconfig.get_path("stdlib"))))
    count = len(found) if options.rows is None else max(1, min(options.rows, len(found)))
    with open(options.out, "w", encoding="utf-8") as file:
        for index in range(count):
            file.write(json.dumps(found[index * len(found) // count]) + "\n")
    print(f"{options.out}: {count:,} rows of {len(found):,}")


if __name__ == "__main__":
    main()
