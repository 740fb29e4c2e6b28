"""YAML that a person wrote: read by the rules that people expect, with bounds, and written so that all read it alike.

Read is what YAML 1.2 calls a number, and not what 1.1 made of it behind one's back: `1e-3` is a number, `yes`, `1:30`,
`010` and `2024-01-01` are text (and so an error where a number belongs), `1_000` is 1000. A key given twice is refused,
and so are aliases that stand inside themselves or unfold to more than there is memory for, whatever is nested deeper
than any configuration is, and files that are no text.

Written text quotes whatever either version of YAML would read as something else.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from cktrain.foreign_file import read_text, shorten

LIMIT_BYTES = 1 << 20
DEPTH = 32
"""Levels of nesting, aliases unfolded."""
NODES = 20_000
"""Keys and values, aliases unfolded."""

INVISIBLE = re.compile("[\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f\u205f-\u2064\u3000\ufeff]")
"""Spaces that are none to YAML, and characters without width: they come with text that was copied from a page."""

Lines = dict[tuple, str]
"""Where each key path stands, as `FILE:LINE`."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's numbers and true/false, whose nesting is bounded while it is composed."""

    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.level += 1
        if self.level > DEPTH:
            raise yaml.composer.ComposerError(
                None, None, f"nested deeper than {DEPTH} levels", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """An integer of any base."""
        return int(self.construct_scalar(node).replace("_", ""), 0)


_WHOLE = re.compile(r"^[-+]?(0|[1-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)$")
_NUMBER = re.compile(
    r"^[-+]?(([0-9][0-9_]*)?\.[0-9_]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*\.([eE][-+]?[0-9]+)?|"
    r"[0-9][0-9_]*[eE][-+]?[0-9]+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)
_TRUTH = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_OTHERWISE = (":int", ":float", ":bool", ":timestamp", ":value")

_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith(_OTHERWISE)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_OWN = (
    ("tag:yaml.org,2002:int", _WHOLE, "-+0123456789"),
    ("tag:yaml.org,2002:float", _NUMBER, "-+.0123456789"),
    ("tag:yaml.org,2002:bool", _TRUTH, "tTfF"),
)
for _tag, _regexp, _first in _OWN:
    _Loader.add_implicit_resolver(_tag, _regexp, list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that also quotes what only our reader takes for a number, and repeats instead of aliasing."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: list(resolvers) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _tag, _regexp, _first in _OWN:
    _Dumper.add_implicit_resolver(_tag, _regexp, list(_first))


def read_yaml(path: str | os.PathLike[str], *, area: str, remedy: str) -> tuple[Any, Lines]:
    """A file's values, None where it has none, and its lines. Raises ValueError that names file and line."""
    return parse_yaml(read_text(path, area=area, remedy=remedy, limit_bytes=LIMIT_BYTES), os.fspath(path))


def parse_yaml(text: str, name: str) -> tuple[Any, Lines]:
    """The same of a text; `name` says whose it is. Raises ValueError: `NAME:LINE: what is wrong`."""
    lines: Lines = {}
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, lines
        _locate(node, (), lines, name, [0])
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        raise ValueError(f"{where}: not valid YAML: {_reason(error)}{_unseen(text)}") from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except (
        ValueError,
        OverflowError,
        RecursionError,
    ) as error:  # an integer of thousands of digits, a date of no day
        raise ValueError(f"{name}: not valid YAML: {error}") from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(values: Any, *, flow: bool = False) -> str:
    """Values as YAML, in their order; `flow` in one line, as {a: 1, b: [2]}."""
    text = yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=1 << 20 if flow else 80
    )
    return text.removesuffix("\n").removesuffix("\n...") if flow else text


class _Refused(Exception):
    """What is valid YAML and not taken; the message is whole."""


def _locate(node: yaml.Node, path: tuple, lines: Lines, name: str, seen: list[int]) -> None:
    """Note where `node`, whose path is `path`, and all in it stand; refuse repeated keys and aliases without end."""
    here = f"{name}:{node.start_mark.line + 1}"
    lines.setdefault(path, here)
    seen[0] += 1
    if len(path) > DEPTH:
        raise _Refused(
            f"{here}: nested deeper than {DEPTH} levels. Does an alias stand inside itself? Write it out"
        )
    if seen[0] > NODES:
        raise _Refused(f"{here}: more than {NODES:,} values, aliases unfolded. Write out what is needed")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            spot = f"{name}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(f"{spot}: a key is a {key.id}. Keys are words")
            if unseen := INVISIBLE.search(key.value):
                raise _Refused(f"{spot}: a key holds {_named(unseen[0])}: {key.value!a}. Type it anew")
            below = (*path, str(key.value))
            if below in lines:
                raise _Refused(
                    f"{spot}: {'.'.join(map(str, below))}: the key stands twice (first at {lines[below]}). Keep one"
                )
            lines[below] = spot
            _locate(value, below, lines, name, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _locate(value, (*path, index), lines, name, seen)


def _named(character: str) -> str:
    return f"an invisible character (U+{ord(character):04X})"


def _unseen(text: str) -> str:
    """Where the first invisible character stands, which an editor does not show; empty where there is none."""
    for number, line in enumerate(text.split("\n"), 1):
        if unseen := INVISIBLE.search(line.partition(" #")[0]):
            return (
                f". Line {number} has {_named(unseen[0])} in column {unseen.start() + 1}: type the line anew"
            )
    return ""


def _reason(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None)
    if problem and "'\\t'" in problem:
        return f"{problem}. Indent with spaces, not with a tab"
    if problem == "but found another document":
        return "a second document begins (---). Keep one"
    if isinstance(error, yaml.reader.ReaderError):
        return f"the character {shorten(chr(error.character))} may not stand in YAML. Write it as an escape, in quotes"
    return str(problem or error)
