"""A run with an adapter: what trains, what it starts from, what it costs, and what is said of wrong targets."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.checkpoint import CheckpointError
from cktrain.config import Config
from cktrain.hf.folder import save_folder
from cktrain.hf.peft_targets import loras
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.formats import Widened
from cktrain.nn.numerics import Numerics
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank
from cktrain.saved_model import find_saved_model


@pytest.fixture
def pretrained(tiny, tmp_path):
    """`pretrained(dtype, seed, **model keys)` -> a Hugging Face folder of fresh weights."""

    def make(dtype: str = "float32", seed: int = 5, **keys):
        config = tiny(**{f"model.{key}": value for key, value in keys.items()}).model
        config = config.model_copy(update={"max_position_embeddings": 16})
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(config, numerics, 16).params(), numerics)
        params.initialize(seed)
        folder = tmp_path / f"base-{dtype}-{seed}"
        save_folder(folder, config, params, dtype=dtype)
        return folder

    return make


@pytest.fixture
def adapted(tiny):
    """`adapted(folder, adapter keys, **overrides)` -> a Config of an adapter beside the folder's weights."""

    def make(folder, adapter=None, **overrides) -> Config:
        values = tiny(**{"precision": "fp64", "run.steps": 6, **overrides}).model_dump(
            mode="json", exclude={"adapter"}
        )
        values["model"] = {"from_pretrained": str(folder)}
        values["adapter"] = {"r": 3, **(adapter or {})}
        return Config.model_validate(values)

    return make


def chosen(trainer) -> list[str]:
    return [rows.target.name for _, lora in loras(trainer.model) for rows in lora.b]


def test_the_adapter_trains_and_the_base_stays(pretrained, adapted, composed):
    trainer = composed(adapted(pretrained("bfloat16"))).trainer
    before = {param.name: np.array(param.data) for param in trainer.params.params}
    losses = [trainer.step().loss for _ in range(6)]
    assert losses[-1] < losses[0]
    assert all(param.spec.adapter for param in trainer.params.trainable)
    for param in trainer.params.params:
        assert (param.data != before[param.name]).any() == param.spec.adapter, param.name
    assert all(isinstance(linear.format, Widened) for linear, _ in loras(trainer.model))


@pytest.mark.parametrize("dora", [False, True])
def test_it_starts_as_the_base_and_as_peft_draws_it(pretrained, adapted, composed, tmp_path, dora):
    folder = pretrained()
    trainer = composed(adapted(folder, {"use_dora": dora})).trainer
    wide = composed(
        Config.model_validate(
            {
                **trainer.config.model_dump(mode="json", exclude={"adapter"}),
                "model": {"from_pretrained": str(folder)},
                "run": {"dir": str(tmp_path / "full"), "steps": 6, "seed": 3},
            }
        )
    ).trainer
    for param in trainer.params.trainable:
        if "lora_B" in param.name:
            assert not param.data.any()
        elif "magnitude" in param.name:
            assert dora and param.data.min() > 0
        else:
            bound = 1 / np.sqrt(param.shape[1])
            assert 0.9 * bound < np.abs(param.data).max() <= bound
            assert abs(param.data.mean()) < 0.2 * bound
    assert trainer.step().loss == pytest.approx(wide.step().loss, rel=1e-13 if dora else 0)


@pytest.mark.parametrize(
    "family, keys, targets, found",
    [
        ("llama", {}, "all-linear", 14),
        ("llama", {"qk_norm": True}, ["q_proj", "v_proj"], 4),
        ("llama", {}, ["layers.1.mlp.down_proj"], 1),
        ("llama", {}, r".*layers\.0\.(self_attn|mlp)\.[kg].*", 2),
        ("gpt2", {}, "all-linear", 8),
        ("gpt2", {}, ["c_attn"], 2),
        ("olmo2", {}, "all-linear", 14),
        ("gemma", {}, "all-linear", 14),
        ("phi3", {}, "all-linear", 8),
        ("granite4", {}, ["input_linear", "o_proj"], 4),
    ],
)
def test_targets_are_matched_as_peft_does(pretrained, adapted, composed, family, keys, targets, found):
    trainer = composed(adapted(pretrained(family=family, **keys), {"target_modules": targets})).trainer
    assert len(chosen(trainer)) == found
    assert np.isfinite(trainer.step().loss)


def test_ranks_and_alphas_by_pattern_and_exclusion(pretrained, adapted, composed):
    adapter = {
        "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"],
        "rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\..*": 2},
        "alpha_pattern": {"o_proj": 8},
        "lora_alpha": 6,
        "use_rslora": True,
    }
    trainer = composed(adapted(pretrained(), adapter)).trainer
    assert not [name for name in chosen(trainer) if name.endswith("k_proj")]
    assert "model.layers.0.mlp.up_proj" not in chosen(trainer)
    by_name = {r.target.name: r.target for _, lora in loras(trainer.model) for r in lora.b}
    assert by_name["model.layers.0.self_attn.q_proj"].rank == 5
    assert by_name["model.layers.1.mlp.gate_proj"].rank == 2
    assert by_name["model.layers.0.mlp.gate_proj"].rank == 3
    assert by_name["model.layers.1.self_attn.o_proj"].scale == pytest.approx(8 / np.sqrt(3))
    assert by_name["model.layers.1.self_attn.q_proj"].scale == pytest.approx(6 / np.sqrt(5))
    assert trainer.step().loss > trainer.step().loss


def test_what_is_trained_whole_starts_from_the_base_and_is_saved(pretrained, adapted, composed, caplog):
    folder = pretrained("bfloat16")
    config = adapted(folder, {"modules_to_save": ["embed_tokens", "norm"], "target_modules": ["v_proj"]})
    with caplog.at_level("INFO", "cktrain"):
        trainer = composed(config).trainer
    assert (
        "v_proj; trained whole: embed_tokens, input_layernorm, post_attention_layernorm, norm" in caplog.text
    )
    whole = {param.name: param.data.copy() for param in trainer.params.trainable if not param.spec.adapter}
    assert len(whole) == 6 and np.ptp(whole["model.embed_tokens.weight"]) > 0
    assert (whole["model.norm.weight"] == 1).all()
    for _ in range(2):
        trainer.step()
    assert all((trainer.params[name].data != start).any() for name, start in whole.items())
    trainer.save()
    again = composed(config).trainer
    for name in whole:
        np.testing.assert_array_equal(again.params[name].data, trainer.params[name].data, err_msg=name)
    assert again.step().loss == trainer.step().loss


def test_below_the_lowest_adapter_no_backward_is_computed(pretrained, adapted, composed, monkeypatch):
    trainer = composed(adapted(pretrained(), {"target_modules": ["layers.1.mlp.up_proj"]})).trainer
    ran = []
    for layer in trainer.model.layers[:-1]:

        def noted(*args, name=layer.name, backward=layer.backward):
            ran.append(name)
            return backward(*args)

        monkeypatch.setattr(layer, "backward", noted)
    trainer.step()
    assert set(ran) == {"model.layers.1"}


@pytest.mark.parametrize("adapter", [{}, {"lora_dropout": 0.3}, {"use_dora": True}])
def test_blocks_that_are_computed_again_give_the_same_gradients(
    pretrained, adapted, composed, tmp_path, adapter
):
    folder = pretrained()
    grads = []
    for mode in ("none", "block"):
        overrides = {"memory.checkpointing": mode, "run.dir": str(tmp_path / mode)}
        trainer = composed(adapted(folder, adapter, **overrides)).trainer
        trainer.step()
        trainer.step()
        grads.append({param.name: param.grad.copy() for param in trainer.params.trainable})
    for name, grad in grads[0].items():
        np.testing.assert_array_equal(grad, grads[1][name], err_msg=name)
        assert grad.any(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_is_what_the_run_has(pretrained, adapted, composed, precision):
    trainer = composed(adapted(pretrained("bfloat16"), precision=precision), "generic").trainer
    planned = plan_rank(trainer.config, Mesh(), 0, precision)
    assert planned.arenas["parameters"] == trainer.params.data.nbytes
    assert planned.part.flops_per_token == trainer.part.flops_per_token
    assert np.isfinite(trainer.step().loss)


@pytest.mark.parametrize("adapter", [{}, {"lora_dropout": 0.3, "use_dora": True}])
def test_resume_is_bitwise(pretrained, adapted, composed, tmp_path, adapter):
    folder = pretrained("bfloat16")
    whole = composed(adapted(folder, adapter, **{"run.dir": str(tmp_path / "whole")})).trainer
    for _ in range(4):
        whole.step()
    first = composed(adapted(folder, adapter)).trainer
    for _ in range(2):
        first.step()
    first.save()
    again = composed(adapted(folder, adapter)).trainer
    assert again.progress.step == 2
    for _ in range(2):
        again.step()
    for param in whole.params.trainable:
        np.testing.assert_array_equal(again.params[param.name].data, param.data, err_msg=param.name)


def test_dropout_is_for_training_alone(pretrained, adapted, composed, tmp_path):
    folder = pretrained()
    losses = {}
    for share in (0.0, 0.5):
        overrides = {"run.dir": str(tmp_path / f"run {share}")}
        trainer = composed(adapted(folder, {"lora_dropout": share}, **overrides)).trainer
        for param in trainer.params.trainable:
            param.data[...] = np.random.default_rng(7).normal(size=param.shape, scale=0.1)
        trainer.params.refresh()
        batch = trainer.loader.micro_batches(0)[0]
        losses[share] = trainer.stage.evaluate(batch)[0], trainer.step().loss
    assert losses[0.0][0] == losses[0.5][0]
    assert losses[0.0][1] != losses[0.5][1]


def test_dropout_may_change_when_a_run_goes_on(pretrained, adapted, composed, caplog):
    folder = pretrained()
    trainer = composed(adapted(folder)).trainer
    trainer.step()
    trainer.save()
    with caplog.at_level("INFO", "cktrain"):
        composed(adapted(folder, {"lora_dropout": 0.1}))
    assert "adapter.lora_dropout: 0.0 -> 0.1: another share" in caplog.text


@pytest.mark.parametrize("keys", [{"r": 4}, {"lora_alpha": 8}, {"target_modules": ["q_proj"]}])
def test_another_adapter_does_not_go_on(pretrained, adapted, composed, keys):
    folder = pretrained()
    trainer = composed(adapted(folder)).trainer
    trainer.step()
    trainer.save()
    with pytest.raises(CheckpointError, match=rf"adapter\.{next(iter(keys))} is .* in the checkpoint and"):
        composed(adapted(folder, keys))


def test_a_run_is_opened_with_its_adapter(pretrained, adapted, composed, tmp_path):
    trainer = composed(adapted(pretrained(), precision="fp32")).trainer
    for _ in range(3):
        trainer.step()
    trainer.save()
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    for train in (False, True):
        model, params = find_saved_model(tmp_path / "run").load(numerics, 16, train=train)
        assert len(loras(model)) == 8
        assert bool(params.trainable) == train
        for param in trainer.params.params:
            np.testing.assert_array_equal(params[param.name].data, param.data, err_msg=param.name)


# -------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    "adapter, text",
    [
        ({"target_modules": ["q_prj"]}, r"'q_prj' fits no linear of the model. The closest names are q_proj"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"'lm_head' is no linear inside the model"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"'embed_tokens' is no linear inside"),
        (
            {"target_modules": "q_proj"},
            r"a regular expression, fits no linear's whole name.*list takes the ends",
        ),
        ({"exclude_modules": ["down"]}, r"exclude_modules: 'down' fits no linear.*down_proj"),
        ({"exclude_modules": ".*"}, r"leaves out all .* so nothing is left to train"),
        ({"rank_pattern": {"q_porj": 3}}, r"rank_pattern: 'q_porj' fits no module that is adapted.*q_proj"),
        ({"alpha_pattern": {"model.layers.9.mlp.up_proj": 3}}, r"alpha_pattern: .* fits no module"),
        ({"modules_to_save": ["embed_token"]}, r"'embed_token' fits no module of the model.*embed_tokens"),
        ({"modules_to_save": ["q_proj"]}, r"a part of .*qkv_proj.weight, and .*k_proj.*Name all of them"),
        (
            {"target_modules": ["up_proj", "o_proj"], "modules_to_save": ["o_proj"]},
            r"'o_proj' is no linear .* modules_to_save trains it whole",
        ),
    ],
)
def test_wrong_targets_are_named_with_the_closest(pretrained, adapted, composed, adapter, text):
    with pytest.raises(ValueError, match=text):
        composed(adapted(pretrained(), adapter))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_one_end_of_a_tied_embedding_is_not_trained_alone(pretrained, adapted, composed, name):
    folder = pretrained(tie_word_embeddings=True)
    with pytest.raises(ValueError, match=rf"'{name}' names model.embed_tokens, .*ensure_weight_tying: true"):
        composed(adapted(folder, {"modules_to_save": [name]}))
    both = composed(adapted(folder, {"modules_to_save": [name], "ensure_weight_tying": True})).trainer
    assert "model.embed_tokens.weight" in [param.name for param in both.params.trainable]


@pytest.mark.parametrize(
    "adapter, text",
    [
        ({"target_modules": []}, "target_modules names nothing"),
        ({"target_modules": "("}, "is no regular expression"),
        ({"r": 0}, "greater than 0"),
        ({"lora_dropout": 1.0}, "less than 1"),
    ],
)
def test_values_that_mean_nothing(adapted, tmp_path, adapter, text):
    with pytest.raises(ValueError, match=text):
        adapted(tmp_path, adapter)


def test_an_adapter_needs_pretrained_weights_and_no_freeze(tiny, tmp_path):
    values = tiny().model_dump(mode="json")
    with pytest.raises(ValueError, match=r"model\.from_pretrained is not given"):
        Config.model_validate({**values, "adapter": {}})
    model = {"from_pretrained": str(tmp_path), "freeze": ["*norm*"]}
    with pytest.raises(ValueError, match=r"Leave model\.freeze out"):
        Config.model_validate({**values, "adapter": {}, "model": model})


def test_the_optimizers_defaults_follow_the_task(tiny, tmp_path):
    values = tiny().model_dump(mode="json", exclude={"optimizer"})
    values["model"] = {"from_pretrained": str(tmp_path)}
    plain, lora = (Config.model_validate({**values, **more}).optimizer for more in ({}, {"adapter": {}}))
    assert (plain.lr, plain.weight_decay, plain.betas) == (3e-4, 0.1, [0.9, 0.95])
    assert (lora.lr, lora.weight_decay, lora.betas) == (2e-4, 0.0, [0.9, 0.999])
    given = Config.model_validate({**values, "adapter": {}, "optimizer": {"lr": 1e-3, "weight_decay": 0.1}})
    assert (given.optimizer.lr, given.optimizer.weight_decay) == (1e-3, 0.1)
