"""A chat template, rendered as transformers renders it, with marks: what the assistant says, and what only users wrote.

The template runs in jinja2's sandbox with transformers' settings. Two kinds of places are marked with noncharacters of
Unicode, which no text has, and which are taken out afterwards: the blocks `{% generation %} ... {% endgeneration %}`, and
special tokens that are written out in the messages, which are text there and not tokens.

A template that asks for today's date gets a pinned one: data are the same tomorrow.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cktrain.data.documents import BadRow
from cktrain.data.special_tokens import configured_token
from cktrain.foreign_file import shorten
from cktrain.side_files import TEMPLATE_FILE, TEMPLATE_FOLDER, TOKENIZER_CONFIG_FILE, SideFiles

PINNED_DATE = datetime.date(2024, 7, 26)
"""What Llama's templates say where nobody tells the date."""

Span = tuple[int, int]

_GENERATED, _LITERAL = ("\ufdd0", "\ufdd1"), ("\ufdd2", "\ufdd3")
_MARK = re.compile("[\ufdd0-\ufdd3]")
_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Rendered:
    """A conversation as text; the spans are of its characters."""

    text: str
    generated: list[Span] = field(default_factory=list)
    literal: list[Span] = field(default_factory=list)


class _GenerationTag(Extension):
    tags = {"generation"}  # noqa: RUF012  (jinja2's attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_GENERATED[0]}{caller()}{_GENERATED[1]}"


class ChatTemplate:
    """A compiled template with the tokenizer's named tokens. `asks_for_date` after one that did was rendered."""

    def __init__(self, text: str, tokens: Mapping[str, str], date: datetime.date, name: str):
        """Raises ValueError for a text that is no template."""
        self.text = text
        self.name = name
        self.marks_generation = _TAG.search(text) is not None
        self.asks_for_date = False
        self._tokens = dict(tokens)
        self._date = datetime.datetime.combine(date, datetime.time())
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {"raise_exception": _raise, "strftime_now": self._strftime, "dict": dict}
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            where = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            words = str(error.message or error).rstrip(".")
            raise ValueError(
                f"[data.chat] {name}: no chat template, jinja2 says{where}: {words}. Correct it, or name another with "
                "--chat-template."
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        prompt: bool = False,
        literal: re.Pattern[str] | None = None,
    ) -> Rendered:
        """The text of messages; `prompt` adds what an answer begins with. `literal` matches what is text in messages.

        Raises BadRow for what the template refuses.
        """
        given: dict[str, Any] = {
            "messages": [_with_reasoning(message) for message in messages],
            "tools": tools,
        }
        if literal is not None:
            given = _guarded(given, literal)
        try:
            marked = self._template.render(
                **{**self._tokens, **(options or {})}, **given, documents=None, add_generation_prompt=prompt
            )
        except jinja2.TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error.message or error}") from error
        except Exception as error:  # a template is a program: it may add a number to a text
            raise BadRow(f"the chat template fails: {type(error).__name__}: {error}") from error
        try:
            marked.encode("utf-8")
        except UnicodeEncodeError as error:  # in reasoning, tools or arguments
            raise BadRow("holds half of a surrogate pair", "Take it out.") from error
        return _without_marks(marked)

    def _strftime(self, form: str) -> str:
        self.asks_for_date = True
        return self._date.strftime(form)


def stock_template(side: SideFiles) -> str | None:
    """The chat template beside a tokenizer: chat_template.jinja, else the key of tokenizer_config.json, or None."""
    return stock_templates(side).get("default")


def stock_templates(side: SideFiles) -> dict[str, str]:
    """All templates beside a tokenizer by their names; the first that counts is `default`, if there is one."""
    found: dict[str, str] = {}
    for name in ("chat_template.json", TOKENIZER_CONFIG_FILE):
        value = side.json(name).get("chat_template")
        if value is not None and not isinstance(value, str | list):
            raise ValueError(
                f"[tokenizer] {Path(side.found_in) / name}: chat_template is {shorten(value)}, not a text or a list of "
                "named ones. Correct it."
            )
        several: list[Any] = value if isinstance(value, list) else [{"name": "default", "template": value}]
        for each in several:
            if isinstance(each, dict) and isinstance(each.get("template"), str):
                found[str(each.get("name"))] = each["template"]
    for file, data in side.files.items():
        if file.startswith(f"{TEMPLATE_FOLDER}/"):
            found[file.removeprefix(f"{TEMPLATE_FOLDER}/").removesuffix(".jinja")] = data.decode("utf-8")
    if TEMPLATE_FILE in side.files:
        found["default"] = side.files[TEMPLATE_FILE].decode("utf-8")
    return found


def named_tokens(side: SideFiles) -> dict[str, str]:
    """The special tokens that a template may name: bos_token and its like."""
    found = {key: configured_token(side, key) for key in _NAMED_TOKENS}
    return {key: token for key, token in found.items() if token is not None}


def without_generation(text: str) -> str:
    """A template without the tag, which not every reader knows: what stands in it stays, with the same white space."""
    return _TAG.sub(lambda m: f"{{%{m[1]} {'endif' if m[2] else 'if true'} {m[3]}%}}", text)


def _guarded(value: Any, literal: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        if _MARK.search(value):
            raise BadRow("holds a noncharacter of Unicode (U+FDD0 to U+FDD3)", "Take it out.")
        return literal.sub(lambda match: f"{_LITERAL[0]}{match[0]}{_LITERAL[1]}", value)
    if isinstance(value, dict):
        return {key: item if key == "role" else _guarded(item, literal) for key, item in value.items()}
    return [_guarded(item, literal) for item in value] if isinstance(value, list) else value


def _without_marks(marked: str) -> Rendered:
    pieces: list[str] = []
    opened: dict[str, int] = {}
    spans: dict[str, list[Span]] = {_GENERATED[0]: [], _LITERAL[0]: []}
    size = last = 0
    for match in _MARK.finditer(marked):
        pieces.append(marked[last : match.start()])
        size += match.start() - last
        last = match.end()
        if match[0] in spans:
            opened[match[0]] = size
        else:
            begin = _GENERATED[0] if match[0] == _GENERATED[1] else _LITERAL[0]
            if begin in opened:  # a template may cut a text in two
                spans[begin].append((opened.pop(begin), size))
    pieces.append(marked[last:])
    return Rendered("".join(pieces), *(sorted(spans[kind]) for kind in spans))


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Reasoning under all names that templates know, as transformers gives it to them."""
    made = dict(message)
    reasoning = next((made[key] for key in _REASONING if made.get(key) is not None), None)
    return made if reasoning is None else {"thinking": reasoning, **made, "reasoning_content": reasoning}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
