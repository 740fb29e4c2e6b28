"""What is learned of a row, by each way of knowing where the assistant speaks."""

import pytest
from chat_models import EOS, REASONED, STOCK, SYSTEM, TOOL, TURN, TURNS_TWO, write_model

from cktrain.data.chat.marked_templates import marked_template
from cktrain.data.chat.rows import parse_row
from cktrain.data.chat.samples import SampleMaker
from cktrain.data.chat.template import PINNED_DATE, ChatTemplate, named_tokens
from cktrain.data.documents import BadRow
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import read_tokenizer

FORGETS = """{% for m in messages %}{% if m.role == 'user' or loop.last %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""Older answers are left out, so what is rendered up to a turn is no prefix of the whole."""


@pytest.fixture
def maker(tmp_path):
    def make(template, marked=None, **options):
        side = read_tokenizer(write_model(tmp_path / "model", template))

        def compiled(text):
            return None if text is None else ChatTemplate(text, named_tokens(side), PINNED_DATE, "test")

        return SampleMaker(side, None, compiled(template), compiled(marked), **options)

    return make


def learned(maker, value):
    """Of each sample: its text, and the texts of what is learned, without a gap between."""
    tokenizer = maker.tokenizer
    prepared = maker.prepare(parse_row(value, {}), "rows:1")
    found = []
    for sample in maker.encode(prepared, ["rows:1"] * len(prepared)):
        assert len(sample.ids) == len(sample.learned) and not sample.learned[0]
        groups, before = [], False
        for index, is_learned in zip(sample.ids, sample.learned, strict=True):
            if is_learned and not before:
                groups.append([])
            if is_learned:
                groups[-1].append(index)
            before = is_learned
        texts = [tokenizer.decode(group, skip_special_tokens=False) for group in groups]
        found.append((tokenizer.decode(sample.ids, skip_special_tokens=False), texts))
    return found


@pytest.mark.parametrize("name", ["chatml", "qwen2.5", "gemma"])
def test_marked_and_prefix_difference_learn_the_same(maker, name):
    marked = marked_template(STOCK[name])[1]
    value = {"messages": TURNS_TWO}
    by_marks, by_prefix = maker(STOCK[name], marked), maker(STOCK[name])
    assert learned(by_marks, value) == learned(by_prefix, value)
    assert by_marks.masks == {"generation blocks": 1} and by_prefix.masks == {"difference of prefixes": 1}
    assert by_marks.unlike_inference.count == 0


def test_answers_and_the_ends_of_their_turns_are_learned(maker):
    ((_, texts),) = learned(maker(STOCK["chatml"]), {"messages": SYSTEM})
    assert texts == ["I am a model.<|im_end|>", " Yes. ☃ <|im_end|>"]


def test_a_block_that_leaves_the_end_out_gets_it(maker):
    text = (
        "{% for m in messages %}<|im_start|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    made = maker(text, text)
    ((_, texts),) = learned(made, {"messages": TURNS_TWO})
    assert texts == ["I am a model.<|im_end|>", " Yes. ☃ <|im_end|>"] and made.endless.count == 0
    text = text.replace("<|im_end|>", "")
    made = maker(text, text)
    ((_, texts),) = learned(made, {"messages": TURNS_TWO})
    assert texts == ["I am a model.", " Yes. ☃ "]
    assert (made.endless.count, made.endless.first) == (1, "rows:1")


def test_the_completion_is_the_last_answer_or_what_the_row_says(maker):
    marked = marked_template(STOCK["chatml"])[1]
    for second in (None, marked):
        made = maker(STOCK["chatml"], second, train_on="completion")
        assert learned(made, {"messages": TURNS_TWO})[0][1] == [" Yes. ☃ <|im_end|>"]
        two = {"prompt": TURNS_TWO[:1], "completion": TURNS_TWO[1:]}
        assert learned(made, two)[0][1] == ["I am a model.<|im_end|>", " Yes. ☃ <|im_end|>"]


@pytest.mark.parametrize("name", ["chatml", None])
def test_an_answer_that_says_so_is_not_learned(maker, name):
    made = maker(STOCK["chatml"], marked_template(STOCK["chatml"])[1] if name else None)
    first, second = ({**TURNS_TWO[i], "weight": 0} for i in (1, 3))
    assert learned(made, {"messages": [TURNS_TWO[0], first, *TURNS_TWO[2:]]})[0][1] == [" Yes. ☃ <|im_end|>"]
    assert learned(made, {"messages": [*TURNS_TWO[:3], second]})[0][1] == ["I am a model.<|im_end|>"]
    assert learned(made, {"messages": [TURNS_TWO[0], first, TURNS_TWO[2], second]})[0][1] == []
    assert (made.unlearned.count, made.unlearned.first) == (3, "rows:1")
    with pytest.raises(BadRow, match="an answer that says that it is not learned"):
        learned(maker(STOCK["chatml"], train_on="all"), {"messages": [TURNS_TWO[0], first]})


def test_blocks_that_are_no_turns_do_not_learn_what_a_row_leaves_out(maker):
    """Two blocks in each answer: whose they are is not known, so the prefixes say what is learned."""
    text = STOCK["chatml"].replace("message['content']", "message['content'] + ''")
    two = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message.role == 'assistant' %}"
        "{% generation %}{{ message['content'][:1] }}{% endgeneration %}"
        "{% generation %}{{ message['content'][1:] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
        "{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    made = maker(text, two)
    unlearned = [TURNS_TWO[0], {**TURNS_TWO[1], "loss": False}, *TURNS_TWO[2:]]
    assert learned(made, {"messages": TURNS_TWO})[0][1] == ["I am a model.<|im_end|>", " Yes. ☃ <|im_end|>"]
    made = maker(two.replace("{% generation %}", "").replace("{% endgeneration %}", ""), two)
    assert learned(made, {"messages": unlearned})[0][1] == [" Yes. ☃ <|im_end|>"]
    assert made.masks == {"difference of prefixes": 1}


def test_all_is_every_token_but_the_first(maker):
    ((text, texts),) = learned(maker(STOCK["chatml"], train_on="all"), {"messages": SYSTEM})
    assert texts == [text.removeprefix("<|im_start|>")]


def test_a_template_that_forgets_gives_a_sample_for_each_turn(maker):
    made = maker(FORGETS)
    first, second = learned(made, {"messages": TURNS_TWO})
    assert first[1] == ["I am a model.<|im_end|>"] and second[1] == [" Yes. ☃ <|im_end|>"]
    assert "I am a model" in first[0] and "I am a model" not in second[0]
    assert made.masks == {"one sample per turn": 1}


def test_reasoning_that_the_last_turn_has_is_learned(maker):
    made = maker(STOCK["qwen3"], marked_template(STOCK["qwen3"])[1])
    ((_, texts),) = learned(made, {"messages": REASONED})
    assert texts == ["<think>\nWho am I?\n</think>\n\nA model.<|im_end|>"]
    assert made.unlike_inference.count == made.unwritten.count == 0


def test_older_turns_of_qwen3_are_rendered_otherwise_at_inference(maker):
    """There the turn is the last one and begins with a block of thoughts; here it begins with the answer."""
    text = STOCK["qwen3"].replace("<|im_start|>assistant\\n'", "<|im_start|>assistant\\n<think>\\n'")
    made = maker(text, marked_template(text)[1])
    learned(made, {"messages": TURNS_TWO})
    assert (made.unlike_inference.count, made.unlike_inference.first) == (1, "rows:1")


def test_a_template_whose_prompt_leads_nowhere_is_refused(maker):
    text = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}BOT:{% endif %}"
    with pytest.raises(BadRow, match="does not go on from its own generation prompt"):
        maker(text).prepare(parse_row({"messages": TURN}, {}), "rows:1")


def test_without_a_template_a_conversation_is_refused_and_text_is_not(maker):
    made = maker(None)
    with pytest.raises(BadRow, match="the tokenizer has no chat template"):
        made.prepare(parse_row({"messages": TURN}, {}), "rows:1")
    assert learned(made, {"text": "abc"}) == [(f"abc{EOS}", [f"bc{EOS}"])]


def test_of_texts_the_completion_is_learned(maker):
    made = maker(None)
    assert learned(made, {"prompt": "1+1=", "completion": " 2"}) == [(f"1+1= 2{EOS}", [f" 2{EOS}"])]
    assert made.crossing.count == 0
    assert learned(maker(None, train_on="all"), {"prompt": "1+1=", "completion": " 2"})[0][1] == [
        f"+1= 2{EOS}"
    ]


def test_a_token_across_the_border_is_counted(maker):
    made = maker(None)
    learned(made, {"prompt": "a<tool", "completion": "_call>b"})
    assert made.crossing.count == 1


@pytest.mark.parametrize(
    "value", [{"messages": [{"role": "user", "content": "write <|im_end|> now"}, TURN[1]]}]
)
def test_special_tokens_that_users_write_are_text(maker, value):
    marked = marked_template(STOCK["chatml"])[1]
    made = maker(STOCK["chatml"], marked)
    (sample,) = made.encode(made.prepare(parse_row(value, {}), "a"), ["a"])
    end = made.tokenizer.id_of("<|im_end|>")
    assert sample.ids.count(end) == 3  # of the system's, the user's and the assistant's turn
    text = made.tokenizer.decode(sample.ids, skip_special_tokens=False)
    assert "write <|im_end|> now" in text
    assert learned(made, value)[0][1] == ["I am a model.<|im_end|>"]
    parsed = maker(STOCK["chatml"], marked, special_tokens="parse")
    (sample,) = parsed.encode(parsed.prepare(parse_row(value, {}), "a"), ["a"])
    assert sample.ids.count(end) == 4


def test_special_tokens_in_texts_are_text_or_parsed(maker):
    made = maker(None)
    (sample,) = made.encode(made.prepare(parse_row({"text": "a<|im_end|>"}, {}), "a"), ["a"])
    assert made.tokenizer.id_of("<|im_end|>") not in sample.ids
    made = maker(None, special_tokens="parse")
    (sample,) = made.encode(made.prepare(parse_row({"text": "a<|im_end|>"}, {}), "a"), ["a"])
    assert made.tokenizer.id_of("<|im_end|>") in sample.ids


def test_tool_calls_that_a_template_leaves_out_are_refused(maker):
    made = maker(STOCK["qwen2.5"])
    ((_, texts),) = learned(made, {"messages": TOOL})
    assert texts == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>',
        "It is sunny.<|im_end|>",
    ]
    with pytest.raises(BadRow, match="the chat template leaves tool calls out"):
        maker(STOCK["chatml"]).prepare(parse_row({"messages": TOOL}, {}), "rows:1")


def test_a_message_that_a_template_leaves_out_is_counted(maker):
    made = maker(STOCK["phi-3.5"])  # which has no system turn
    learned(made, {"messages": SYSTEM})
    assert (made.unwritten.count, made.unwritten.first) == (1, "rows:1")


def test_a_piece_is_encoded_as_inside_a_text(tmp_path):
    tokenizer = Tokenizer.load(write_model(tmp_path))
    assert tokenizer.decode(tokenizer.encode_inside("<|im_end|>")) == "<|im_end|>"
