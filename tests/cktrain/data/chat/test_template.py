"""A template is rendered with marks of what the assistant says and of what only looks like a token."""

import datetime
import re

import pytest
from chat_models import BOS, EOS, STOCK, SYSTEM, TOOL, TURN, write_model

from cktrain.data.chat.marked_templates import marked_template
from cktrain.data.chat.named_templates import NAMED
from cktrain.data.chat.template import (
    PINNED_DATE,
    ChatTemplate,
    named_tokens,
    stock_template,
    without_generation,
)
from cktrain.data.documents import BadRow
from cktrain.side_files import read_side_files

TOKENS = {"bos_token": BOS, "eos_token": EOS}


def template(text, date=PINNED_DATE):
    return ChatTemplate(text, TOKENS, date, "test.jinja")


def test_generation_blocks_become_spans():
    text = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    made = template(text)
    rendered = made.render(TURN)
    assert made.marks_generation and rendered.text == "[Hi, who are you?][I am a model.]"
    assert [rendered.text[a:b] for a, b in rendered.generated] == ["Hi, who are you?", "I am a model."]


def test_what_users_write_is_marked_and_the_rest_is_not():
    messages = [{"role": "user", "content": "say <s> and <s>"}]
    rendered = template("<s>{{ messages[0].content | upper }}").render(messages, literal=re.compile("<s>"))
    assert rendered.text == "<s>SAY <S> AND <S>"
    assert [rendered.text[a:b] for a, b in rendered.literal] == ["<S>", "<S>"]
    with pytest.raises(BadRow, match="holds a noncharacter"):
        template("").render([{"role": "user", "content": "\ufdd0"}], literal=re.compile("<s>"))


def test_the_date_is_pinned():
    made = template("{{ strftime_now('%d %b %Y') }}")
    assert not made.asks_for_date
    assert made.render(TURN).text == "26 Jul 2024" and made.asks_for_date
    assert template("{{ strftime_now('%Y') }}", datetime.date(2031, 1, 2)).render(TURN).text == "2031"


def test_settings_are_those_of_transformers():
    text = "{% for m in messages %}\n   {% if loop.index == 2 %}{% break %}{% endif %}\n{{ m | tojson }}\n{% endfor %}"
    assert template(text).render([{"role": "user", "content": "<é>"}, TURN[1]]).text == (
        '{"role": "user", "content": "<é>"}\n'
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ raise_exception('only users') }}", "the chat template refuses it: only users"),
        ("{{ 1 + messages[0].content }}", "the chat template fails: TypeError"),
        ("{{ messages[0].none.content }}", "the chat template refuses it: .*no attribute"),
        ("{{ messages.append(1) }}", "the chat template refuses it: .*immutable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "the chat template refuses it: .*unsafe"),
    ],
)
def test_what_a_template_refuses_is_a_bad_row(text, why):
    with pytest.raises(BadRow, match=why):
        template(text).render(TURN)


def test_a_text_that_is_no_template_is_an_error():
    with pytest.raises(ValueError, match=r"test.jinja: no chat template, jinja2 says in line 2: .*endfor"):
        template("\n{% for m in messages %}")
    with pytest.raises(ValueError, match=r"in line 3: No filter named 'shout'\. Correct it"):
        template("\n\n{{ messages | shout }}")


@pytest.mark.parametrize("name", STOCK)
def test_a_marked_template_writes_what_the_stock_one_does(name):
    found = marked_template(STOCK[name])
    assert found is not None and found[0] == name.partition(",")[0]
    stock, marked = template(STOCK[name]), template(found[1])
    for messages in (TURN, SYSTEM[1:], TOOL):
        for prompt in (False, True):
            expected = stock.render(messages, prompt=prompt).text
            assert marked.render(messages, prompt=prompt).text == expected
        rendered = marked.render(messages)
        answers = [message["content"].strip() for message in messages if message["role"] == "assistant"]
        assert len(rendered.generated) == len(answers)
        for (a, b), answer in zip(rendered.generated, answers, strict=True):
            assert answer in rendered.text[a:b] and rendered.text[a:b].endswith(">")


def test_a_template_of_another_kind_has_no_marked_one():
    assert marked_template("{% for m in messages %}{{ m.content }}{% endfor %}") is None


@pytest.mark.parametrize("name", NAMED)
def test_templates_by_name_mark_answers_and_go_on_from_their_prompt(name):
    made = template(NAMED[name])
    rendered = made.render(SYSTEM)
    assert len(rendered.generated) == 2
    for turn, (begin, end) in zip((2, 4), rendered.generated, strict=True):
        assert made.render(SYSTEM[:turn], prompt=True).text == rendered.text[:begin]
        assert rendered.text[begin:end].endswith(">")
    plain = without_generation(NAMED[name])
    assert "generation %" not in plain and template(plain).render(SYSTEM).text == rendered.text


def test_where_a_template_stands(tmp_path):
    assert stock_template(read_side_files(write_model(tmp_path / "a", "here"))) == "here"
    folder = write_model(tmp_path / "b", None)
    assert stock_template(read_side_files(folder)) is None
    config = folder / "tokenizer_config.json"
    for value in ('"here"', '[{"name": "rag", "template": "no"}, {"name": "default", "template": "here"}]'):
        config.write_text(f'{{"chat_template": {value}, "bos_token": {{"content": "<b>"}}}}')
        side = read_side_files(folder)
        assert stock_template(side) == "here" and named_tokens(side) == {"bos_token": "<b>"}
