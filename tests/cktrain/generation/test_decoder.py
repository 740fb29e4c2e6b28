"""Reading with a cache against the model without one, and text that comes out token by token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.data.tokenizer import Tokenizer
from cktrain.generation import decoder as decoder_module
from cktrain.generation.decoder import Decoder, KeyValueCache, generate
from cktrain.generation.sampler import Sampler
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.side_files import Encoding, read_side_files
from cktrain.text_stream import Codec, TextStream

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "intermediate_size": 36,
    "initializer_range": 0.2,
}
MODELS = {
    "llama": {"num_key_value_heads": 2},
    "sliding window": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qk-norm": {"qk_norm": True, "num_key_value_heads": 1},
    "gpt2": {"family": "gpt2"},
}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
# fp64: the same sums in another order. fp32: the same, and each of three layers rounds to 6e-8.
TOLERANCES = {"fp64": 1e-12, "fp32": 1e-4}
greedy = Sampler(temperature=0).choose


def kernel_sets():
    best = cython_kernels.load()
    sets = [("reference", "fp64")]
    return sets if best.isa == "reference" else [*sets, (best.isa, "fp32")]


def make_model(name: str, isa: str = "reference", precision: str = "fp64") -> Transformer:
    numerics = Numerics(cython_kernels.load(isa), precision)
    model = build_model(parse_model({**SIZES, **MODELS[name]}), numerics, 40)
    ParamStore(model.params(), numerics).initialize(seed=11)
    return model


def logits_without_cache(model: Transformer, ids: list[int]) -> np.ndarray:
    """(T, V): the logits after each of the tokens, all in one pass."""
    tokens = np.array([ids], np.int32)
    slot = model.plan(1, len(ids), train=False).allocate()[0]
    return model.head.logits(model.hidden(tokens, slot))


@pytest.mark.parametrize("chunk", [256, 4, 1])
@pytest.mark.parametrize(("isa", "precision"), kernel_sets())
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_changes_nothing(name, isa, precision, chunk, monkeypatch):
    monkeypatch.setattr(decoder_module, "PROMPT_CHUNK", chunk)
    model = make_model(name, isa, precision)
    found = list(generate(model, PROMPT, 25, greedy, positions=40))
    ids = PROMPT + found
    wanted = logits_without_cache(model, ids)
    assert len(found) == 25
    assert found == wanted[len(PROMPT) - 1 : -1].argmax(axis=1).tolist()
    assert len(set(found)) > 3  # a model that repeats one token would prove little

    decoder = Decoder(model, len(ids))
    steps = [decoder.feed(PROMPT), *(decoder.feed([token]) for token in found)]
    difference = np.abs(np.array(steps, np.float64) - wanted[len(PROMPT) - 1 :]).max() / np.abs(wanted).max()
    assert difference <= TOLERANCES[precision]


def test_it_ends_at_a_stop_id_at_the_wanted_length_or_with_the_positions():
    model = make_model("llama")
    found = list(generate(model, PROMPT, 25, greedy, positions=40))
    stop = found[5]
    assert list(generate(model, PROMPT, 25, greedy, 40, frozenset([stop]))) == found[: found.index(stop)]
    assert list(generate(model, PROMPT, 3, greedy, positions=40)) == found[:3]
    assert len(list(generate(model, PROMPT, 1000, greedy, positions=40))) == 40 - len(PROMPT) + 1
    assert list(generate(model, PROMPT, 5, greedy, positions=len(PROMPT))) == found[:1]


def test_prompts_that_cannot_be_read():
    model = make_model("gpt2")
    with pytest.raises(ValueError, match="the prompt has 41 tokens and the model 40 positions"):
        generate(model, [1] * 41, 5, greedy, positions=40)
    with pytest.raises(ValueError, match="token id 50 and the model's vocabulary 50"):
        generate(model, [1, 50], 5, greedy, positions=40)
    with pytest.raises(ValueError, match="0 tokens of prompt"):
        generate(model, [], 5, greedy, positions=40)
    with pytest.raises(ValueError, match="0 to generate"):
        generate(model, [1], 0, greedy, positions=40)


def counted(decoder: Decoder, monkeypatch, interrupted: int = 0) -> list[int]:
    """Tokens of each piece that the decoder will have read; before one of them is done, an interrupt comes."""
    read: list[int] = []

    def advance(count: int) -> None:
        read.append(count)
        if len(read) == interrupted:
            raise KeyboardInterrupt
        KeyValueCache.advance(decoder.cache, count)

    monkeypatch.setattr(decoder.cache, "advance", advance)
    return read


def test_a_prefix_that_is_known_is_not_read_again_and_changes_nothing(monkeypatch):
    model = make_model("llama")
    decoder = Decoder(model, 40)
    decoder.follow(PROMPT)
    other = [*PROMPT[:7], 8, 8, 4, 2]
    assert (decoder.known(other), decoder.known(PROMPT), decoder.known([9])) == (7, len(PROMPT) - 1, 0)
    read = counted(decoder, monkeypatch)
    again = decoder.follow(other)
    assert read == [4] and decoder.cache.length == len(other)
    # fp64: the same sums in another order.
    assert np.abs(again - Decoder(model, 40).follow(other)).max() <= 1e-12 * np.abs(again).max()
    found = list(generate(model, other, 6, greedy, 40, decoder=decoder))
    assert found == list(generate(model, other, 6, greedy, 40))


def test_an_interrupt_leaves_what_was_read_before_it(monkeypatch):
    model = make_model("llama")
    decoder = Decoder(model, 40)
    monkeypatch.setattr(decoder_module, "PROMPT_CHUNK", 4)
    chunks = counted(decoder, monkeypatch, interrupted=2)
    with pytest.raises(KeyboardInterrupt):
        decoder.follow(PROMPT)
    assert decoder.known(PROMPT) == 4 and decoder.known([*PROMPT[:2], 0, 0]) == 2
    wanted = Decoder(model, 40).follow(PROMPT)
    assert np.abs(decoder.follow(PROMPT) - wanted).max() <= 1e-12 * np.abs(wanted).max()
    assert chunks == [4, 4, 4, 3]


def codec_of(folder: Path, hugging_face: bool) -> Codec:
    """As of a Hugging Face folder, or of a run whose data was encoded without special tokens."""
    side = read_side_files(folder)
    if not hugging_face:
        side = replace(side, encoding=Encoding(eos_id=Tokenizer.load(folder).eos_id))
    return Codec(side)


TEXTS = ["plain words", "Grüße, 東京 und 🙂🙃!", "\u00e9\u0301\u200d👩‍👩‍👧", "tabs\tand\n\nlines  "]


@pytest.mark.parametrize("hugging_face", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_in_whole_characters(text: str, hugging_face: bool, tmp_path: Path):
    Tokenizer.train(["a b c " * 10], 257).save(tmp_path)  # a token for each byte
    codec = codec_of(tmp_path, hugging_face)
    ids = codec.encode(text)
    assert len(ids) == len(text.encode())
    stream = TextStream(codec, codec.encode("Prompt: "))
    parts = [stream.push(token) for token in ids]
    assert "".join(parts) + stream.finish() == text
    assert stream.finish() == ""
    assert "\ufffd" not in "".join(parts)
    assert sum(part != "" for part in parts) == len(text)  # each character as soon as it is whole


def test_bytes_that_are_no_character_come_out_at_last(tmp_path: Path):
    Tokenizer.train(["a b c " * 10], 257).save(tmp_path)
    codec = codec_of(tmp_path, False)
    ids = codec.encode("é")[:1] + codec.encode("x") + codec.encode("東")[:2]
    stream = TextStream(codec, codec.encode("p"))
    parts = [stream.push(token) for token in ids]
    assert parts == ["", "\ufffdx", "", ""]
    assert stream.finish() == codec.decode(ids)[2:] != ""


def test_codec_of_a_hugging_face_folder(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors

    Tokenizer.train(["abc"], 257).save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    eos = backend.token_to_id("<|endoftext|>")
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text(f'{{"bos_token_id": {bos}, "eos_token_id": [{eos}, 7]}}')
    codec = codec_of(tmp_path, True)
    assert codec.stop_ids == {eos, 7}
    assert codec.encode("a")[0] == bos and codec.decode(codec.encode("a")) == "a"
    assert codec.encode("<|endoftext|>") == [
        bos,
        eos,
    ]  # special tokens are read as such, as transformers does
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert codec_of(tmp_path, True).stop_ids == {eos, 7}  # the tokenizer's own ends a text as well
    run = codec_of(tmp_path, False)
    assert run.stop_ids == {eos, 7} and run.encode("") == [eos]
    assert eos not in run.encode("<|endoftext|>") and bos not in run.encode("a")


def test_prompts_must_be_text(tmp_path: Path):
    Tokenizer.train(["abc"], 257).save(tmp_path)
    with pytest.raises(ValueError, match="not UTF-8 text at character 1"):
        codec_of(tmp_path, False).encode("a\udcff")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json, it has no \"model\""):
        codec_of(tmp_path, True)
