"""Rendered and tokenized conversations, and their masks, are those of transformers' apply_chat_template."""

import pytest
from chat_models import BOS, EOS, REASONED, STOCK, SYSTEM, TOOL, TOOLS, TURN, TURNS_TWO, backend, write_model

from cktrain.data.chat.marked_templates import marked_template
from cktrain.data.chat.named_templates import NAMED
from cktrain.data.chat.rows import parse_row
from cktrain.data.chat.samples import SampleMaker
from cktrain.data.chat.template import PINNED_DATE, ChatTemplate, named_tokens
from cktrain.data.documents import BadRow
from cktrain.side_files import read_tokenizer

pytestmark = pytest.mark.judge

CHATS = {
    "turn": (TURN, None),
    "two turns": (TURNS_TWO, None),
    "system": (SYSTEM, None),
    "reasoning": (REASONED, None),
    "tools": (TOOL, TOOLS),
}
TEMPLATES = {**STOCK, **{f"named {name}": text for name, text in NAMED.items()}}


@pytest.fixture(scope="module")
def theirs():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend(), bos_token=BOS, eos_token=EOS)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_masks_are_theirs(tmp_path, theirs, name, chat):
    messages, tools = CHATS[chat]
    side = read_tokenizer(write_model(tmp_path, TEMPLATES[name]))
    template = ChatTemplate(TEMPLATES[name], named_tokens(side), PINNED_DATE, name)
    text = TEMPLATES[name] if template.marks_generation else marked_template(TEMPLATES[name])[1]
    marked = ChatTemplate(text, named_tokens(side), PINNED_DATE, name)
    maker = SampleMaker(side, None, template, marked)
    # strftime_now gives them today's date, so they are told the pinned one by the name that Llama's template knows.
    options = {"tools": tools, "tokenize": True, "return_dict": True, "date_string": "26 Jul 2024"}
    try:
        (prepared,) = maker.prepare(parse_row({"messages": messages, "tools": tools}, {}), "here")
    except BadRow as error:
        assert "leaves tool calls out" in error.why or "System role" in error.why
        return
    (sample,) = maker.encode([prepared], ["here"])
    expected = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], **options)
    assert sample.ids == expected["input_ids"]
    masks = theirs.apply_chat_template(
        messages, chat_template=text, return_assistant_tokens_mask=True, **options
    )
    assert masks["input_ids"] == expected["input_ids"]
    found, wanted = sample.learned, [bool(bit) for bit in masks["assistant_masks"]]
    if name == "qwen2.5" and chat == "tools":  # its block begins with the line end that the prompt ends with
        first = wanted.index(True)
        assert theirs.decode(sample.ids[first]) == "\n"
        wanted[first] = False
    assert found == wanted and any(found)


def test_a_prompt_is_theirs(tmp_path, theirs):
    for name, text in TEMPLATES.items():
        template = ChatTemplate(text, {"bos_token": BOS, "eos_token": EOS}, PINNED_DATE, name)
        expected = theirs.apply_chat_template(
            TURN[:1],
            chat_template=text,
            tokenize=False,
            add_generation_prompt=True,
            date_string="26 Jul 2024",
        )
        assert template.render(TURN[:1], prompt=True).text == expected
