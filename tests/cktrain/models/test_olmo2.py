"""OLMo-2: what its config.json may say, and that a model made here is the same one in transformers.

The parity of logits, loss and gradients, its layouts and its cache are tested with those of all families, from the case
`tests/golden/hf/olmo2`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.hf.config_json import read_model_config, write_model_config
from cktrain.hf.folder import save_folder
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

FRESH = {
    "family": "olmo2",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 60,
    "max_position_embeddings": 32,
    "attention_bias": True,
    "initializer_range": 0.2,
}


def fresh(**keys):
    """(config, model, its parameters with drawn weights) on the reference kernels in fp64."""
    numerics = Numerics(cython_kernels.load("reference"), "fp64")
    config = parse_model({**FRESH, **keys})
    model = build_model(config, numerics, 32)
    params = ParamStore(model.params(), numerics)
    params.initialize(seed=5)
    return config, model, params


def logits(model, ids):
    slot = model.plan(1, len(ids), train=False).allocate()[0]
    return model.head.logits(model.hidden(np.array([ids], np.int32), slot))


def test_its_norms_stand_after_attention_and_mlp_and_over_the_whole_width():
    _, model, params = fresh()
    names = {param.name for param in params.params if "layers.0" in param.name and "norm" in param.name}
    layer = "model.layers.0."
    assert names == {
        f"{layer}self_attn.q_norm.weight",
        f"{layer}self_attn.k_norm.weight",
        f"{layer}post_attention_layernorm.weight",
        f"{layer}post_feedforward_layernorm.weight",
    }
    assert params[f"{layer}self_attn.q_norm.weight"].shape == (32,)
    assert params[f"{layer}self_attn.k_norm.weight"].shape == (16,)
    # A post-norm takes away how large attention's output is, but for eps; a pre-norm would not.
    before = logits(model, [1, 2, 3, 4])
    for name in ("weight", "bias"):
        params[f"{layer}self_attn.o_proj.{name}"].data[...] *= 1000
    assert np.allclose(logits(model, [1, 2, 3, 4]), before, atol=0.02)


def test_config_json_and_back(tmp_path):
    config, _, _ = fresh()
    values = write_model_config(config, "float32", {})
    assert (values["model_type"], values["architectures"]) == ("olmo2", ["Olmo2ForCausalLM"])
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path).meaning(32) == config.meaning(32)
    for key in ("num_key_value_heads", "rms_norm_eps", "attention_bias"):
        del values[key]
    (tmp_path / "config.json").write_text(json.dumps(values))
    bare = read_model_config(tmp_path)
    assert (bare.kv_heads, bare.meaning(32)["rms_norm_eps"], bare.meaning(32)["attention_bias"]) == (
        4,
        1e-5,
        False,
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"clip_qkv": 8.0}, "clip_qkv is 8.0. It is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'. Only silu"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}}, "rope_type is 'dynamic'"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, keys, message):
    config, _, _ = fresh()
    (tmp_path / "config.json").write_text(json.dumps(write_model_config(config, "float32", {}) | keys))
    with pytest.raises(ValueError, match=message):
        read_model_config(tmp_path)


@pytest.mark.judge
def test_a_model_made_here_gives_the_same_logits_in_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config, model, params = fresh()
    save_folder(tmp_path / "out", config, params)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="sdpa", dtype="float32"
    )
    assert not any(report.values()), report
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(logits(model, ids) - wanted).max() <= 2e-5 * np.abs(wanted).max()
