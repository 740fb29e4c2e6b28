"""Weights in safetensors: how a folder may be split or spelled, and how it may be wrong."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cktrain.hf.config_json import read_model_config
from cktrain.hf.tensors import _say_what_is_read, check_weights, hf_tensors, load_weights, weight_files
from cktrain.safetensors_file import read_header

Q = "model.layers.1.self_attn.q_proj.weight"


def rewrite(folder, change, metadata=None):
    """Apply `change` to the folder's tensors, by the safetensors package."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata)


@pytest.mark.parametrize(
    "keys",
    [{}, {"tie_word_embeddings": True, "qkv_bias": True, "num_key_value_heads": 1}, {"family": "gpt2"}],
    ids=["llama", "qwen2 tied", "gpt2"],
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 1000], ids=["one file", "sharded"])
def test_saved_weights_come_back(saved, small_params, keys, max_shard_bytes):
    folder, params = saved(max_shard_bytes, **keys)
    assert len(list(folder.glob("*.safetensors"))) == (
        1 if max_shard_bytes == 10**9 else len(shards_of(folder))
    )
    again = small_params(read_model_config(folder))
    again.data.fill(7)
    load_weights(folder, read_model_config(folder), again)
    for param in params.params:
        assert np.array_equal(again[param.name].data, param.data), param.name


def shards_of(folder):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    held = {file: load_file(folder / file) for file in shards}
    assert index["metadata"]["total_size"] == sum(
        a.nbytes for tensors in held.values() for a in tensors.values()
    )
    assert all(name in held[file] for name, file in index["weight_map"].items())
    return shards


def test_fused_and_transposed_tensors_stand_where_hugging_face_has_them(saved):
    folder, params = saved(num_key_value_heads=1)
    stored = load_file(folder / "model.safetensors")
    fused = params["model.layers.1.self_attn.qkv_proj.weight"].data
    q, k, v = (stored[f"model.layers.1.self_attn.{x}_proj.weight"] for x in "qkv")
    assert (q.shape, k.shape, v.shape) == ((12, 12), (4, 12), (4, 12))
    assert np.array_equal(np.concatenate([q, k, v]), fused)
    folder, params = saved(family="gpt2")
    stored = load_file(folder / "model.safetensors")
    assert stored["transformer.h.0.attn.c_attn.weight"].shape == (12, 36)
    assert np.array_equal(
        stored["transformer.h.0.mlp.c_proj.weight"].T, params["transformer.h.0.mlp.c_proj.weight"].data
    )
    assert "lm_head.weight" not in stored


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types_are_converted(saved, small_params, dtype):
    folder, params = saved()
    rewrite(folder, lambda tensors: tensors.update({name: a.astype(dtype) for name, a in tensors.items()}))
    again = small_params(read_model_config(folder))
    load_weights(folder, read_model_config(folder), again)
    for param in params.params:
        assert np.array_equal(again[param.name].data, param.data.astype(dtype).astype(np.float32)), param.name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_base_model_has_no_prefix_and_old_ones_have_buffers(saved, small_params, family):
    folder, params = saved(family=family, tie_word_embeddings=True)
    base = "transformer." if family == "gpt2" else "model."

    def change(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(base)] = tensors.pop(name)
        if family == "gpt2":
            tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
            tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
        else:
            tensors["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)

    rewrite(folder, change)
    again = small_params(read_model_config(folder))
    again.data.fill(7)
    load_weights(folder, read_model_config(folder), again)
    assert all(np.array_equal(again[p.name].data, p.data) for p in params.params)


def test_a_tied_head_in_the_file_must_be_the_embedding(saved, small_params):
    folder, _ = saved(tie_word_embeddings=True)
    again = small_params(read_model_config(folder))
    rewrite(
        folder,
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}),
    )
    load_weights(folder, read_model_config(folder), again)
    check_weights(folder, read_model_config(folder), small_params(read_model_config(folder)).params)
    rewrite(folder, lambda tensors: tensors["lm_head.weight"].fill(0))
    with pytest.raises(
        ValueError, match=r"lm_head\.weight \(20, 12\) differs from model\.embed_tokens\.weight"
    ):
        load_weights(folder, read_model_config(folder), again)
    with pytest.raises(
        ValueError, match=r"lm_head\.weight \(20, 12\) differs from model\.embed_tokens\.weight"
    ):
        check_weights(folder, read_model_config(folder), small_params(read_model_config(folder)).params)


def set_one(value, dtype):
    def change(tensors):
        tensors[Q] = tensors[Q].astype(dtype)
        tensors[Q][3, 4] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), rf"{Q} \(12, 12\) is missing"),
        (
            lambda t: t.update({Q: t[Q][:, :8].copy()}),
            rf"{Q} in model.safetensors has shape \(12, 8\), the model's has \(12, 12\)",
        ),
        (
            lambda t: t.update(extra=np.ones(3, np.float32)),
            r"extra \(3,\) in model.safetensors is unexpected",
        ),
        (
            lambda t: t.update({Q: t[Q].astype(np.int8)}),
            rf"{Q} in model.safetensors is I8, only F64, F32, F16, BF16",
        ),
        (
            set_one(np.nan, np.float32),
            rf"{Q} in .*model.safetensors: 1 of these 144 weights are NaN or infinite",
        ),
        (
            set_one(np.inf, ml_dtypes.bfloat16),
            rf"{Q} in .*model.safetensors: 1 of these 144 weights are NaN or infinite",
        ),
        (
            set_one(1e300, np.float64),
            rf"{Q} in .*model.safetensors: 1 of these 144 weights are NaN or infinite in float32",
        ),
    ],
    ids=["missing", "misshapen", "unexpected", "int8", "nan", "bf16 inf", "f64 too large"],
)
def test_wrong_tensors_are_named(saved, small_params, change, message):
    folder, _ = saved()
    rewrite(folder, change)
    params = small_params(read_model_config(folder))
    before = params.data.copy()
    with pytest.raises(ValueError, match=message):
        load_weights(folder, read_model_config(folder), params)
    with pytest.raises(ValueError, match=message):
        check_weights(folder, read_model_config(folder), params.params)
    if "NaN" not in message:
        assert np.array_equal(params.data, before)


def test_check_weights_lists_what_is_stored(saved):
    folder, params = saved()
    assert {t.name: t.shape for t in check_weights(folder, read_model_config(folder), params.params)} == {
        t.name: t.shape for t in hf_tensors(read_model_config(folder), params.params)
    }


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: truncate(f / "model.safetensors"),
            r"model\.safetensors: .* ends at byte [\d,]+ and the file has [\d,]+",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"{}"), "2 bytes do not hold the header"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\2" + b"\0" * 7 + b"{]"), "The header is damaged"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            r"has no model\.safetensors and no model\.safetensors\.index\.json",
        ),
        (
            lambda f: shutil.move(f / "model.safetensors", f / "pytorch_model.bin"),
            r"pytorch_model\.bin is not read",
        ),
    ],
    ids=["truncated", "no header", "bad header", "none", "pickle"],
)
def test_damaged_files_are_named(saved, small_params, damage, message):
    folder, _ = saved()
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_weights(folder, read_model_config(folder), small_params(read_model_config(folder)))


def test_an_index_must_match_its_shards(saved, small_params):
    folder, _ = saved(max_shard_bytes=1000)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    params = small_params(read_model_config(folder))
    for change, message in (
        ({"model.norm.weight": "../model.safetensors"}, "is not in the folder"),
        ({"model.norm.weight": "model-99999-of-00009.safetensors"}, "is not in the folder"),
        ({"no.such": good["weight_map"]["model.norm.weight"]}, r"no\.such is not in model-"),
    ):
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **change}}))
        with pytest.raises(ValueError, match=message):
            load_weights(folder, read_model_config(folder), params)
    index.write_text("[]")
    with pytest.raises(ValueError, match="It is no index of weights"):
        load_weights(folder, read_model_config(folder), params)


def test_weights_that_stand_there_twice_are_told(saved, small_params, capsys):
    """One file and an index of others, as an interrupted conversion leaves them: the one file is read, and it is said."""
    folder, _ = saved(max_shard_bytes=1000)
    whole, _ = saved()
    shutil.copyfile(whole / "model.safetensors", folder / "model.safetensors")
    config = read_model_config(folder)
    load_weights(folder, config, small_params(config))
    assert weight_files(folder) == ["model.safetensors"]
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and "model.safetensors is read, as transformers does, and model-00001-of-0" in said
    )
    for path in folder.glob("model-*"):
        path.unlink()
    for text in (
        None,
        "{",
    ):  # an index of files that are gone misleads nobody, and a damaged one is not needed
        if text is not None:
            (folder / "model.safetensors.index.json").write_text(text)
        _say_what_is_read.cache_clear()
        weight_files(folder)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "weight_map: field required"),
        ("", "it is empty"),
        ("null", "found None"),
        ('{"weight_map": []}', "weight_map: input should be a valid dictionary"),
        ('{"weight_map": {"a": 1}}', "weight_map.a: input should be a valid string, found 1"),
        ('{"weight_map": {"a": null}}', "weight_map.a: .*found None"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "its file '../a.safetensors' is not in the folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "its file '/etc/passwd' is not in the folder"),
        ('{"weight_map": {"a": ".."}}', r"its file '\.\.' is not in the folder"),
        ('{"weight_map": {"a": ""}}', "its file '' is not in the folder"),
        ('{"weight_map": {"a": "x\\u0000"}}', "is not in the folder"),
        ('{"weight_map": {"a": "' + "x" * 300 + '"}}', "is not in the folder"),
        ('{"weight_map": {"a": "a", "a": "b"}}', "'a' stands twice"),
        ("\x00", "a binary file"),
    ],
)  # fmt: skip
def test_odd_indexes_are_named(saved, small_params, index, message):
    folder, _ = saved()
    params = small_params(read_model_config(folder))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"^\[hugging_face\] .*index\.json: .*" + message):
        load_weights(folder, read_model_config(folder), params)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[]", "valid dictionary"), ("null", "valid dictionary"), ("", "it is empty"), ('{"a": 1}', "a: .*dictionary"),
        ('{"a": {}}', "a.dtype: field required"),
        ('{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 4]}}', "a.shape: .*list, found 3"),
        ('{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}', r"a.shape.0: .*integer, found 1\.0"),
        ('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "a.shape.0: .*greater than or equal to 0"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}', "a.data_offsets: .*at least 2"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', "a.data_offsets.0: .*greater than"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "a has 4 bytes for F32"),
        ('{"a": {"dtype": 32, "shape": [1], "data_offsets": [0, 4]}}', "a.dtype: .*string, found 32"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}', "'a' stands twice"),
        ('{"a": ' * 9999, "nested too deeply"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "4 bytes follow the last tensor"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "a begins at byte 73, and .* ends at 69"),
        ('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},'
         ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "b begins at byte"),
    ],
)  # fmt: skip
def test_odd_headers_are_named(tmp_path, header, message):
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(ValueError, match=r"^\[safetensors\] .*model\.safetensors: .*" + message):
        read_header(file)


def test_a_weight_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, saved, small_params):
    with pytest.raises(ValueError, match="Is a directory"):
        read_header(tmp_path)
    with pytest.raises(ValueError, match=r"deleted meanwhile; a run .* deletes its older checkpoints"):
        read_header(tmp_path / "step-00000004.safetensors")
    folder, _ = saved()
    params = small_params(read_model_config(folder))

    def broken(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np, "fromfile", broken)
    with pytest.raises(ValueError, match=r"model\.safetensors: .* cannot be read: Input/output error"):
        load_weights(folder, read_model_config(folder), params)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_of_the_hubs_cache_that_leads_nowhere_is_named(saved, small_params, name):
    folder, params = saved()
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to("../../blobs/0123")
    with pytest.raises(
        ValueError, match=rf"{name} is a link to ../../blobs/0123, which is not there. Fetch the model"
    ):
        load_weights(folder, read_model_config(folder), params)
