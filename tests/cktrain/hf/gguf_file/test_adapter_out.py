"""An adapter as a GGUF file: keys and tensors as llama.cpp's converter has them, what it has not is refused."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGUFReader

from cktrain import cython_kernels
from cktrain.hf.gguf_file.adapter_out import export_gguf_adapter
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_folder import peft_adapter
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

PATTERNS = {"r": 3, "lora_alpha": 8, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 5}}


@pytest.fixture
def adapted(tmp_path):
    """`adapted(config, keys)` -> (PEFT's folder of a drawn adapter, its config, its weights by our names)."""

    def make(config, keys):
        adapter, folder = AdapterConfig(**keys), tmp_path / "peft"
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        model = build_model(config, numerics, 64, adapter=adapter)
        params = ParamStore(model.params(), numerics)
        draw = np.random.default_rng(2)
        for param in params.trainable:
            param.data[...] = draw.normal(0, 0.3, param.shape)
        folder.mkdir()
        arrays = {param.name: param.data for param in params.trainable}
        peft_adapter(adapter, config, model, None).write_arrays(folder, arrays)
        return folder, adapter, arrays

    return make


def test_keys_and_tensors(made, adapted, tmp_path):
    model = made("qwen2")
    folder, adapter, arrays = adapted(model.config, PATTERNS)
    count = export_gguf_adapter(tmp_path / "a.gguf", folder, adapter, model.config)
    file = GGUFReader(tmp_path / "a.gguf")
    keys = {name: field.contents() for name, field in file.fields.items()}
    assert keys["general.type"] == "adapter" and keys["general.architecture"] == "qwen2"
    assert keys["adapter.type"] == "lora" and keys["adapter.lora.alpha"] == 8.0
    tensors = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    assert count == sum(values.size for values in tensors.values()) and len(tensors) == 2 * 7 * 2
    down = tensors["blk.1.ffn_down.weight.lora_b"]
    np.testing.assert_array_equal(down, arrays["model.layers.1.mlp.down_proj.lora_B.down_proj.weight"])
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight.lora_a"], arrays["model.layers.1.mlp.down_proj.lora_A.weight"]
    )
    for name, alpha in (("k_proj", 8), ("up_proj", 5)):  # whatever llama.cpp makes of alpha and the rank
        part, theirs = {
            "k_proj": ("self_attn.qkv_proj", "attn_k"),
            "up_proj": ("mlp.gate_up_proj", "ffn_up"),
        }[name]
        b = arrays[f"model.layers.0.{part}.lora_B.{name}.weight"]
        found = tensors[f"blk.0.{theirs}.weight.lora_b"]
        np.testing.assert_allclose(found * (8.0 / b.shape[1]), b * (alpha / b.shape[1]), rtol=1e-6)


def test_rslora_has_an_alpha_that_is_divided_by_the_rank(made, adapted, tmp_path):
    model = made("qwen2")
    folder, adapter, arrays = adapted(model.config, {"r": 4, "lora_alpha": 6, "use_rslora": True})
    export_gguf_adapter(tmp_path / "a.gguf", folder, adapter, model.config, "f16")
    file = GGUFReader(tmp_path / "a.gguf")
    assert file.fields["adapter.lora.alpha"].contents() == pytest.approx(6 / 2 * 4)
    found = {tensor.name: tensor.data for tensor in file.tensors}["blk.0.ffn_down.weight.lora_b"]
    wanted = arrays["model.layers.0.mlp.down_proj.lora_B.down_proj.weight"].astype(np.float16)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("keys", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_what_llama_cpp_has_not_is_refused(made, adapted, tmp_path, keys):
    model = made("llama")
    folder, adapter, _ = adapted(model.config, {"r": 2, **keys})
    with pytest.raises(ValueError, match=rf"the adapter has {next(iter(keys))}, .*--merge --gguf"):
        export_gguf_adapter(tmp_path / "a.gguf", folder, adapter, model.config)
    assert not (tmp_path / "a.gguf").exists()


@pytest.mark.judge
@pytest.mark.parametrize("case", ["llama", "llama3", "qwen3", "olmo2"])
def test_llama_cpp_beside_the_base_gives_our_log_probabilities(gguf, made, adapted, tmp_path, case):
    """An F32 adapter beside F32 weights: 1e-5, as the model alone."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from test_llama_cpp_judge import IDS, log_probabilities, ours

    path = gguf(case)
    folder, adapter, _ = adapted(made(case).config, PATTERNS)
    export_gguf_adapter(tmp_path / "a.gguf", folder, adapter, made(case).config)
    beside = [xllamacpp.CommonAdapterLoraInfo(str(tmp_path / "a.gguf"), 1.0)]
    theirs = log_probabilities(path, IDS, beside)
    np.testing.assert_allclose(theirs, ours(path, IDS, adapter=folder), rtol=0, atol=1e-5)
    assert np.abs(theirs - ours(path, IDS)).max() > 0.1
