"""A model written as GGUF and read again: from F32 bit by bit, from other types within their rounding."""

import numpy as np
import pytest
from gguf_made_here import FAMILIES, LLAMA3, TEMPLATE, YARN

import cktrain as ck
from cktrain.data.special_tokens import special_ids
from cktrain.hf.config_json import read_model_config
from cktrain.hf.gguf_file import is_gguf
from cktrain.hf.gguf_file.architectures import to_halves, to_neighbours
from cktrain.hf.gguf_file.export import export_gguf
from cktrain.hf.gguf_file.import_gguf import import_gguf
from cktrain.hf.gguf_file.reader import read_gguf
from cktrain.hf.gguf_file.source import float_type, read_tensors
from cktrain.hf.tensors import hf_tensors
from cktrain.safetensors_file import read_header
from cktrain.side_files import read_side_files

# Largest rounding, relative to the largest value of a row: f16 has 11 bits, bf16 8, Q8_0 127 steps and a scale in f16.
ROUNDING = {
    "f32": 0.0,
    "f16": 2**-11,
    "bf16": 2**-8,
    "q8_0": 0.5 / 127 + 2**-11,
    # Of a row's largest value: codes from -8 to 7, a step of 64 or 16, and floats of 4 bits whose scale may be half of what
    # would fit best.
    "q4_0": 1 / 8 + 2**-8,
    "q6_k": 1 / 64 + 2**-7,
    "q4_k": 1 / 15 + 2**-5,
    "mxfp4": 1 / 3,
}


def same_architecture(one, other):
    drop = {"from_pretrained", "freeze"}
    return one.meaning(64) == other.meaning(64), one.model_dump(exclude=drop), other.model_dump(exclude=drop)


@pytest.mark.parametrize("case", FAMILIES)
def test_f32_comes_back_bit_by_bit(case, made, gguf):
    model, path = made(case), gguf(case)
    config = read_model_config(path)
    same, ours, theirs = same_architecture(model.config, config)
    if case == "olmo2_tied":  # its head is written out, as llama.cpp wants it
        assert config.tie_word_embeddings is False
    else:
        assert same, (ours, theirs)
    tensors = read_tensors(path)
    for wanted in hf_tensors(model.config, model.params.params):
        assert tensors[wanted.name].shape == wanted.shape
        sums = case.startswith("gemma") and wanted.name.endswith("norm.weight")  # 1 + weight, rounded
        exact = wanted.view(wanted.param.data)
        np.testing.assert_allclose(
            tensors[wanted.name][:], exact, rtol=0, atol=2.0**-24 if sums else 0, err_msg=wanted.name
        )


def test_a_dense_granite_4_is_written_as_a_granite_3(made, gguf):
    model, path = made("granite", family="granite4"), gguf("granite", family="granite4")
    config = read_model_config(path)
    assert config.family == "granite" and config.residual_multiplier == 0.22
    tensors = read_tensors(path)
    for module, parts in (
        ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        found = np.concatenate([tensors[f"model.layers.1.{part}.weight"][:] for part in parts])
        np.testing.assert_array_equal(found, model.params[f"model.layers.1.{module}.weight"].data)


def test_gemmas_norms_hold_one_more_in_the_file(made, gguf):
    model, path = made("gemma3"), gguf("gemma3")
    name = "model.layers.1.self_attn.q_norm.weight"
    wanted = model.params[name].data
    stored = np.fromfile(path, "<f4", wanted.size, offset=read_tensors(path)[name].start)
    np.testing.assert_array_equal(stored, wanted + np.float32(1))


@pytest.mark.parametrize(
    ("case", "types", "written"),
    [
        ("gemma3", ["sliding_attention"] * 5 + ["full_attention"], None),
        ("gemma3", ["sliding_attention"] * 6, [True] * 6),
        ("gemma2", ["sliding_attention", "full_attention"] * 3, None),
        ("gemma2", ["full_attention"] * 6, [False] * 6),
        ("olmo3", ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2, None),
    ],
)
def test_layers_that_slide_are_listed_where_they_are_not_the_usual_ones(case, types, written, made, tmp_path):
    model = made(case, num_hidden_layers=6, layer_types=types)
    assert export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "f32") == []
    keys = read_gguf(tmp_path / "m.gguf").keys
    name = keys["general.architecture"]
    found = keys.get(f"{name}.attention.sliding_window_pattern")
    assert (None if found is None else [bool(one) for one in found]) == written
    assert read_model_config(tmp_path / "m.gguf").windows == model.config.windows


@pytest.mark.parametrize("kind", ROUNDING)
def test_other_types_are_within_their_rounding(kind, made, gguf):
    model, path = made(), gguf(kind=kind)
    tensors = read_tensors(path)
    for wanted in hf_tensors(model.config, model.params.params):
        exact = wanted.view(wanted.param.data)
        error = np.abs(tensors[wanted.name][:].astype(np.float32) - exact)
        bound = 0.0 if exact.ndim == 1 else ROUNDING[kind]  # vectors are F32 always
        assert np.all(error <= bound * np.abs(exact).max(axis=-1, keepdims=True)), wanted.name
    assert float_type(path) == {"f32": "float32", "f16": "float16"}.get(kind, "bfloat16")


def test_rows_of_a_permuted_tensor_are_read_in_any_pieces(gguf, monkeypatch):
    tensor = read_tensors(gguf("llama"))["model.layers.0.self_attn.q_proj.weight"]
    whole = tensor[:]
    np.testing.assert_array_equal(tensor[5:39], whole[5:39])
    monkeypatch.setattr("cktrain.hf.gguf_file.source.PIECE_BYTES", 4 * 64 * 20)  # a head of 16 rows at a time
    pieces = list(tensor.pieces(5, 60))
    assert [(rows.start, rows.stop) for rows, _ in pieces] == [(5, 16), (16, 32), (32, 48), (48, 60)]
    np.testing.assert_array_equal(np.concatenate([values for _, values in pieces]), whole[5:60])


def test_the_order_of_rows_is_that_of_the_rotary_pairs():
    rows = np.arange(12)  # two heads of 6
    assert to_neighbours(rows, 6).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(to_halves(to_neighbours(rows, 6), 6), rows)


def test_llama_3s_scaling_is_found_in_its_divisors(gguf):
    for keys in (
        {},
        {"rope_scaling": LLAMA3 | {"factor": 32.0}, "rope_theta": 10000.0},
        {
            "rope_scaling": LLAMA3 | {"high_freq_factor": 6.0, "original_max_position_embeddings": 4096},
            "head_dim": 64,
        },
    ):
        path = gguf("llama3", **keys)
        found = read_model_config(path).rope_scaling
        wanted = keys.get("rope_scaling", LLAMA3)
        assert found is not None and found["rope_type"] == "llama3"
        for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
            assert found[key] == pytest.approx(wanted[key], rel=2e-3), key
        path.unlink()


def test_an_imported_folder_is_the_model(made, gguf, tmp_path):
    path = gguf("qwen3")
    assert is_gguf(path) and not is_gguf(tmp_path)
    assert import_gguf(path, tmp_path / "hf") == "float32"
    ids = np.array([[5, 60, 7, 200, 9]])
    np.testing.assert_array_equal(ck.load(tmp_path / "hf").logits(ids), ck.load(path).logits(ids))
    side = read_side_files(tmp_path / "hf")
    assert side.json("tokenizer_config.json")["chat_template"] == TEMPLATE
    assert special_ids(side) == {"bos_token_id": 0, "eos_token_id": [1, 2]}
    assert ck.load(tmp_path / "hf").encode("the 123 things") == ck.load(path).encode("the 123 things")


def test_the_types_type_is_chosen_or_given(gguf, tmp_path):
    path = gguf(kind="q8_0")
    import_gguf(path, tmp_path / "default")
    import_gguf(path, tmp_path / "exact", "float32")
    kinds = {
        name: {t.dtype for t in read_header(tmp_path / name / "model.safetensors")}
        for name in ("default", "exact")
    }
    assert kinds == {"default": {"BF16"}, "exact": {"F32"}}
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        import_gguf(path, tmp_path / "exact")


def test_what_an_exported_file_says(made, tmp_path):
    model = made("qwen2")
    notes = export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "q8_0")
    keys = read_gguf(tmp_path / "m.gguf").keys
    assert notes == []
    assert keys["general.architecture"] == "qwen2" and keys["general.file_type"] == 7
    assert (keys["qwen2.attention.head_count"], keys["qwen2.attention.head_count_kv"]) == (4, 2)
    assert keys["tokenizer.ggml.pre"] == "gpt-2" and keys["tokenizer.chat_template"] == TEMPLATE
    assert len(keys["tokenizer.ggml.tokens"]) == 272 and keys["tokenizer.ggml.tokens"][-1] == "[PAD271]"
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (1, 2)
    with pytest.raises(ValueError, match=r"m\.gguf exists"):
        export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "q8_0")


def test_a_name_that_the_locale_cannot_read(made, tmp_path):
    model = made()
    for name, title in ((b"caf\xc3\xa9.gguf", "caf\xe9"), (b"caf\xe9.gguf", "caf\ufffd")):
        path = tmp_path / name.decode("ascii", "surrogateescape")
        export_gguf(path, model.config, model.params, model.side, "f32")
        assert read_gguf(path).keys["general.name"] == title


@pytest.mark.parametrize(
    "case, keys, words",
    [
        ("qwen3", {"attention_bias": True}, r"o_proj\.bias, which llama\.cpp's qwen3 would ignore"),
        ("qwen2", {"head_dim": 32}, "needs that"),
        (
            "qwen2",
            {"rope_scaling": LLAMA3},
            "rope_scaling is llama3, which is not written for llama.cpp's qwen2",
        ),
        (
            "gemma3",
            {"rope_scaling": YARN},
            "rope_scaling is yarn, which is not written for llama.cpp's gemma3",
        ),
        ("llama", {"rope_scaling": YARN | {"beta_fast": 16.0}}, "yarn with beta_fast 16.0"),
        ("llama", {"rope_scaling": YARN | {"attention_factor": 1.0}}, "yarn with attention_factor 1.0"),
        ("granite", {"family": "granite4", "position_embedding_type": "nope"}, "the model has no positions"),
        ("gemma3", {"final_logit_softcapping": 5.0}, "final_logit_softcapping is set"),
        ("gemma3", {"query_pre_attn_scalar": 5}, "query_pre_attn_scalar is 5, and llama.cpp takes 24"),
        ("gemma3", {"tie_word_embeddings": False}, "the head is not the embedding"),
        ("gemma2", {"attn_logit_softcapping": None}, "scores or logits are not capped"),
        ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}, "is not every fourth layer"),
    ],
)
def test_what_llama_cpp_has_not_is_refused(case, keys, words, made, tmp_path):
    model = made(case, **keys)
    with pytest.raises(ValueError, match=words):
        export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "f32")
    assert [path.name for path in tmp_path.glob("*gguf*")] == []


def test_a_window_becomes_the_context_length(made, tmp_path):
    model = made("llama", sliding_window=48)
    (note,) = export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "f32")
    assert "context_length is 48, the sliding window" in note
    assert read_gguf(tmp_path / "m.gguf").keys["llama.context_length"] == 48


def test_nan_leaves_no_file(made, tmp_path):
    model = made()
    model.params.params[3].data.flat[0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "q8_0")
    assert [path.name for path in tmp_path.glob("*gguf*")] == []


@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "q6_k", "mxfp4"])
def test_files_of_few_bits_say_what_they_are_and_load(kind, made, tmp_path):
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}
    model = made("llama", **sizes)
    assert export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, kind) == []
    file = read_gguf(tmp_path / "m.gguf")
    kinds = {name: tensor.kind for name, tensor in file.tensors.items() if len(tensor.shape) > 1}
    other = {"q4_0": {"output.weight": "Q6_K"}, "q6_k": {}}.get(kind, {})
    if kind == "q4_k":  # Q4_K_M: both layers of two are in the first and last eighth but for the first
        other = {name: "Q6_K" for name in ("output.weight", "blk.1.attn_v.weight", "blk.1.ffn_down.weight")}
    if kind == "mxfp4":
        other = {name: "Q8_0" for name in ("output.weight", "token_embd.weight")}
    assert kinds == {name: other.get(name, kind.upper()) for name in kinds}
    assert file.keys["general.file_type"] == {"q4_0": 2, "q4_k": 15, "q6_k": 18, "mxfp4": 38}[kind]
    ids = np.arange(12).reshape(1, 12)
    full = logits_of(tmp_path, model, ids)
    got = ck.load(tmp_path / "m.gguf").logits(ids)
    assert np.abs(got - full).max() < 0.5 * np.ptp(
        full
    )  # 4 bits of drawn weights; wrong ones are off by all of it


def logits_of(tmp_path, model, ids):
    export_gguf(tmp_path / "full.gguf", model.config, model.params, model.side, "f32")
    return ck.load(tmp_path / "full.gguf").logits(ids)


def test_rows_that_are_no_blocks_are_f16_and_it_is_said(made, tmp_path):
    model = made("llama", intermediate_size=80)
    (note,) = export_gguf(tmp_path / "m.gguf", model.config, model.params, model.side, "q8_0")
    assert "2 matrices are F16 and not Q8_0" in note
    assert read_gguf(tmp_path / "m.gguf").tensors["blk.0.ffn_down.weight"].kind == "F16"
