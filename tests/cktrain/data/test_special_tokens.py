"""Ids merged key by key, the rule of what is put around a text, and which token ends a document."""

from __future__ import annotations

import json

import pytest
from tokenizers_made_here import BOS, backend, write_tokenizer

from cktrain.data.special_tokens import added_around, end_ids, special_ids
from cktrain.data.tokenizer import Tokenizer
from cktrain.data.tokenizer_backend import read_backend
from cktrain.side_files import read_side_files, read_tokenizer
from cktrain.text_stream import Codec


def write(folder, name, **values):
    (folder / name).write_text(json.dumps(values))


def test_a_file_that_is_silent_hides_nothing(tmp_path):
    write_tokenizer(tmp_path)
    assert special_ids(read_side_files(tmp_path)) == {"bos_token_id": 0, "eos_token_id": 1}
    write(tmp_path, "config.json", bos_token_id=5, eos_token_id=[7, 8], pad_token_id=-1)
    assert special_ids(read_side_files(tmp_path)) == {"bos_token_id": 5, "eos_token_id": [7, 8]}
    write(tmp_path, "generation_config.json", pad_token_id=9, eos_token_id=None, temperature=1)
    found = special_ids(read_side_files(tmp_path))
    assert found == {"bos_token_id": 5, "eos_token_id": [7, 8], "pad_token_id": 9}
    write(tmp_path, "generation_config.json", eos_token_id=[])
    assert end_ids(special_ids(read_side_files(tmp_path))) == [7, 8]
    write(tmp_path, "generation_config.json", eos_token_id=3)
    assert end_ids(special_ids(read_side_files(tmp_path))) == [3]
    assert read_tokenizer(tmp_path).special_ids["eos_token_id"] == [
        7,
        8,
    ]  # config.json stays behind, its ids do not


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", "2"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", True),
        ("eos_token_id", 2.0),
        ("eos_token_id", [2, None]),
        ("eos_token_id", {"id": 2}),
        ("bos_token_id", [0]),
        ("pad_token_id", False),
    ],
)
def test_what_is_no_id_is_refused_by_file_and_key(tmp_path, key, value):
    write(tmp_path, "generation_config.json", **{key: value})
    with pytest.raises(ValueError, match=rf"generation_config\.json: {key} is .*, not an id"):
        special_ids(read_side_files(tmp_path))


def around(folder):
    side = read_side_files(folder)
    return added_around(side, read_backend(side))


def test_the_tokenizers_own_rule(tmp_path):
    assert around(write_tokenizer(tmp_path / "none")) == ([], [])
    assert around(write_tokenizer(tmp_path / "template", backend(bos=True))) == ([0], [])
    assert around(write_tokenizer(tmp_path / "said", add_bos_token=True, add_eos_token=True)) == ([0], [1])
    assert around(write_tokenizer(tmp_path / "denied", backend(bos=True), add_bos_token=False)) == ([], [])
    assert around(write_tokenizer(tmp_path / "without", add_bos_token=True, bos_token=None)) == ([], [])
    assert around(write_tokenizer(tmp_path / "other", backend(bos=True), add_eos_token=False)) == ([0], [])
    with pytest.raises(ValueError, match="bos_token '<no>' is not in the vocabulary"):
        around(write_tokenizer(tmp_path / "no", add_bos_token=True, bos_token="<no>"))
    with pytest.raises(ValueError, match="add_eos_token is 'yes', not true or false"):
        around(write_tokenizer(tmp_path / "yes", add_eos_token="yes"))


def test_a_document_begins_and_ends_once(tmp_path):
    tokenizer = Tokenizer.load(
        write_tokenizer(tmp_path, backend(bos=True), add_bos_token=True, add_eos_token=True)
    )
    ids = tokenizer.encode("one")
    assert tokenizer.document(ids) == [0, *ids, 1]
    assert tokenizer.document([0, *ids]) == [0, *ids, 1]
    assert tokenizer.document([]) == [0, 1]
    assert tokenizer.encoding.begin_ids == [0] and tokenizer.encoding.eos_id == 1


def test_which_token_ends_a_document(tmp_path):
    folder = write_tokenizer(tmp_path)
    write(tmp_path, "config.json", eos_token_id=[2, 1])
    assert Tokenizer.load(folder).eos_token == "</s>"  # tokenizer_config.json names it
    assert Tokenizer.load(folder, "<|im_end|>").eos_id == 2
    write(tmp_path, "tokenizer_config.json", eos_token=None)
    assert Tokenizer.load(folder).eos_token == "<|im_end|>"  # the first of the model's
    (tmp_path / "config.json").unlink()
    assert Tokenizer.load(folder).eos_token == "</s>"  # a well-known one
    write(tmp_path, "tokenizer_config.json", eos_token="<nowhere>")
    with pytest.raises(
        ValueError, match=r"'<nowhere>' is the eos_token of tokenizer_config\.json and is not"
    ):
        Tokenizer.load(folder)


def test_special_tokens_in_a_text_are_text_or_tokens(tmp_path):
    side = read_side_files(write_tokenizer(tmp_path))
    assert 2 not in Tokenizer.of(side).encode("one<|im_end|>")
    assert Tokenizer.of(side, special_tokens="parse").encode("one<|im_end|>")[-1] == 2


def test_truncation_and_padding_that_a_file_kept_do_nothing(tmp_path):
    made = backend()
    made.enable_truncation(2)
    made.enable_padding(length=50)
    assert Tokenizer.load(write_tokenizer(tmp_path, made)).encode("one two") == Tokenizer.load(
        write_tokenizer(tmp_path / "plain")
    ).encode("one two")


def test_dropout_that_a_file_kept_does_nothing(tmp_path):
    made = backend()
    model = made.model
    model.dropout = 0.5
    made.model = model
    folder = write_tokenizer(tmp_path, made)
    assert b'"dropout": 0.5' in (folder / "tokenizer.json").read_bytes()
    texts = ["one two three four five " * 20] * 4
    assert Tokenizer.load(folder).encode_batch(texts) == [backend().encode(text).ids for text in texts]


def test_tokens_that_stand_beside_tokenizer_json_are_added(tmp_path):
    """transformers adds what added_tokens_decoder, or the older added_tokens.json, names and tokenizer.json lacks."""
    size = backend().get_vocab_size()
    tool = {"content": "<tool>", "special": True, "normalized": False}
    newer = write_tokenizer(tmp_path / "newer", added_tokens_decoder={str(size): tool, "0": {"content": BOS}})
    older = write_tokenizer(tmp_path / "older")
    write(older, "added_tokens.json", **{"<tool>": size})
    for folder in (newer, older):
        tokenizer = Tokenizer.of(read_side_files(folder), special_tokens="parse")
        assert tokenizer.encode("one<tool>")[-1] == size and tokenizer.vocab_size == size + 1
    assert Tokenizer.load(newer, "<tool>").eos_id == size
    assert size not in Tokenizer.load(newer).encode("one<tool>")  # a special one, and so text
    write(newer, "tokenizer_config.json", added_tokens_decoder={"900": tool})
    with pytest.raises(ValueError, match=rf"'<tool>' is to be id 900, .* would call it {size}"):
        Tokenizer.load(newer)


def test_the_older_map_of_special_tokens_counts_where_the_config_is_silent(tmp_path):
    folder = write_tokenizer(tmp_path, eos_token=None, bos_token=None)
    write(tmp_path, "config.json", eos_token_id=1)
    write(tmp_path, "special_tokens_map.json", eos_token={"content": "<|im_end|>"}, bos_token="<s>")
    assert Tokenizer.load(folder).eos_token == "<|im_end|>"
    assert special_ids(read_side_files(folder)) == {"bos_token_id": 0, "eos_token_id": 1}
    write(tmp_path, "tokenizer_config.json", eos_token="</s>")
    assert Tokenizer.load(folder).eos_token == "</s>"
    write(tmp_path, "tokenizer_config.json")
    write(tmp_path, "special_tokens_map.json", eos_token="<nowhere>")
    with pytest.raises(ValueError, match=r"is the eos_token of special_tokens_map\.json and is not"):
        Tokenizer.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("{}", 'not a tokenizer.json, it has no "model"'),
        ("[1]", "input should be a valid dictionary"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        ('{"version":"2.0","model":{"type":"BPE","vocab":{},"merges":[]}}', "or a newer version wrote it"),
        ('{"version":"1.0","model":{"type":"Newest","vocab":{}}}', "pip install -U tokenizers"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_says_why(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer\.json: ") as error:
        Tokenizer.load(tmp_path)
    assert message in str(error.value) and str(error.value).startswith("[tokenizer] ")


def test_a_panic_of_the_library_is_an_error_like_others(tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(
        '{"version":"1.0","added_tokens":[{"id":5,"content":"<x>","single_word":false,"lstrip":false,"rstrip":false,'
        '"normalized":false,"special":true}],"model":{"type":"BPE","continuing_subword_prefix":"##",'
        '"vocab":{"a":0,"b":1},"merges":["a b"]}}'
    )
    with pytest.raises(ValueError, match=r"cannot read it \(.*It is damaged, or a newer version"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_other_kinds_of_tokenizers_come_with_the_command_that_converts_them(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"AutoTokenizer as A; A\.from_pretrained") as error:
        read_tokenizer(tmp_path)
    assert f"has {name} and no tokenizer.json" in str(error.value)


def test_a_prompt_begins_once_and_nothing_ends_it(tmp_path):
    folder = write_tokenizer(tmp_path, backend(bos=True), add_bos_token=True, add_eos_token=True)
    codec = Codec(read_side_files(folder))
    ids = codec.encode("one")
    assert ids[0] == 0 and 1 not in ids
    assert codec.encode("<s>one") == ids
    assert codec.encode("") == [0]
    assert Codec(read_side_files(folder), "text").encode("<s>one")[:2] != ids[:2]


def test_a_mark_of_byte_order_before_the_json_does_no_harm(tmp_path):
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert Tokenizer.load(tmp_path).eos_id == 1
