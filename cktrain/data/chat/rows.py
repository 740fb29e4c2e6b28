"""One row of chat or instruction data, whichever shape it has: told by its keys.

    messages (or, of message lists, prompt and completion)   a conversation, for the chat template
    conversations   [{from, value}, ...] of ShareGPT          the same, with its roles' names
    instruction, input, output, history, system   of Alpaca  the same, as turns
    prompt, completion   two texts                            text as it is, of which the completion is learned
    text                                                      text as it is

An answer may say that it is not learned: weight (OpenAI), loss (LLaMA-Factory), train, training or trainable (axolotl and
others), each 0, 1, true or false. It stands in the conversation and its tokens are not trained.

Pairs of answers, of which one is preferred, are another kind of row (`pairs.py`).

Roles must make sense: a system turn first if at all, then user and assistant in turn, tool results after a turn with tool
calls, and an answer at the end. What a row has besides is left alone; which keys, is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cktrain.data.documents import BadRow
from cktrain.data.json_values import TWICE

ROLES = ("system", "developer", "user", "assistant", "tool")
COLUMNS = (
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "system",
    "tools",
    "text",
    "chat_template_kwargs",
    "chosen",
    "rejected",
)
"""Keys that mean something; --columns says how they are called in the data."""

LEARNED = ("weight", "loss", "train", "training", "trainable")
"""Keys of a message that say whether it is learned."""

_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
# Which roles may stand after which; None: the beginning.
_AFTER: dict[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user",),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True)
class Conversation:
    """Messages as chat templates take them. The messages from `completion` on are the completion, where a row has one."""

    messages: list[dict[str, Any]]
    shape: str
    tools: list[dict[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else the template is given (`chat_template_kwargs`)."""
    completion: int | None = None
    unlearned: frozenset[int] = frozenset()
    """Indices of the answers that say that they are not learned."""

    @property
    def answers(self) -> list[int]:
        """Indices of the assistant's turns."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def texts(self) -> list[str]:
        """What everybody says, in order."""
        return [message["content"] for message in self.messages]

    @property
    def has_empty_answer(self) -> bool:
        """Whether an answer has neither text nor a tool call."""
        return any(
            not self.messages[i]["content"].strip() and not self.messages[i].get("tool_calls")
            for i in self.answers
        )

    @property
    def is_unanswered(self) -> bool:
        """Whether no answer has text or a tool call."""
        return not any(
            self.messages[i]["content"].strip() or self.messages[i].get("tool_calls") for i in self.answers
        )


@dataclass(frozen=True)
class PlainText:
    """A text without a template; the part after `prompt` is learned."""

    prompt: str
    completion: str
    shape: str

    @property
    def texts(self) -> list[str]:
        """Prompt and completion."""
        return [self.prompt, self.completion]

    @property
    def has_empty_answer(self) -> bool:
        """Whether there is nothing to learn."""
        return not self.completion.strip()

    is_unanswered = has_empty_answer


Row = Conversation | PlainText


def shape_of(keys: Mapping[str, Any]) -> str | None:
    """The shape that a row's keys tell, None for none that is known."""
    for needed in (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output")):
        if all(key in keys for key in needed):
            return {"conversations": "sharegpt", "instruction": "alpaca"}.get(needed[0], "/".join(needed))
    if "text" in keys:
        return "text"
    return "preference" if "chosen" in keys and "rejected" in keys else None


def parse_row(value: Any, columns: Mapping[str, str]) -> Row:
    """The row that a JSON object, or a table's row, is. `columns` {ours: theirs} renames keys. Raises BadRow."""
    row, empty = keys_of(value, columns)
    shape = shape_of(row)
    if shape is None or shape == "preference":
        raise _of_no_shape(row, empty)
    if shape == "prompt/completion" and isinstance(row.get("label"), bool):
        raise BadRow(
            "a rated completion (label true or false), which is not trained on",
            "Keep the rows with label true, and leave the key out.",
        )
    if shape == "text":
        return PlainText("", text_of(row["text"], "text"), shape)
    if shape == "prompt/completion" and not (_listed(row, "prompt") or _listed(row, "completion")):
        return PlainText(text_of(row["prompt"], "prompt"), text_of(row["completion"], "completion"), shape)
    return _conversation(row, shape)


def keys_of(value: Any, columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What a row has under our keys, and which keys are null. Raises BadRow for what is no object."""
    if isinstance(value, BadRow):
        raise value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        value = {"conversations" if "from" in value[0] else "messages": value}  # a conversation's turns alone
    if not isinstance(value, dict):
        raise BadRow(f"{type(value).__name__}, not an object with keys")
    if twice := [key for key, item in value.items() if item is TWICE]:
        raise BadRow(f'the key "{twice[0]}" stands twice in one object')
    row = dict(value)
    for ours, theirs in columns.items():
        if theirs not in value:
            raise BadRow(f'no column "{theirs}", which --columns names for {ours}')
        row.pop(theirs, None)
    row |= {ours: value[theirs] for ours, theirs in columns.items()}
    empty = [key for key, item in row.items() if item is None]
    return {key: item for key, item in row.items() if item is not None}, empty


def _of_no_shape(row: Mapping[str, Any], empty: list[str]) -> BadRow:
    if "chosen" in row and "rejected" in row:
        return BadRow(
            "a preference pair (chosen, rejected)",
            "Give --objective dpo; or --columns completion=chosen (of whole conversations messages=chosen) for the chosen "
            "answers alone.",
        )
    lists = [
        key for key, item in row.items() if isinstance(item, list) and item and isinstance(item[0], dict)
    ]
    if lists and all(shape_of(row[key][0]) for key in lists):
        return BadRow(
            f"a whole file of rows under {', '.join(lists[:8])}",
            f"Give the rows alone: jq -c '.{lists[0]}[]' FILE > rows.jsonl.",
        )
    if "instances" in lists and "instruction" in row:
        return BadRow(
            "a task of Self-Instruct, with its answers under instances",
            "Make rows: jq -c '.instruction as $i | .instances[] | {instruction: $i, input, output}' FILE > ROWS.jsonl.",
        )
    found = ", ".join(list(row)[:8]) + (", ..." if len(row) > 8 else "")
    if shape_of({**row, **dict.fromkeys(empty)}) is not None:
        return BadRow(f"null under {', '.join(empty[:8])} (other keys: {found or 'none'})")
    return BadRow(f"of no known shape (keys: {found or 'none'})", "Name its columns with --columns.")


def _conversation(row: dict[str, Any], shape: str) -> Conversation:
    completion = None
    if shape == "sharegpt":
        messages = [from_sharegpt(turn) for turn in _list(row, "conversations")]
        if "system" in row and row["system"] and (not messages or messages[0]["role"] != "system"):
            messages.insert(0, {"role": "system", "content": text_of(row["system"], "system")})
    elif shape == "alpaca":
        messages = _from_alpaca(row)
    elif shape == "messages":
        messages = _list(row, "messages")
    else:
        messages = [*_list(row, "prompt"), *_list(row, "completion")]
        completion = len(_list(row, "prompt"))
    messages = [_message(message) for message in messages]
    _check_order(messages)
    unlearned = frozenset(index for index, message in enumerate(messages) if not _is_learned(message))
    tools = json_of(row["tools"], "tools") if "tools" in row else None
    if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
        raise BadRow('"tools" is no list of objects')
    options = json_of(row.get("chat_template_kwargs", {}), "chat_template_kwargs")
    if not isinstance(options, dict):
        raise BadRow('"chat_template_kwargs" is no object')
    return Conversation(messages, shape, tools or None, options, completion, unlearned)


def _is_tool(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("function", value), dict)


def _is_learned(message: dict[str, Any]) -> bool:
    """What a message says of itself; the keys are taken out of it. Of others than the assistant nothing is learned."""
    said = {key: message.pop(key) for key in LEARNED if key in message}
    for key, value in said.items():
        if value not in (0, 1):
            raise BadRow(
                f'"{key}" of a message is {value!r}',
                "Give 0 or 1, false or true: nothing between is computed.",
            )
        if value and message["role"] != "assistant":
            raise BadRow(
                f'"{key}" says that a message of {message["role"]} is learned',
                "Only answers are: leave the key out, or give --train-on all.",
            )
    return all(said.values())


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise BadRow(f"a message is {type(message).__name__}, not an object with role and content")
    made = {key: item for key, item in message.items() if item is not None}
    role = made.get("role")
    if role not in ROLES:
        raise BadRow(f"a message with role {role!r}, not one of {', '.join(ROLES)}")
    if made.get("tool_calls"):
        if role != "assistant":
            raise BadRow(f"tool calls in a message of {role}")
        made["tool_calls"] = [_tool_call(call) for call in _list(made, "tool_calls")]
    else:
        made.pop("tool_calls", None)
    content = made.get("content", "" if "tool_calls" in made else None)
    if isinstance(content, list):
        if other := {type(part).__name__ for part in content if not isinstance(part, dict)}:
            raise BadRow(f"a message whose content is a list of {', '.join(sorted(other))}, not text")
        if not all(part.get("type") == "text" for part in content):
            raise BadRow("a message with images or other content that is no text")
        content = "".join(text_of(part.get("text"), "content") for part in content)
    made["content"] = text_of(content, "content")
    return made


def _tool_call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("a tool call without the name of a function")
    arguments = json_of(function.get("arguments", {}), "arguments")
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def from_sharegpt(turn: Any) -> dict[str, Any]:
    """A turn with `from` and `value` as a message. Raises BadRow."""
    if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
        raise BadRow("a turn of conversations without from and value")
    role = _SHAREGPT.get(turn["from"]) if isinstance(turn["from"], str) else None
    if role is None:
        raise BadRow(f"a turn from {turn['from']!r}, not one of {', '.join(_SHAREGPT)}")
    said = {key: turn[key] for key in LEARNED if key in turn}
    if turn["from"] == "function_call":
        calls = json_of(turn["value"], "function_call")
        return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls], **said}
    value = turn["value"] if isinstance(turn["value"], list) else text_of(turn["value"], "value")
    return {"role": role, "content": value, **said}


def _from_alpaca(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    turns = []
    if row.get("system"):
        turns.append(("system", text_of(row["system"], "system")))
    for pair in _list(row, "history") if row.get("history") else []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadRow('"history" is no list of pairs')
        turns += [("user", text_of(pair[0], "history")), ("assistant", text_of(pair[1], "history"))]
    asked = text_of(row["instruction"], "instruction")
    if row.get("input"):
        asked += "\n" + text_of(row["input"], "input")
    turns += [("user", asked), ("assistant", text_of(row["output"], "output"))]
    return [{"role": role, "content": text} for role, text in turns]


def _check_order(messages: list[dict[str, Any]]) -> None:
    before: str | None = None
    calls: Any = None
    for message in messages:
        role = message["role"]
        if role not in _AFTER[before] or (role == "tool" and before == "assistant" and not calls):
            where = "at the beginning" if before is None else f"after {before}"
            raise BadRow(f"roles in a wrong order: {role} {where}")
        calls, before = message.get("tool_calls"), role
    if before != "assistant":
        raise BadRow("no messages" if before is None else f"no answer: the last message is of {before}")


def _listed(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(json_of(row[key], key, lenient=True), list)


def _list(row: Mapping[str, Any], key: str) -> list[Any]:
    value = json_of(row[key], key)
    if not isinstance(value, list):
        raise BadRow(f'"{key}" is {type(value).__name__}, not a list')
    return value


def json_of(value: Any, key: str, lenient: bool = False) -> Any:
    """A value, or what it says as JSON text, as tables hold lists and tool calls their arguments."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        if lenient:
            return value
        raise BadRow(f'"{key}" is text that is no JSON') from error


def text_of(value: Any, key: str) -> str:
    """A text that can be written. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(f'"{key}" is {"missing" if value is None else type(value).__name__}, not text')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f'"{key}" holds half of a surrogate pair') from error
    return value
