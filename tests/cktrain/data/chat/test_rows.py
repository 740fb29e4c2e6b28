"""A row's shape is told by its keys; what is none says why."""

import json

import pytest
from chat_models import SYSTEM, TOOL, TOOLS, TURN

from cktrain.data.chat.rows import LEARNED, Conversation, PlainText, parse_row
from cktrain.data.documents import BadRow
from cktrain.data.json_values import object_of

ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_messages_are_kept_as_they_are():
    row = parse_row({"messages": SYSTEM, "id": 7}, {})
    assert isinstance(row, Conversation) and row.messages == SYSTEM
    assert (row.shape, row.answers, row.completion, row.tools) == ("messages", [2, 4], None, None)


def test_tools_and_calls_may_be_json_text():
    called = json.loads(json.dumps(TOOL))
    called[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Rome"}'
    called[1]["content"] = None
    called[1]["tool_calls"][0]["id"] = "1"
    row = parse_row({"messages": json.dumps(called), "tools": json.dumps(TOOLS)}, {})
    assert row.tools == TOOLS
    assert row.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}
    assert row.messages[1]["content"] == "" and row.messages[1]["tool_calls"][0]["id"] == "1"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (ALPACA, [("user", "Add.\n1 2"), ("assistant", "3")]),
        ({"instruction": "Hi", "output": "Ho"}, [("user", "Hi"), ("assistant", "Ho")]),
        (
            {**ALPACA, "input": "", "system": "Be.", "history": [["a", "b"]]},
            [("system", "Be."), ("user", "a"), ("assistant", "b"), ("user", "Add."), ("assistant", "3")],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                "system": "s",
            },
            [("system", "s"), ("user", "a"), ("assistant", "b")],
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, TURN[1]]},
            [
                ("user", "a"),
                ("assistant", "I am a model."),
            ],
        ),
        ({"prompt": [TURN[0]], "completion": [TURN[1]]}, [(m["role"], m["content"]) for m in TURN]),
    ],
)
def test_other_shapes_become_messages(value, expected):
    row = parse_row(value, {})
    assert [(message["role"], message["content"]) for message in row.messages] == expected


def test_sharegpt_calls_tools():
    call = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
    turns = [("human", "?"), ("function_call", call), ("observation", "sunny"), ("gpt", "Sunny.")]
    row = parse_row({"conversations": [{"from": who, "value": text} for who, text in turns]}, {})
    assert [message["role"] for message in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}


def test_the_completion_of_message_lists_is_known():
    assert parse_row({"prompt": TURN, "completion": TURN}, {}).completion == 2


def test_texts_are_no_conversation():
    assert parse_row({"prompt": "a", "completion": "b"}, {}) == PlainText("a", "b", "prompt/completion")
    assert parse_row({"text": "a", "more": 1}, {}) == PlainText("", "a", "text")


@pytest.mark.parametrize("turns", [TURN, [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]])
def test_a_row_may_be_a_list_of_turns(turns):
    assert [message["role"] for message in parse_row(turns, {}).messages] == ["user", "assistant"]


def test_columns_rename():
    row = parse_row(
        {"question": "a", "answer": "b", "text": None}, {"prompt": "question", "completion": "answer"}
    )
    assert row == PlainText("a", "b", "prompt/completion")
    with pytest.raises(BadRow, match='no column "ask", which --columns names for prompt'):
        parse_row({"question": "a"}, {"prompt": "ask"})


def messages(*roles):
    return {"messages": [{"role": role, "content": role} for role in roles]}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (3, "int, not an object"),
        (BadRow("not JSON: x"), "not JSON: x"),
        (object_of([("text", "a"), ("text", "b")]), 'the key "text" stands twice'),
        ({"a": 1, "b": 2}, "of no known shape .keys: a, b"),
        ({"chosen": "a", "rejected": "b"}, "a preference pair"),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, "a task of Self-Instruct"),
        ({"instruction": "a", "output": None}, "null under output .other keys: instruction"),
        ({"prompt": "a", "completion": "b", "label": False}, "a rated completion"),
        ({"train": [ALPACA], "test": [ALPACA]}, "a whole file of rows under train, test"),
        ({"dialog": TURN}, "of no known shape .keys: dialog"),
        ({"text": 3}, '"text" is int, not text'),
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"messages": "hello"}, '"messages" is text that is no JSON'),
        ({"messages": {}}, '"messages" is dict, not a list'),
        ({"messages": []}, "no messages"),
        ({"messages": ["a"]}, "a message is str"),
        (messages("user", "bot"), "a message with role 'bot', not one of system,"),
        (messages("assistant"), "roles in a wrong order: assistant at the beginning"),
        (messages("user", "user", "assistant"), "roles in a wrong order: user after user"),
        (messages("user", "assistant", "assistant"), "roles in a wrong order: assistant after assistant"),
        (messages("user", "system", "assistant"), "roles in a wrong order: system after user"),
        (messages("user", "assistant", "tool"), "roles in a wrong order: tool after assistant"),
        (messages("user", "assistant", "user"), "no answer: the last message is of user"),
        ({"messages": [{"role": "user"}, TURN[1]]}, '"content" is missing'),
        ({"messages": [{**TURN[0], "tool_calls": [{}]}, TURN[1]]}, "tool calls in a message of user"),
        ({"messages": [TURN[0], {"role": "assistant", "tool_calls": [{}]}]}, "a tool call without the name"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, TURN[1]]}, "images or other"),
        ({"messages": TURN, "tools": [1]}, '"tools" is no list of objects'),
        ({"messages": TURN, "tools": [{"function": 0.5}]}, '"tools" is no list of objects'),
        ({"conversations": [{"from": "human"}]}, "a turn of conversations without from and value"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "a turn from 'alien'"),
        ({**ALPACA, "history": [["a"]]}, '"history" is no list of pairs'),
        ({**ALPACA, "history": [["a", 1]]}, '"history" is int, not text'),
        ({**ALPACA, "output": 17}, '"output" is int, not text'),
        ({**ALPACA, "output": ["a", "b"]}, '"output" is list, not text'),
        ({**ALPACA, "system": 1}, '"system" is int, not text'),
        ({"conversations": [{"from": "human", "value": 1}]}, '"value" is int, not text'),
        ({"messages": [TURN[0], {"role": "assistant", "content": ["a"]}]}, "a list of str, not text"),
        ({"messages": [TURN[0], {"role": "assistant", "content": [[], 0]}]}, "a list of int, list, not text"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(value, why):
    with pytest.raises(BadRow, match=why):
        parse_row(value, {})


@pytest.mark.parametrize("key", LEARNED)
@pytest.mark.parametrize("value", [0, False, 0.0])
def test_an_answer_may_say_that_it_is_not_learned(key, value):
    told = [*TURN[:1], {**TURN[1], key: value}, TURN[0], {**TURN[1], key: 1}]
    row = parse_row({"messages": told}, {})
    assert row.unlearned == {1} and row.messages == [*TURN, *TURN]
    told = [{"from": "human", "value": "a", key: value}, {"from": "gpt", "value": "b", key: value}]
    assert 1 in parse_row({"conversations": told}, {}).unlearned


@pytest.mark.parametrize("key", LEARNED)
def test_a_share_of_learning_and_a_question_that_is_learned_are_refused(key):
    for value in (0.5, "no", float("nan"), [1]):
        with pytest.raises(BadRow, match=f'"{key}" of a message is'):
            parse_row({"messages": [TURN[0], {**TURN[1], key: value}]}, {})
    with pytest.raises(BadRow, match=f'"{key}" says that a message of user is learned'):
        parse_row({"messages": [{**TURN[0], key: True}, TURN[1]]}, {})


def test_an_empty_answer_is_one_without_text_and_call():
    assert not parse_row({"messages": TOOL}, {}).has_empty_answer
    assert parse_row({"messages": [TURN[0], {"role": "assistant", "content": " \n"}]}, {}).has_empty_answer
    assert parse_row({"prompt": "a", "completion": ""}, {}).has_empty_answer
