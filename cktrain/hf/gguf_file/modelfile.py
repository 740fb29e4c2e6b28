"""Ollama's Modelfile beside a GGUF file: the chat template in Go's language, and the texts that end an answer.

Ollama does not read a jinja template. What stands before and after a message of each role is found by rendering one
conversation, and Go's template says the same; another conversation is then rendered both ways, and a template that does
more than put text around messages is refused.

    system S1 user S2 assistant S3 user S4      S4 is what invites an answer, S2 too
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cktrain.data.chat.template import ChatTemplate, named_tokens, stock_template
from cktrain.data.special_tokens import added_around, end_ids, special_ids
from cktrain.data.tokenizer_backend import read_backend
from cktrain.side_files import SideFiles

_ROLES = ("system", "user", "assistant")
_MARKS = {role: f"\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}{role}" for role in _ROLES}
Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class _Form:
    """What stands around messages."""

    begin: str
    before: dict[str, str]
    after: dict[str, str]
    invite: str

    def render(self, messages: Messages) -> str:
        """As the Go template does."""
        parts = [self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages]
        return self.begin + "".join(parts) + self.invite

    def go(self, begin: bool) -> str:
        """The template for Ollama; without `begin` where Ollama puts the beginning token there by itself."""
        cases = [
            f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}{self.before[role]}{{{{ .Content }}}}'
            f"{self.after[role]}"
            for i, role in enumerate(_ROLES)
        ]
        start = self.begin if begin else ""
        return f"{start}{{{{- range .Messages }}}}{''.join(cases)}{{{{ end }}}}{{{{ end }}}}{self.invite}"


def modelfile(path: str | Path, model: str, side: SideFiles) -> str:
    """The text of a Modelfile that is to be written as `path`, for the GGUF file called `model` in the same folder.

    Raises ValueError when `path` is there, and when there is no chat template or one that is more than text around messages.
    """
    if os.path.lexists(path):
        raise ValueError(f"[ollama] {path} exists. Delete it, or write into another folder.")
    text = stock_template(side) if side.has_tokenizer else None
    if text is None:
        raise ValueError(
            "[ollama] the model has no chat template. Give a tokenizer that has one with --tokenizer."
        )
    template = ChatTemplate(text, named_tokens(side), datetime.date.today(), "the chat template")
    form = _form(template, named_tokens(side).get("bos_token"))
    backend = read_backend(side)
    lines = [f"FROM ./{model}", f"TEMPLATE {_quoted(form.go(begin=not added_around(side, backend)[0]))}"]
    default = _default_system(template, form)
    if default:
        lines.append(f"SYSTEM {_quoted(default)}")
    stops = [backend.id_to_token(index) for index in end_ids(special_ids(side))]
    stops.append(_end_of_turn(form, [token.content for token in backend.get_added_tokens_decoder().values()]))
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops) if stop is not None]
    return "\n".join(lines) + "\n"


def _form(template: ChatTemplate, bos: str | None) -> _Form:
    def render(roles: Sequence[str], prompt: bool = False) -> str:
        return template.render(
            [{"role": role, "content": _MARKS[role]} for role in roles], prompt=prompt
        ).text

    refusal = ValueError(
        "[ollama] the chat template does more than put text around messages, which Ollama's template language would not "
        "say. Leave --ollama out: llama.cpp itself reads the template in the GGUF file."
    )
    try:
        whole = render(["system", "user", "assistant", "user"], prompt=True)
        start, rest = whole.split(_MARKS["system"])
        to_user, to_assistant, *more = rest.split(_MARKS["user"])
        to_assistant, to_user_again = to_assistant.split(_MARKS["assistant"])
        (invite,) = more
        after = {
            "user": render(["system", "user"]).split(_MARKS["user"])[1],
            "assistant": render(["system", "user", "assistant"]).split(_MARKS["assistant"])[1],
        }
    except ValueError:
        raise refusal from None
    before = {
        "assistant": to_assistant.removeprefix(after["user"]),
        "user": to_user_again.removeprefix(after["assistant"]),
    }
    after["system"] = to_user.removesuffix(before["user"])
    alone = render(["user"])
    begin = bos if bos and alone.startswith(bos) and not before["user"].startswith(bos) else ""
    before["system"] = start.removeprefix(begin)
    form = _Form(begin, before, after, invite.removeprefix(after["user"]))
    other = [
        {"role": role, "content": f"{number} words"}
        for number, role in enumerate(("system", "user", "assistant", "user", "assistant", "user"))
    ]
    if form.render(other) != template.render(other, prompt=True).text:
        raise refusal
    return form


def _end_of_turn(form: _Form, tokens: Sequence[str]) -> str | None:
    """The token with which the template ends an answer, whatever the model's files say that ends a text."""
    closing = form.after["assistant"].lstrip()
    return max((token for token in tokens if token and closing.startswith(token)), key=len, default=None)


def _default_system(template: ChatTemplate, form: _Form) -> str:
    """What the template says as system where a conversation has no such message; "": nothing."""
    messages = [{"role": "user", "content": _MARKS["user"]}]
    text = template.render(messages, prompt=True).text
    plain = form.render(messages)
    if text == plain:
        return ""
    opening = form.begin + form.before["system"]
    closing = form.after["system"] + plain.removeprefix(form.begin)
    if not (text.startswith(opening) and text.endswith(closing)):
        return ""
    return text[len(opening) : len(text) - len(closing)]


def _quoted(text: str) -> str:
    if '"""' in text:
        raise ValueError(
            '[ollama] the chat template has """ in it, which a Modelfile cannot quote. Leave --ollama out.'
        )
    return f'"""{text}"""'
