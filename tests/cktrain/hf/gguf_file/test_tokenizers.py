"""Tokenizers of each kind, written as GGUF's keys and read again: the same ids, the same text."""

import json
from dataclasses import replace

import pytest
from gguf_made_here import ROWS, TEMPLATE, byte_level, side_files
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from cktrain.data.special_tokens import added_around
from cktrain.data.tokenizer_backend import read_backend
from cktrain.hf.gguf_file.pre_tokenizers import PRE_TOKENIZERS
from cktrain.hf.gguf_file.reader import GGUFFile
from cktrain.hf.gguf_file.tokenizer_in import end_ids, tokenizer_files
from cktrain.hf.gguf_file.tokenizer_out import find_pre, tokenizer_keys
from cktrain.side_files import SideFiles

TEXTS = (
    "the thing in the hall, 123 times",
    "  two spaces\tand\n\nlines \r\n",
    "It's 1234567 CamelCase; I'LL café 東京都 ½ 🦙",
    "<|im_start|>user\nhello<|im_end|>\n",
    "",
)


def read_back(side, tmp_path, rows=ROWS):
    """The keys of side files as the file that they would be in, and what is read from it."""
    file = GGUFFile(tmp_path / "m.gguf", tokenizer_keys(side, rows), {})
    return file, SideFiles(tokenizer_files(file), found_in="m.gguf")


def same_ids(one, other):
    for text in TEXTS:
        assert one.encode(text).ids == other.encode(text).ids, text
        ids = one.encode(text).ids
        assert one.decode(ids) == other.decode(ids), text


def parts(name):
    pre = PRE_TOKENIZERS[name]
    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    whole = {**empty, "pre_tokenizer": pre.pre_tokenizer, "normalizer": pre.normalizer}
    return Tokenizer.from_str(json.dumps(whole)), pre


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_rule_for_words_is_found_by_what_it_does(name, tmp_path):
    empty, pre = parts(name)
    backend = byte_level(empty.pre_tokenizer, empty.normalizer, ignore_merges=pre.ignore_merges)
    found = find_pre(backend)
    assert found is not None
    rule = PRE_TOKENIZERS[found]  # of names for one rule the first is written
    assert (rule.pre_tokenizer, rule.normalizer) == (pre.pre_tokenizer, pre.normalizer)
    assert rule.ignore_merges == pre.ignore_merges
    side = side_files(tmp_path / "side", backend)
    _, again = read_back(side, tmp_path)
    same_ids(read_backend(side), read_backend(again))


def test_a_rule_without_a_name_is_refused(tmp_path):
    for pre, normalizer in (
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (None, normalizers.Lowercase()),
        (pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(False)]), None),
    ):
        backend = byte_level(pre, normalizer)
        with pytest.raises(ValueError, match=r"has no name in llama\.cpp"):
            tokenizer_keys(side_files(tmp_path / "side", backend), ROWS)


def test_what_stands_around_a_text_and_the_template_come_back(tmp_path):
    backend = byte_level()
    backend.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 2)]
    )
    side = side_files(tmp_path / "side", backend, bos_token="<|endoftext|>", pad_token="<|im_start|>")
    file, again = read_back(side, tmp_path)
    assert added_around(again, read_backend(again)) == ([2], [])
    config = again.json("tokenizer_config.json")
    assert config["add_bos_token"] is True and config["add_eos_token"] is False
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|im_start|>",
    )
    assert config["chat_template"] == TEMPLATE
    assert end_ids(file) == [1, 2]
    same_ids(read_backend(side), read_backend(again))


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepieces_bpe(prefix, tmp_path):
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    merges = [
        ("▁", "t"),
        ("▁t", "h"),
        ("h", "e"),
        ("▁th", "e"),
        ("i", "n"),
        ("a", "l"),
        ("al", "l"),
        ("▁", "▁"),
    ]
    letters = list("▁abcdefghijklmnopqrstuvwxyz,")
    made = dict.fromkeys(
        ["<unk>", "<s>", "</s>", *byte_tokens, *("".join(pair) for pair in merges), *letters]
    )
    vocabulary = {token: index for index, token in enumerate(made)}
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")]
    )
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    side = side_files(tmp_path / "side", backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    file, again = read_back(side, tmp_path, rows=320)
    assert file.keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert file.keys["tokenizer.ggml.unknown_token_id"] == 0
    assert file.keys["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    same_ids(read_backend(side), read_backend(again))
    # Gemma's files call the unknown token a control token, and name it by its key alone.
    file.keys["tokenizer.ggml.token_type"][0] = 3
    same_ids(read_backend(side), read_backend(SideFiles(tokenizer_files(file), found_in="m.gguf")))


def test_unigram(tmp_path):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Metaspace(split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([text.lower() for text in TEXTS] * 5, trainer)
    side = side_files(tmp_path / "side", backend, bos_token=None, eos_token="</s>", unk_token="<unk>")
    file, again = read_back(side, tmp_path, rows=300)
    assert file.keys["tokenizer.ggml.model"] == "t5"
    same_ids(read_backend(side), read_backend(again))


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    side = side_files(tmp_path / "side", byte_level())
    with pytest.raises(ValueError, match="the model's embedding 200 rows"):
        tokenizer_keys(side, 200)
    assert tokenizer_keys(SideFiles(), 200) == {"tokenizer.ggml.model": "no_vocab"}


def test_an_added_token_beyond_the_embedding_is_left_out_and_told(tmp_path, caplog):
    """As fine-tuning elsewhere adds a padding token without a row: it can never occur."""
    backend = byte_level()
    rows = backend.get_vocab_size()
    backend.add_special_tokens([AddedToken("<pad>", special=True)])
    side = side_files(tmp_path / "side", backend, pad_token="<pad>")
    side = replace(side, special_ids={"pad_token_id": rows})
    keys = tokenizer_keys(side, rows)
    assert f"'<pad>' is left out: its id is {rows}, and the model's embedding has {rows} rows" in caplog.text
    assert len(keys["tokenizer.ggml.tokens"]) == rows and "<pad>" not in keys["tokenizer.ggml.tokens"]
    assert "tokenizer.ggml.padding_token_id" not in keys


def test_a_tokenizer_of_single_bytes_has_no_merges_and_comes_back(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", *alphabet]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    side = side_files(tmp_path / "side", backend)
    keys = tokenizer_keys(side, ROWS)
    del keys["tokenizer.ggml.merges"]  # an array of nothing is not written
    again = SideFiles(tokenizer_files(GGUFFile(tmp_path / "m.gguf", keys, {})), found_in="m.gguf")
    same_ids(backend, read_backend(again))

    keys = tokenizer_keys(side_files(tmp_path / "merges", byte_level()), ROWS)
    del keys["tokenizer.ggml.merges"]
    with pytest.raises(ValueError, match=r"tokenizer.ggml.merges is missing"):
        tokenizer_files(GGUFFile(tmp_path / "m.gguf", keys, {}))
