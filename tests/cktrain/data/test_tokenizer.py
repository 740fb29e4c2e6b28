"""Training is deterministic, text comes back whole, and the tokens' bytes add up to the text's."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from cktrain.data.tokenizer import END_OF_TEXT, Tokenizer

CODE = "    def the_cat(self):\n        return None\n"
DOCUMENTS = ["the cat sat on the mat\n", CODE, "naïve café ☃ \U0001f600"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(DOCUMENTS, 300)


def test_the_vocabulary_is_as_large_as_asked(tokenizer):
    assert tokenizer.vocab_size == 300
    assert tokenizer.eos_token == END_OF_TEXT and tokenizer.eos_id == 0
    with pytest.raises(ValueError, match="vocab_size 256 is below 257"):
        Tokenizer.train(DOCUMENTS, 256)
    assert Tokenizer.train(["ab"], 5000).vocab_size == 258  # the bytes, the end token and one merge


@settings(max_examples=200)
@given(st.text())
def test_any_text_comes_back_and_its_bytes_add_up(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert all(0 < index < tokenizer.vocab_size for index in ids)


def test_a_special_token_in_a_text_is_text(tokenizer):
    text = f"a{END_OF_TEXT}b"
    ids = tokenizer.encode(text)
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[tokenizer.eos_id] == 0
    assert tokenizer.decode([tokenizer.eos_id, *tokenizer.encode("x")]) == "x"


def test_batches_are_the_same_as_one_by_one(tokenizer):
    assert tokenizer.encode_batch(DOCUMENTS) == [tokenizer.encode(text) for text in DOCUMENTS]


def test_training_is_deterministic_across_processes(tmp_path):
    script = (
        "import sys; from cktrain.data.tokenizer import Tokenizer\n"
        "from cktrain.data.corpus import Corpus\n"
        "import itertools\n"
        "documents = itertools.islice(Corpus('python-stdlib').documents(), 100)\n"
        "Tokenizer.train(documents, 1000).save(sys.argv[1])\n"
    )
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True, env=environment)
        digests.add(hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.encode_batch(DOCUMENTS) == tokenizer.encode_batch(DOCUMENTS)
        assert (again.eos_id, again.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)


def test_the_end_token_is_found(tmp_path):
    backend = Backend(models.BPE(vocab={"a": 0, "</s>": 1, "<stop>": 2}, merges=[]))
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).eos_token == "</s>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert Tokenizer.load(tmp_path).eos_id == 2
    assert Tokenizer.load(tmp_path, eos_token="a").eos_id == 0
    with pytest.raises(ValueError, match="'<no>' was asked for and is not in the vocabulary"):
        Tokenizer.load(tmp_path, eos_token="<no>")
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not valid JSON"):
        Tokenizer.load(tmp_path)


def test_bad_files(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer\.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(tmp_path)
    Backend(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="nothing names its end token"):
        Tokenizer.load(tmp_path)


def test_bytes_of_added_tokens_in_a_byte_level_tokenizer(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_tokens([AddedToken("ñandú")])
    backend.save(str(tmp_path / "tokenizer.json"))
    larger = Tokenizer.load(tmp_path)
    ids = larger.encode("x ñandú y")
    assert 300 in ids and larger.vocab_size == 301
    assert larger.token_bytes()[ids].sum() == len("x ñandú y".encode())


def test_bytes_of_a_tokenizer_with_byte_tokens(tmp_path):
    pieces = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "é", "▁a"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[("▁", "a")], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([AddedToken("añb")])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    for text in ("a a", "éa ☃", "xañby"):
        ids = tokenizer.encode(text)
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
        assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[0] == 0
