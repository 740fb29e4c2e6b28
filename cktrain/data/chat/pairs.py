"""A row of preference data: two answers to one prompt, of which the first is preferred.

    prompt, chosen, rejected      texts: text as it is, without a template
                                  messages, or a text and answers that are messages: conversations
    messages (or conversations), chosen, rejected     the prompt is a conversation, the answers are a turn or several
    chosen, rejected              whole conversations, or whole texts: the prompt is how both begin

An answer is a text, a message, or messages, by the keys of `rows.py`. Where both answers begin with what others than the
assistant say, they are whole conversations, and a prompt beside them is not read (it is there once more). Of whole texts a
space before the first difference belongs to the answers, as TRL has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cktrain.data.chat.rows import (
    Conversation,
    PlainText,
    from_sharegpt,
    json_of,
    keys_of,
    parse_row,
    text_of,
)
from cktrain.data.documents import BadRow

_PROMPTS = ("prompt", "messages", "conversations")
_BESIDE = ("tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Pair:
    """Two conversations, or two texts, that begin with one prompt; the completions are the answers."""

    chosen: Conversation | PlainText
    rejected: Conversation | PlainText
    shape: str = "preference"

    @property
    def texts(self) -> list[str]:
        """What everybody says, in order."""
        return [*self.chosen.texts, *self.rejected.texts]

    @property
    def has_empty_answer(self) -> bool:
        """Whether one of the answers has neither text nor a tool call."""
        return self.chosen.has_empty_answer or self.rejected.has_empty_answer

    @property
    def is_unanswered(self) -> bool:
        """Whether both have not."""
        return self.chosen.is_unanswered and self.rejected.is_unanswered


def parse_pair(value: Any, columns: Mapping[str, str]) -> Pair:
    """The pair that a JSON object, or a table's row, is. `columns` {ours: theirs} renames keys. Raises BadRow."""
    row, _ = keys_of(value, columns)
    if missing := [key for key in ("chosen", "rejected") if key not in row]:
        found = ", ".join(list(row)[:8]) + (", ..." if len(row) > 8 else "")
        raise BadRow(
            f"no preference pair: no {' and no '.join(missing)} (keys: {found or 'none'})",
            "Name its columns with --columns, as chosen=theirs,rejected=theirs.",
        )
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal", "Leave the row out: nothing is preferred in it.")
    key = next((key for key in _PROMPTS if key in row), None)
    prompt = None if key is None else _answer(row, key)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(prompt, list):
            chosen, rejected = ([{"role": "assistant", "content": each}] for each in (chosen, rejected))
        elif prompt is None:
            prompt, chosen, rejected = _divide_texts(chosen, rejected)
    elif isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("of chosen and rejected one is text and one is messages")
    else:
        prompt, chosen, rejected = _divide_conversations(prompt, chosen, rejected)
    if isinstance(prompt, str):
        prompt = text_of(prompt, "prompt")
        texts = [PlainText(prompt, text_of(each, "answer"), "preference") for each in (chosen, rejected)]
        return Pair(texts[0], texts[1])
    beside = {key: row[key] for key in _BESIDE if key in row}
    rows = [parse_row({"prompt": prompt, "completion": each, **beside}, {}) for each in (chosen, rejected)]
    return Pair(rows[0], rows[1])


def _answer(row: Mapping[str, Any], key: str) -> Any:
    """A text, or a list of messages by our keys."""
    value = row[key]
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):  # as tables hold lists
        found = json_of(value, key, lenient=True)
        value = found if _is_turns(found) else value
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, str):
        return value
    if not _is_turns(value):
        raise BadRow(f'"{key}" is {type(value).__name__}, and neither text nor messages')
    return [from_sharegpt(turn) if "from" in turn else turn for turn in value]


def _is_turns(value: Any) -> bool:
    turns = value if isinstance(value, list) else [value]
    return bool(turns) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns
    )


def _common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters, or messages, both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _divide_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    border = _common(chosen, rejected)
    if border and chosen[border - 1] == " ":
        border -= 1
    if border == 0:
        raise BadRow(
            "chosen and rejected begin otherwise, and there is no prompt",
            "Name its column: --columns prompt=theirs.",
        )
    return chosen[:border], chosen[border:], rejected[border:]


def _divide_conversations(
    prompt: Any, chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    whole = [turns[0].get("role") != "assistant" for turns in (chosen, rejected)]
    if all(whole):
        border = _common(chosen, rejected)
        prompt, answers = chosen[:border], (chosen[border:], rejected[border:])
        if not all(answers):
            raise BadRow("one of chosen and rejected is the beginning of the other")
        if not all(answer[0].get("role") == "assistant" for answer in answers):
            raise BadRow("chosen and rejected answer different prompts")
        return prompt, *answers
    if any(whole):
        raise BadRow("of chosen and rejected one is an answer and one a whole conversation")
    if prompt is None:
        raise BadRow(
            "chosen and rejected are answers, and there is no prompt",
            "Name its column: --columns prompt=theirs.",
        )
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return prompt, chosen, rejected
