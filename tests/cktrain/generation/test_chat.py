"""Conversations: what the cache does not read again changes nothing, what no longer fits is left out, and answers join."""

from __future__ import annotations

import pytest
from chat_models import QWEN3, SMOLLM2, STOCK, SYSTEM, TURNS_TWO, write_model, write_weights

from cktrain.data.chat.chat_prompt import ChatPrompt
from cktrain.data.chat.rows import Conversation
from cktrain.data.chat.samples import SampleMaker
from cktrain.data.chat.template import PINNED_DATE, ChatTemplate, named_tokens
from cktrain.generation.chat import ChatSession
from cktrain.generation.sampler import Sampler
from cktrain.loaded_model import open_model
from cktrain.side_files import read_tokenizer

pytestmark = pytest.mark.usefixtures("unbound")
GREEDY = {"temperature": 0, "repetition_penalty": 1.3}


def session_of(folder, template=SMOLLM2, positions=1024, **keys):
    model = open_model(write_weights(folder / "model", positions=positions, template=template))
    return model, ChatSession(model, model.chat_prompt(), **keys)


def say(session, text, **keys):
    answer = session.ask(text, Sampler(**GREEDY), **keys)
    return "".join(answer), answer


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3], ids=["chatml", "qwen3"])
def test_answers_are_those_of_a_model_that_reads_everything_anew(tmp_path, template):
    model, session = session_of(tmp_path, template, max_tokens=12, system="Be brief.")
    for question in ("Hi", "Who are you?", "Sure?"):
        text, answer = say(session, question)
        asked = session.messages[:-1]
        assert asked[-1] == {"role": "user", "content": question}
        assert text == model.chat(asked, 12, **GREEDY)
    # The turns before are the same text, of which at most the last token of an answer was not read yet.
    assert answer.reused >= len(model.chat_prompt().ids(asked[:-2])) > 0
    session.reset()
    assert session.messages == [{"role": "system", "content": "Be brief."}]
    assert say(session, "Hi")[0] == model.chat(session.messages[:-1], 12, **GREEDY)


def test_the_oldest_turns_are_left_out_where_the_context_is_full(tmp_path):
    model, session = session_of(tmp_path, system="S.", context=128, max_tokens=16)
    left_out = []
    for number in range(6):
        text, answer = say(session, f"message {number}")
        left_out.append(answer.left_out)
        kept = [session.messages[0], *session.messages[1 + session.left_out : -1]]
        assert text == model.chat(kept, 16, **GREEDY)
        assert answer.prompt_tokens == len(model.chat_prompt().ids(kept)) <= 128 - 16
    assert left_out[0] == 0 and sum(left_out) == session.left_out > 0
    assert len(session.messages) == 13  # all of it stays there
    before = list(session.messages)
    with pytest.raises(ValueError, match=r"the message has .* and of a context of 128 tokens 16 are kept"):
        session.ask("long " * 40, Sampler(0))
    assert session.messages == before


def test_an_answer_that_is_stopped_joins_as_far_as_it_came(tmp_path):
    _, session = session_of(tmp_path, max_tokens=50)
    answer = session.ask("Hi", Sampler(0))
    assert not answer.join() and session.messages == []
    for _ in answer:
        if len(answer.text) > 3:
            break
    assert answer.join() and answer.join()
    assert [message["content"] for message in session.messages] == ["Hi", answer.text]
    assert say(session, "Go on")[1].reused > 0


@pytest.mark.parametrize("name", STOCK)
def test_a_prompt_is_what_the_row_of_the_conversation_begins_with(tmp_path, name):
    side = read_tokenizer(write_model(tmp_path / "model", STOCK[name]))
    messages = [*(SYSTEM if name != "gemma" else TURNS_TWO)]
    messages[-2] = {"role": "user", "content": "What is <|im_end|>?"}  # text, not a token
    prompt = ChatPrompt(side, date=PINNED_DATE)
    template = ChatTemplate(STOCK[name], named_tokens(side), PINNED_DATE, name)
    maker = SampleMaker(side, None, template, None)
    prepared = maker.prepare(Conversation(messages, "messages"), "row")
    sample = maker.encode(prepared, ["row"] * len(prepared))[-1]
    ids = prompt.ids(messages[:-1])
    assert sample.ids[: len(ids)] == ids and any(sample.learned[len(ids) :])
    assert prompt.stop_ids >= {maker.tokenizer.eos_id}


def test_what_cannot_be_talked_with_is_told(tmp_path):
    model = open_model(write_weights(tmp_path / "none", template=None))
    with pytest.raises(ValueError, match=r"none has no chat template.*--chat-template"):
        model.chat_prompt()
    assert model.chat([{"role": "user", "content": "Hi"}], 4, chat_template="chatml", temperature=0)
    with pytest.raises(ValueError, match="a context of 200 tokens: give 2 to 128"):
        ChatSession(model, model.chat_prompt("chatml"), context=200)
    refusing = tmp_path / "refusing.jinja"
    refusing.write_text("{{ raise_exception('No system prompt.') }}")
    with pytest.raises(ValueError, match=r"\[chat\] the chat template refuses it: No system prompt"):
        ChatSession(model, model.chat_prompt(str(refusing)), system="S.")
