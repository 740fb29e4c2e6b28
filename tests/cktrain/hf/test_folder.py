"""Saving a whole folder: all of it or nothing."""

from __future__ import annotations

import errno
import json
import resource
import tracemalloc

import numpy as np
import pytest

from cktrain import safetensors_file
from cktrain.data.tokenizer import Tokenizer
from cktrain.hf import tensors
from cktrain.hf.config_json import read_model_config
from cktrain.hf.folder import save_folder
from cktrain.hf.tensors import load_weights
from cktrain.models import parse_model
from cktrain.side_files import read_side_files

SMALL = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "vocab_size": 20,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}


def test_only_into_a_new_or_empty_folder(tmp_path, small_params):
    config = parse_model(SMALL)
    params = small_params(config)
    out = tmp_path / "out"
    out.mkdir()
    save_folder(out, config, params)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(before) == ["config.json", "generation_config.json", "model.safetensors"]
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        save_folder(out, config, params)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_full_disk_leaves_nothing(tmp_path, small_params, monkeypatch):
    config = parse_model(SMALL)
    params = small_params(config)

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "write_safetensors", full)
    with pytest.raises(OSError, match=r"No space left on device. Free some space; nothing was kept"):
        save_folder(tmp_path / "out", config, params)
    assert not list(tmp_path.iterdir())


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path, small_params):
    config = parse_model({**SMALL, "vocab_size": 4000})
    params = small_params(config)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, limits[1])
    )  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(OSError, match=r"cannot write .*out: File too large"):
            save_folder(tmp_path / "out", config, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_refused(tmp_path, small_params):
    config = parse_model(SMALL)
    params = small_params(config)
    with pytest.raises(ValueError, match="no max_position_embeddings"):
        save_folder(tmp_path / "out", config.model_copy(update={"max_position_embeddings": None}), params)
    with pytest.raises(ValueError, match="no model_type"):
        save_folder(tmp_path / "out", config.model_copy(update={"qk_norm": True, "qkv_bias": True}), params)
    params["model.norm.weight"].data[3] = np.nan
    with pytest.raises(ValueError, match=r"model\.norm\.weight of the model: 1 of these 12 weights"):
        save_folder(tmp_path / "out", config, params)
    assert not list(tmp_path.iterdir())


def test_tokenizer_files_and_special_ids_of_a_pretrained_folder_are_kept(tmp_path, small_params):
    config = parse_model(SMALL)
    source = tmp_path / "source"
    source.mkdir()
    Tokenizer.train(["abc abc"], 257).save(source)
    (source / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (source / "generation_config.json").write_text(
        '{"eos_token_id": [3, 5], "bos_token_id": 1, "top_p": 0.9}'
    )
    save_folder(tmp_path / "out", config, small_params(config), side=read_side_files(source))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["eos_token_id"], values["bos_token_id"], values["pad_token_id"]) == ([3, 5], 1, None)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["top_p"] == 0.9


def test_a_tokenizer_alone_gets_its_config(tmp_path, small_params):
    config = parse_model(SMALL)
    Tokenizer.train(["abc abc"], 257).save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    save_folder(tmp_path / "out", config, small_params(config), side=read_side_files(tmp_path))
    assert (
        json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
    )
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_is_never_in_memory_twice(tmp_path, small_params, monkeypatch, family):
    monkeypatch.setattr(safetensors_file, "PIECE_BYTES", 100_000)
    config = parse_model(
        {**SMALL, "family": family, "vocab_size": 3000, "hidden_size": 192, "intermediate_size": 512}
    )
    params = small_params(config)
    size = params.data.nbytes
    assert size > 4_000_000
    peaks = []
    for work in (
        lambda: save_folder(tmp_path / "out", config, params),
        lambda: load_weights(tmp_path / "out", config, params),
    ):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A piece, its conversion and numpy's boolean mask of it, and the headers: a tenth of the model at most.
    assert max(peaks) < size / 10, (peaks, size)
    assert read_model_config(tmp_path / "out").vocab_size == 3000
