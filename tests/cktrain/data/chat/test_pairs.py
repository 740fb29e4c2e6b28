"""Preference rows: which shapes are pairs, what is a bad one, and that the two answers stay together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chat_models import SMOLLM2, write_model, write_rows

from cktrain.data.chat.pairs import parse_pair
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.data.chat.rows import Conversation, PlainText
from cktrain.data.chat.stored_rows import stored_rows
from cktrain.data.documents import BadRow
from cktrain.data.loader import ValidationBatches
from cktrain.data.shards import open_source

ASKED, YES, NO = {"role": "user", "content": "Hi?"}, "Yes.", "No."
GOOD, BAD = ({"role": "assistant", "content": text} for text in (YES, NO))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi?", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [ASKED], "chosen": YES, "rejected": NO},
        {"messages": [ASKED], "chosen": GOOD, "rejected": BAD},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {
            "prompt": "Hi?",
            "messages": [ASKED, GOOD],
            "chosen": [ASKED, GOOD],
            "rejected": [ASKED, BAD],
            "score": 5,
        },
        {
            "conversations": [{"from": "human", "value": "Hi?"}],
            "chosen": {"from": "gpt", "value": YES},
            "rejected": {"from": "gpt", "value": NO},
        },
        {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])},
    ],
    ids=[
        "messages",
        "text prompt",
        "text answers",
        "one message",
        "whole",
        "whole and more",
        "sharegpt",
        "table",
    ],
)
def test_shapes_of_conversations(row):
    pair = parse_pair(row, {})
    for side, answer in ((pair.chosen, GOOD), (pair.rejected, BAD)):
        assert isinstance(side, Conversation)
        assert side.messages == [ASKED, answer] and side.completion == 1


@pytest.mark.parametrize(
    ("row", "prompt", "chosen"),
    [
        ({"prompt": "a ", "chosen": "b", "rejected": "c"}, "a ", "b"),
        (
            {"chosen": "Human: a? Assistant: b", "rejected": "Human: a? Assistant: c"},
            "Human: a? Assistant:",
            " b",
        ),
        ({"prompt": "a", "chosen": "[1]", "rejected": "{2}"}, "a", "[1]"),
    ],
)
def test_shapes_of_texts(row, prompt, chosen):
    pair = parse_pair(row, {})
    assert isinstance(pair.chosen, PlainText)
    assert (pair.chosen.prompt, pair.chosen.completion) == (prompt, chosen)
    assert pair.rejected.prompt == prompt


def test_columns_and_what_stands_beside():
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {"question": [ASKED], "good": [GOOD], "bad": [BAD], "tools": tools}
    pair = parse_pair(row, {"prompt": "question", "chosen": "good", "rejected": "bad"})
    assert pair.chosen.tools == pair.rejected.tools == tools


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are equal"),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, GOOD]}, "chosen and rejected are equal"),
        ({"prompt": "a", "chosen": "b"}, "no preference pair: no rejected"),
        ({"messages": [ASKED, GOOD]}, "no preference pair: no chosen and no rejected"),
        ({"chosen": "b", "rejected": "c"}, "begin otherwise, and there is no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "are answers, and there is no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "one is text and one is messages"),
        (
            {"prompt": "a", "chosen": [GOOD], "rejected": [ASKED, BAD]},
            "one is an answer and one a whole conversation",
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED]}, "one of chosen and rejected is the beginning"),
        (
            {"chosen": [ASKED, GOOD], "rejected": [{"role": "user", "content": "Ho?"}, BAD]},
            "answer different prompts",
        ),
        ({"prompt": "a", "chosen": 3, "rejected": "c"}, '"chosen" is int'),
    ],
)
def test_a_bad_pair_says_why(row, why):
    with pytest.raises(BadRow) as found:
        parse_pair(row, {})
    assert why in found.value.why


@pytest.fixture
def prepare(tmp_path):
    model = write_model(tmp_path / "model", SMOLLM2)

    def make(rows, **options):
        source, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
        given = {"preference": True, "sequence_length": 128, "validation_fraction": 0.0, **options}
        summary = prepare_chat(
            source, out, tokenizer=model, options=ChatOptions(**given), progress=False, overwrite=True
        )
        return summary, out

    return make


def test_the_answers_of_a_pair_stand_one_behind_the_other(prepare):
    words = ["a" * size for size in range(1, 30)]
    rows = [{"prompt": "p" * len(word), "chosen": word, "rejected": "b" + word} for word in words]
    summary, out = prepare(rows)
    assert summary["chat"]["pairs"] == summary["splits"]["train"]["documents"] == 29
    source = open_source(out, "train")
    stored = list(stored_rows(source))
    assert len(stored) == 2 * 29
    for (one, ids, learned), (two, other, also) in zip(stored[0::2], stored[1::2], strict=True):
        assert one == two
        size = len(ids) // 2  # as long a prompt as an answer, and the end
        assert np.array_equal(ids[:size], other[:size]) and len(other) == len(ids) + 1
        assert learned.tolist() == [False] * size + [True] * (size + 1)
        assert also.tolist() == [False] * size + [True] * (size + 2)
    for batch in ValidationBatches(source, 128, 2, 2):
        rows_and_starts = np.argwhere(batch.labels >= 0)[:, 0], batch.first[batch.labels >= 0]
        assert len(set(zip(*(each.tolist() for each in rows_and_starts), strict=True))) % 2 == 0


def test_equal_answers_are_bad_rows_by_that_name_with_their_lines(prepare):
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    with pytest.raises(
        ValueError, match=r"1 of 2 rows cannot be used(.|\n)*rows.jsonl:2: chosen and rejected are equal"
    ):
        prepare(rows)


def test_answers_that_a_template_renders_alike_are_equal(tmp_path):
    model = write_model(
        tmp_path / "model", SMOLLM2.replace("+ message['content'] +", "+ message['content'] | trim +")
    )
    answers = [[{**GOOD, "content": text}] for text in (" x", "x")]
    rows = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": [ASKED], "chosen": answers[0], "rejected": answers[1]}]
    )
    with pytest.raises(ValueError, match="chosen and rejected are equal"):
        prepare_chat(
            rows, tmp_path / "out", tokenizer=model, options=ChatOptions(preference=True), progress=False
        )


def test_long_pairs_are_dropped_as_one_or_refused(prepare):
    rows = [{"prompt": "a", "chosen": "b" * size, "rejected": "c" * size} for size in range(1, 41)]
    summary, _ = prepare([*rows, {"prompt": "a" * 60, "chosen": "b" * 9, "rejected": "c"}])
    assert summary["chat"]["too_long"] == 1 and summary["chat"]["pairs"] == 40
    with pytest.raises(ValueError, match="holds both answers of a pair, each with the prompt"):
        prepare(rows, sequence_length=40)
    with pytest.raises(ValueError, match="too_long 'truncate' is not for preference pairs"):
        prepare(rows, too_long="truncate")


def test_a_pair_without_the_objective_names_it(prepare):
    with pytest.raises(
        ValueError, match=r"1 x a preference pair \(chosen, rejected\)\. Give --objective dpo"
    ):
        prepare([{"prompt": "a", "chosen": "b", "rejected": "c"}], preference=False)
