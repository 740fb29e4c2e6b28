"""PEFT's folder out and in: checkpoints are one, another base or another adapter is refused, merging keeps the dtype."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.adapter_export import export_adapter, export_merged, for_vllm
from cktrain.checkpoint import CheckpointError, NotSavedError
from cktrain.config import Config
from cktrain.hf.folder import save_folder
from cktrain.hf.peft_folder import CONFIG_FILE, PREFIX, WEIGHTS_FILE
from cktrain.hf.peft_merge import merge_folder
from cktrain.loaded_model import open_model
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.safetensors_file import read_header, write_safetensors
from cktrain.saved_model import find_saved_model
from cktrain.side_files import SideFiles

IDS = np.arange(12) * 5 % 61
ADAPTER = {
    "r": 3,
    "rank_pattern": {"k_proj": 2},
    "alpha_pattern": {"o_proj": 9},
    "exclude_modules": ["up_proj"],
}


@pytest.fixture
def trained(tiny, composed, tmp_path):
    """`trained(dtype, seed, adapter keys, **model keys)` -> (base, run) after three steps with large rates."""

    def make(dtype="float32", seed=5, adapter=None, name="run", **keys):
        config = tiny(**{f"model.{key}": value for key, value in keys.items()})
        model = config.model.model_copy(update={"max_position_embeddings": 16})
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(model, numerics, 16).params(), numerics)
        params.initialize(seed)
        base = tmp_path / f"base-{dtype}-{seed}-{keys.get('family', 'llama')}"
        if not base.exists():
            save_folder(base, model, params, dtype=dtype)
        values = config.model_dump(mode="json", exclude={"adapter"})
        values |= {
            "model": {"from_pretrained": str(base)},
            "precision": "fp32",
            "adapter": adapter or ADAPTER,
        }
        values["run"] |= {"dir": str(tmp_path / name), "steps": 6}
        values["optimizer"] = {"lr": 0.1}
        trainer = composed(Config.model_validate(values)).trainer
        for _ in range(3):
            trainer.step()
        trainer.save()
        return base, trainer

    return make


WHOLE = {
    "r": 2,
    "target_modules": ["q_proj"],
    "modules_to_save": ["embed_tokens", "lm_head", "norm", "up_proj", "gate_proj"],
}
TIED = {"r": 2, "modules_to_save": ["lm_head"], "ensure_weight_tying": True}


@pytest.mark.parametrize(
    "family, adapter, keys",
    [
        ("llama", ADAPTER, {}),
        ("gpt2", {"r": 3, "lora_alpha": 12}, {}),
        ("olmo2", ADAPTER, {}),
        ("llama", WHOLE, {}),
        ("llama", TIED, {"tie_word_embeddings": True}),
        ("gpt2", {**TIED, "modules_to_save": ["wte", "attn.c_proj", "ln_f"]}, {}),
        ("llama", {**ADAPTER, "use_dora": True}, {}),
        ("gpt2", {"r": 3, "use_dora": True}, {}),
    ],
    ids=["llama", "gpt2", "olmo2", "llama, whole", "llama, tied", "gpt2, whole", "llama, dora", "gpt2, dora"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_folder_beside_the_base_and_the_merged_base_are_the_run(
    trained, tmp_path, family, adapter, keys, dtype
):
    base, _ = trained(dtype, family=family, adapter=adapter, **keys)
    saved = find_saved_model(tmp_path / "run")
    export_adapter(saved, tmp_path / "peft")
    assert sorted(path.name for path in (tmp_path / "peft").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    export_merged(saved, tmp_path / "merged", saved.side_files("none", False))
    wanted = open_model(tmp_path / "run").logits(IDS)
    plain = open_model(base).logits(IDS)
    assert np.abs(wanted - plain).max() > 1e-2
    np.testing.assert_array_equal(open_model(base, adapter=tmp_path / "peft").logits(IDS), wanted)
    np.testing.assert_array_equal(open_model(base, adapter=tmp_path / "run").logits(IDS), wanted)
    merged = open_model(tmp_path / "merged").logits(IDS)
    # Sums in another order in fp32; in bf16 each merged weight is rounded by up to 2^-9 of it. Where the embedding itself is
    # rounded, every layer reads something else: there each tensor is compared, to the last bit.
    loose = dtype == "bfloat16" and "modules_to_save" in adapter
    assert loose or np.abs(merged - wanted).max() / np.abs(wanted).max() < (
        1e-5 if dtype == "float32" else 3e-2
    )
    before = {tensor.name: tensor for tensor in read_header(base / "model.safetensors")}
    after = {tensor.name: tensor for tensor in read_header(tmp_path / "merged" / "model.safetensors")}
    assert {name: (t.dtype, t.shape, t.start) for name, t in before.items()} == {
        name: (t.dtype, t.shape, t.start) for name, t in after.items()
    }
    whole = {
        t.name[len(PREFIX) :]: t[:]
        for t in read_header(tmp_path / "peft" / WEIGHTS_FILE)
        if ".lora_" not in t.name
    }
    assert bool(whole) == ("modules_to_save" in adapter)
    for name in whole.keys() & after.keys():
        np.testing.assert_array_equal(after[name][:], whole[name].astype(after[name][:].dtype), err_msg=name)
    config = (base / "config.json").read_bytes()
    assert (tmp_path / "merged" / "config.json").read_bytes() == config


def test_a_merged_folder_in_another_dtype(trained, tmp_path):
    trained("bfloat16")
    saved = find_saved_model(tmp_path / "run")
    export_merged(saved, tmp_path / "merged", saved.side_files("none", False), "float32")
    wanted = open_model(tmp_path / "run").logits(IDS)
    assert np.abs(open_model(tmp_path / "merged").logits(IDS) - wanted).max() < 1e-5 * np.abs(wanted).max()
    open_model(tmp_path / "run").save(tmp_path / "again")
    np.testing.assert_array_equal(
        open_model(tmp_path / "again").logits(IDS), open_model(tmp_path / "merged").logits(IDS)
    )


def test_a_folder_goes_on_with_its_own_keys(trained, composed, tmp_path):
    base, trainer = trained()
    values = trainer.config.model_dump(mode="json", exclude={"adapter"})
    values["run"]["dir"] = str(tmp_path / "second")
    values["model"] = {"from_pretrained": str(base)}
    values["adapter"] = {"from_pretrained": str(tmp_path / "run")}
    again = composed(Config.model_validate(values)).trainer
    assert again.config.adapter.rank_pattern == {"k_proj": 2}
    for param in trainer.params.trainable:
        np.testing.assert_array_equal(again.params[param.name].data, param.data, err_msg=param.name)
    again.step()
    again.save()
    shutil.rmtree(tmp_path / "run")
    resumed = composed(
        Config.model_validate({**values, "adapter": again.config.adapter.model_dump()})
    ).trainer
    assert resumed.progress.step == 1
    values["adapter"]["r"] = 5
    (tmp_path / "second").rename(tmp_path / "run")
    with pytest.raises(ValueError, match=r"adapter\.r is 5 and 3 in .*which gives it"):
        composed(Config.model_validate(values))


def test_dropout_is_written_and_goes_on(trained, composed, tmp_path):
    base, trainer = trained(adapter={**ADAPTER, "lora_dropout": 0.05})
    export_adapter(find_saved_model(tmp_path / "run"), tmp_path / "peft")
    assert json.loads((tmp_path / "peft" / CONFIG_FILE).read_text())["lora_dropout"] == 0.05
    values = trainer.config.model_dump(mode="json", exclude={"adapter"})
    values["run"]["dir"] = str(tmp_path / "second")
    values["adapter"] = {"from_pretrained": str(tmp_path / "peft")}
    assert composed(Config.model_validate(values)).trainer.config.adapter.lora_dropout == 0.05
    np.testing.assert_array_equal(
        open_model(base, adapter=tmp_path / "peft").logits(IDS), open_model(tmp_path / "run").logits(IDS)
    )


def test_gradients_have_pefts_names(trained, tmp_path):
    trained()
    gradients = open_model(tmp_path / "run").gradients(IDS)
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
    assert gradients[name].shape == (12, 2) and gradients[name].any()
    assert gradients["model.layers.0.mlp.down_proj.weight"].any()


# -------------------------------------------------------------------------------------------------------- wrong input


def test_another_base_is_refused(trained, tmp_path):
    trained()
    other, _ = trained(seed=6, name="other")
    with pytest.raises(ValueError, match=r"was trained beside another base .* Give the base"):
        open_model(other, adapter=tmp_path / "run").logits(IDS)


def test_a_base_that_changed_is_refused(trained, tmp_path):
    base, _ = trained()
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    saved = find_saved_model(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not the one recorded"):
        export_merged(saved, tmp_path / "merged", saved.side_files("none", False))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "change, text",
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not read"),
        ({"bias": "all"}, "bias is 'all', which is not computed here"),
        ({"layers_to_transform": [1]}, r"layers_to_transform is \[1\]"),
        ({"init_lora_weights": "pissa"}, "changes the base's weights too"),
        ({"modules_to_save": ["lm_head"]}, r"base_model\.model\.lm_head\.weight is missing"),
        ({"target_modules": None}, "target_modules is missing"),
        ({"r": 7}, r"lora_A.weight has shape \(3, .*beside this model it has \(7"),
        (
            {"target_modules": ["q_proj"], "rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None},
            "is of no target",
        ),
        ({"r": "16"}, r"adapter_config\.json: r: input should be a valid integer, found '16'\. Correct it"),
        (
            {"lora_alpha": [1]},
            r"adapter_config\.json: lora_alpha: input should be a valid number, found \[1\]",
        ),
        ({"target_modules": ["q_proj", 1]}, r"adapter_config\.json: target_modules\."),
    ],
)
def test_a_folder_that_means_something_else(trained, tmp_path, change, text):
    base, _ = trained()
    export_adapter(find_saved_model(tmp_path / "run"), tmp_path / "peft")
    file = tmp_path / "peft" / CONFIG_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=text):
        open_model(base, adapter=tmp_path / "peft").logits(IDS)


def test_a_checkpoint_whose_adapter_is_damaged_gives_nothing(trained, tmp_path):
    base, _ = trained()
    saved = find_saved_model(tmp_path / "run")
    weights = saved.path / WEIGHTS_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    for use in (
        lambda: export_adapter(saved, tmp_path / "peft"),
        lambda: export_merged(saved, tmp_path / "merged", saved.side_files("none", False)),
        lambda: open_model(base, adapter=tmp_path / "run").logits(IDS),
        lambda: open_model(base, adapter=saved.path).logits(IDS),
    ):
        with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is damaged: its SHA-256 is"):
            use()
    assert not (tmp_path / "peft").exists() and not (tmp_path / "merged").exists()


def test_weights_that_are_missing_pickled_or_a_pointer_are_named(trained, tmp_path):
    base, _ = trained()
    export_adapter(find_saved_model(tmp_path / "run"), tmp_path / "peft")
    weights = tmp_path / "peft" / WEIGHTS_FILE
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: it is a pointer of Git LFS"):
        open_model(base, adapter=tmp_path / "peft").logits(IDS)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has adapter_config\.json and no adapter_model\.safetensors"):
        open_model(base, adapter=tmp_path / "peft").logits(IDS)
    weights.with_suffix(".bin").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is pickled.* save it again"):
        open_model(base, adapter=tmp_path / "peft").logits(IDS)


def test_what_is_trained_whole_is_written_under_its_own_name(trained, tmp_path):
    _, trainer = trained(adapter={**WHOLE, "modules_to_save": ["norm", "lm_head"]})
    config = json.loads((tmp_path / "run/checkpoints/step-00000003" / CONFIG_FILE).read_text())
    norms = [f"model.layers.{i}.{name}_layernorm" for i in (0, 1) for name in ("input", "post_attention")]
    assert config["modules_to_save"] == [*norms, "model.norm", "lm_head"]
    file = tmp_path / "run/checkpoints/step-00000003" / WEIGHTS_FILE
    stored = {tensor.name: tensor for tensor in read_header(file)}
    head = trainer.params["lm_head.weight"]
    np.testing.assert_array_equal(stored["base_model.model.lm_head.weight"][:], head.data)
    assert stored["base_model.model.model.norm.weight"].shape == trainer.params["model.norm.weight"].shape
    assert head.trainable and not trainer.params["model.embed_tokens.weight"].trainable


def test_a_tied_head_that_the_base_stores_twice_is_merged_twice(trained, tmp_path):
    base, _ = trained(adapter=TIED, tie_word_embeddings=True)
    weights = {tensor.name: tensor[:] for tensor in read_header(base / "model.safetensors")}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    write_safetensors(base / "model.safetensors", list(weights.items()), "F32")
    saved = find_saved_model(tmp_path / "run")
    export_adapter(saved, tmp_path / "peft")
    (base / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone"}}'
    )  # of files that are not read
    merge_folder(base, tmp_path / "peft", saved.adapter, saved.config, tmp_path / "merged", SideFiles({}))
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["model.safetensors"]
    merged = {tensor.name: tensor[:] for tensor in read_header(tmp_path / "merged" / "model.safetensors")}
    np.testing.assert_array_equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])
    assert np.abs(merged["lm_head.weight"] - weights["lm_head.weight"]).max() > 1e-2


def test_nan_is_never_saved_as_done(trained, tmp_path):
    _, trainer = trained()
    trainer.step()
    trainer.params.trainable[0].data[0] = np.nan
    with pytest.raises(NotSavedError, match="NaN or infinite"):
        trainer.save()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000003"]


def test_no_adapter_and_a_full_folder_are_said(trained, tmp_path):
    base, _ = trained()
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        open_model(base, adapter=tmp_path)
    with pytest.raises(ValueError, match="is no checkpoint of an adapter"):
        export_adapter(find_saved_model(base), tmp_path / "x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        export_adapter(find_saved_model(tmp_path / "run"), base)


@pytest.mark.parametrize(
    "adapter, text",
    [
        ({"r": 3}, r"vllm serve \S+base\S* --enable-lora --max-lora-rank 8 --lora-modules mine=\S+mine"),
        ({"r": 33}, "--max-lora-rank 64"),
        ({"r": 3, "use_dora": True}, "refuses use_dora: serve the merged"),
        ({"r": 3, "modules_to_save": ["lm_head"]}, "refuses modules_to_save"),
        ({"r": 3, "alpha_pattern": {"o_proj": 9}}, "ignores alpha_pattern"),
        ({"r": 600, "target_modules": ["q_proj"]}, "up to 512, this one is 600"),
    ],
)
def test_how_vllm_serves_it_is_said(trained, tmp_path, adapter, text):
    trained(adapter=adapter)
    assert re.search(text, for_vllm(find_saved_model(tmp_path / "run"), tmp_path / "mine"))
