"""Frozen parameters: what is not trained keeps its weights, costs nothing, and is known by its files on resume."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest

from cktrain import cython_kernels, file_identity, frozen_base
from cktrain.checkpoint import CheckpointError
from cktrain.checkpoint_record import read_checkpoint
from cktrain.config import Config
from cktrain.hf.folder import resolve_model, save_folder
from cktrain.hf.freeze import freeze
from cktrain.memory import arena
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.formats import Widened
from cktrain.nn.numerics import Numerics
from cktrain.parallel import costs
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank
from cktrain.safetensors_file import read_header
from cktrain.saved_model import find_saved_model

SHA256_OF_FILE = file_identity.sha256_of_file
TIME_PARTS = costs.time_parts
LOWEST = ["model.embed_tokens", "model.layers.0"]


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
def frozen(tiny, tmp_path):
    """`frozen(folder, patterns, **overrides)` -> a Config that starts from the folder with these patterns frozen."""

    def make(folder, patterns, **overrides) -> Config:
        values = tiny(**{"precision": "fp64", "run.steps": 6, **overrides}).model_dump(mode="json")
        values["model"] = {"from_pretrained": str(folder), "freeze": patterns}
        return Config.model_validate(values)

    return make


def made_since(before: set[int]) -> Counter[str]:
    """Bytes by name of the arenas that were made since; one of an earlier test may go at any time."""
    made: Counter[str] = Counter()
    for number, (name, nbytes) in arena._ACCOUNTS.items():
        if number not in before and nbytes:
            made[name] += nbytes
    return made


def weights_of(params: ParamStore) -> dict[str, np.ndarray]:
    return {param.name: np.array(param.data) for param in params.params}


def test_frozen_weights_stay_and_the_others_get_the_gradients_that_they_get_anyway(
    pretrained, frozen, composed, tmp_path
):
    folder = pretrained()
    part = composed(frozen(folder, LOWEST, **{"run.dir": str(tmp_path / "a")})).trainer
    whole = composed(frozen(folder, [], **{"run.dir": str(tmp_path / "b")})).trainer
    before = weights_of(part.params)
    for trainer in (part, whole):
        trainer.step()
    for param in part.params.trainable:
        np.testing.assert_array_equal(param.grad, whole.params[param.name].grad, err_msg=param.name)
        assert (param.data != before[param.name]).any()
    held = {param.name for param in part.params.frozen}
    assert held == {n for n in before if "embed_tokens" in n or ".layers.0." in n}
    for name in held:
        np.testing.assert_array_equal(part.params[name].data, before[name])


def test_what_is_frozen_has_no_gradient_no_moments_and_no_master_weights(pretrained, frozen, composed):
    folder, before = pretrained(), set(arena._ACCOUNTS)
    trainer = composed(frozen(folder, LOWEST)).trainer
    arenas = made_since(before)
    trained = 8 * sum(-(-param.size // 16) * 16 for param in trainer.params.trainable)
    assert arenas["parameters"] == arenas["gradients"] == trained
    assert 2 * trained <= arenas["optimizer"] < 2 * trained + 256
    assert arenas["frozen weights"] == 8 * sum(-(-p.size // 8) * 8 for p in trainer.params.frozen)


def test_below_the_lowest_trained_layer_no_backward_is_computed(pretrained, frozen, composed, monkeypatch):
    trainer = composed(frozen(pretrained(), LOWEST)).trainer
    ran = []
    for layer in trainer.model.layers[:-1]:

        def noted(*args, name=layer.name, backward=layer.backward):
            ran.append(name)
            return backward(*args)

        monkeypatch.setattr(layer, "backward", noted)
    trainer.step()
    assert set(ran) == {"model.layers.1"}


@pytest.mark.parametrize(
    "family, patterns",
    [
        ("llama", ["*.weight"]),
        ("llama", ["*norm*"]),
        ("llama", ["lm_head", "*_proj.weight"]),
        ("llama", ["*.o_proj", "model.norm"]),
        ("llama", ["*.bias"]),
        ("gpt2", ["*.weight"]),
        ("gpt2", ["*.ln_*"]),
        ("gpt2", ["*.wpe", "*.c_*.weight"]),
        ("gpt2", ["*.wte", "lm_head", "*.h.0"]),
        ("gpt2", ["*.bias"]),
    ],
)
def test_any_part_can_be_frozen(pretrained, frozen, composed, tmp_path, family, patterns):
    keys = {"family": family} | ({"attention_bias": True, "qk_norm": True} if family == "llama" else {})
    folder = pretrained(**keys)
    part = composed(frozen(folder, patterns, **{"run.dir": str(tmp_path / "a")})).trainer
    whole = composed(frozen(folder, [], **{"run.dir": str(tmp_path / "b")})).trainer
    before = weights_of(part.params)
    for trainer in (part, whole):
        trainer.step()
    assert part.params.frozen and part.params.trainable
    for param in part.params.trainable:
        np.testing.assert_allclose(
            param.grad, whole.params[param.name].grad, rtol=0, atol=1e-12, err_msg=param.name
        )
    for param in part.params.frozen:
        np.testing.assert_array_equal(param.data, before[param.name])


def test_a_pattern_that_names_nothing_is_told_the_closest_names(pretrained, frozen, composed):
    with pytest.raises(ValueError, match=r"'model\.layer\.0' names no tensor.*model\.layers\.0"):
        composed(frozen(pretrained(), ["model.layer.0"]))


def test_a_matrix_is_not_frozen_in_part(pretrained, frozen, composed):
    with pytest.raises(ValueError, match=r"0\.self_attn\.q_proj\.weight and not .*k_proj.*one matrix"):
        composed(frozen(pretrained(), ["model.layers.0.self_attn.q_proj"]))


def test_something_must_train(pretrained, frozen, composed):
    with pytest.raises(ValueError, match=r"names all \d+ tensors, so nothing is left to train"):
        composed(frozen(pretrained(), ["*"]))


def test_fresh_weights_are_not_frozen(tiny):
    with pytest.raises(ValueError, match=r"no from_pretrained is given"):
        parse_model({**tiny().model.model_dump(mode="json"), "freeze": ["*"]})


def test_no_pattern_freezes_nothing(tiny):
    params = build_model(tiny().model, Numerics(cython_kernels.load(), "fp32"), 16).params()
    freeze(tiny().model, params)
    assert all(param.trainable for param in params)


# ---------------------------------------------------------------------------------------------- dtypes of the files


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_frozen_matrices_keep_their_files_dtype(pretrained, frozen, composed, tmp_path, precision):
    folder = pretrained("bfloat16")
    trainer = composed(
        frozen(folder, LOWEST, precision=precision), "generic" if precision == "fp32" else "reference"
    ).trainer
    dtypes = {param.name: param.data.dtype.name for param in trainer.params.frozen}
    matrices = {param.name for param in trainer.params.frozen if len(param.shape) == 2}
    assert {dtypes[name] for name in matrices} == {"bfloat16"} and len(matrices) == 4 + 1
    assert {dtypes[name] for name in dtypes.keys() - matrices} == {
        "float32" if precision == "fp32" else "float64"
    }
    wide = composed(
        frozen(folder, [], precision=precision, **{"run.dir": str(tmp_path / "wide")}), None
    ).trainer
    assert trainer.step().loss == wide.step().loss
    for param in trainer.params.trainable:
        np.testing.assert_array_equal(param.grad, wide.params[param.name].grad, err_msg=param.name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_tied_table_keeps_its_files_dtype(pretrained, frozen, composed, tmp_path, family):
    """It is looked up by the embedding and multiplied by the head; GPT-2 looks up positions too."""
    folder = pretrained("bfloat16", family=family, tie_word_embeddings=True)
    patterns = ["*.embed_tokens"] if family == "llama" else ["*.wte", "*.wpe"]
    part = composed(frozen(folder, patterns, precision="fp32"), "generic").trainer
    whole = composed(
        frozen(folder, [], precision="fp32", **{"run.dir": str(tmp_path / "w")}), "generic"
    ).trainer
    assert {param.data.dtype.name for param in part.params.frozen} == {"bfloat16"}
    assert part.step().loss == whole.step().loss
    for param in part.params.trainable:
        np.testing.assert_array_equal(param.grad, whole.params[param.name].grad, err_msg=param.name)


def test_a_frozen_matrix_above_a_trained_one_passes_its_gradient_on(pretrained, frozen, composed, tmp_path):
    folder = pretrained("bfloat16")
    part = composed(frozen(folder, ["model.layers.1", "lm_head"])).trainer
    whole = composed(frozen(folder, [], **{"run.dir": str(tmp_path / "whole")})).trainer
    assert isinstance(part.model.head.output.format, Widened)
    for trainer in (part, whole):
        trainer.step()
    for param in part.params.trainable:
        np.testing.assert_array_equal(param.grad, whole.params[param.name].grad, err_msg=param.name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_of_a_frozen_base_is_what_the_run_has(pretrained, frozen, composed, precision):
    folder, before = pretrained("bfloat16"), set(arena._ACCOUNTS)
    trainer = composed(frozen(folder, LOWEST, precision=precision), "generic").trainer
    held = made_since(before)
    cython_kernels.load("generic")
    planned = plan_rank(trainer.config, Mesh(), 0, precision)
    assert {name: nbytes for name, nbytes in planned.arenas.items() if nbytes} == held


def test_measured_costs_are_those_of_the_frozen_base(pretrained, frozen, monkeypatch):
    """Its matrices have their file's dtype, and a frozen block costs no backward unless a block below it trains."""
    monkeypatch.setattr(costs, "LEAST_SECONDS", 0)
    folder = pretrained("bfloat16", num_hidden_layers=3)
    config = frozen(folder, ["model.embed_tokens", "model.layers.[02]", "lm_head"], precision="fp32")
    config = config.model_copy(update={"model": resolve_model(config.model)[0]})
    measured = []

    def time_parts(model, *rest):
        measured.append(model)
        return TIME_PARTS(model, *rest)

    monkeypatch.setattr(costs, "time_parts", time_parts)
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    below, trained, above = costs.measure_costs(config, numerics, Mesh()).blocks
    assert isinstance(measured[0].head.output.format, Widened) and len(measured[0].blocks) == 3
    for block, name in zip(measured[0].blocks, ("bfloat16", "float32", "bfloat16"), strict=True):
        assert {p.value.dtype.name for p in block.params() if len(p.shape) == 2} == {name}
    assert below.backward == 0 < below.forward
    assert above.backward > 0 and trained.backward > 0


def test_a_bf16_run_holds_a_bf16_file_once(pretrained, frozen, composed):
    folder, before = pretrained("bfloat16"), set(arena._ACCOUNTS)
    trainer = composed(frozen(folder, LOWEST, precision="bf16"), "generic").trainer
    arenas = made_since(before)
    matrices = sum(p.size for p in trainer.params.frozen if len(p.shape) == 2)
    assert 2 * matrices <= arenas["frozen weights"] < 2 * matrices + 1000
    assert np.isfinite(trainer.step().loss)


# ------------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_holds_what_trains_and_names_the_rest(pretrained, frozen, composed):
    folder = pretrained()
    trainer = composed(frozen(folder, LOWEST)).trainer
    trainer.step()
    state = read_checkpoint(path := trainer.save()).state
    held = {tensor.name.partition("[")[0] for tensor in read_header(path / "rank0.safetensors")}
    trained = {param.name for param in trainer.params.trainable}
    assert held == {f"{kind}.{name}" for kind in ("param", "exp_avg", "exp_avg_sq") for name in trained}
    assert set(state.tensors) == trained
    assert state.base is not None and state.base.path == str(folder)
    assert set(state.base.tensors) == {param.name for param in trainer.params.frozen}
    assert list(state.base.files) == ["model.safetensors"]
    assert state.layout == {"data": 1, "pipeline": 1, "tensor": 1}


def test_resume_over_the_frozen_base_is_bitwise(pretrained, frozen, composed, tmp_path):
    folder = pretrained("bfloat16")
    whole = composed(frozen(folder, LOWEST, **{"run.dir": str(tmp_path / "whole")})).trainer
    whole.run()
    config = frozen(folder, LOWEST, **{"checkpoint.every": 2})
    composed(config).trainer.run()
    for step in ("step-00000004", "step-00000006"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step)
    moved = folder.rename(tmp_path / "moved")
    again = composed(frozen(moved, LOWEST, **{"checkpoint.every": 2})).trainer
    assert again.progress.step == 2
    again.run()
    for name, values in weights_of(whole.params).items():
        np.testing.assert_array_equal(again.params[name].data, values, err_msg=name)


def test_a_base_that_stayed_as_it_was_is_read_once_for_its_digest(
    pretrained, frozen, composed, tmp_path, monkeypatch
):
    """By the first start; afterwards only when it has moved to another file or was written again."""
    monkeypatch.setattr(file_identity, "_UNCHANGED_NS", 0)
    read = []
    for module in (file_identity, frozen_base):
        monkeypatch.setattr(module, "sha256_of_file", lambda path: read.append(path) or SHA256_OF_FILE(path))
    folder = pretrained()
    trainer = composed(config := frozen(folder, LOWEST)).trainer
    trainer.step()
    trainer.save()
    weights = folder / "model.safetensors"
    assert read.count(weights) == 1
    again = composed(config).trainer
    find_saved_model(tmp_path / "run").load(Numerics(cython_kernels.load("reference"), "fp32"), 16)
    assert again.progress.step == 1 and again.progress.base == trainer.progress.base
    assert read.count(weights) == 1
    shutil.copy2(weights, tmp_path / "copy")
    (tmp_path / "copy").replace(weights)
    third = composed(config).trainer
    assert read.count(weights) == 2 and third.progress.base.files == trainer.progress.base.files


def test_another_base_is_refused(pretrained, frozen, composed):
    trainer = composed(frozen(pretrained(), LOWEST)).trainer
    trainer.step()
    trainer.save()
    with pytest.raises(
        CheckpointError, match=r"frozen weights are those of .*base-float32-5 .* holds others"
    ):
        composed(frozen(pretrained(seed=6), LOWEST))


def test_a_base_that_is_gone_is_asked_for(pretrained, frozen, composed):
    folder = pretrained()
    config = frozen(folder, LOWEST)
    trainer = composed(config).trainer
    trainer.step()
    trainer.save()
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"is gone, and the frozen weights are read from it"):
        composed(config)


def test_other_patterns_do_not_go_on(pretrained, frozen, composed):
    folder = pretrained()
    trainer = composed(frozen(folder, LOWEST)).trainer
    trainer.step()
    trainer.save()
    with pytest.raises(CheckpointError, match=r"model\.freeze is \[.*\] in the checkpoint"):
        composed(frozen(folder, []))


def test_a_saved_model_is_whole(pretrained, frozen, composed, tmp_path):
    folder = pretrained("bfloat16")
    trainer = composed(frozen(folder, LOWEST, precision="fp32")).trainer
    trainer.step()
    trainer.save()
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    _, params = find_saved_model(tmp_path / "run").load(numerics, 16)
    for name, values in weights_of(trainer.params).items():
        np.testing.assert_array_equal(params[name].data, values.astype(np.float32), err_msg=name)
    _, params = find_saved_model(tmp_path / "run").load(numerics, 16, train=True)
    assert not params.frozen, "what a run froze is its own affair"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is not the one recorded.*Put the folder back"
    ):
        find_saved_model(tmp_path / "run").load(numerics, 16)


def test_a_base_that_was_moved_is_found_by_a_link(pretrained, frozen, composed, tmp_path):
    folder = pretrained("bfloat16")
    trainer = composed(frozen(folder, LOWEST, precision="fp32")).trainer
    trainer.step()
    trainer.save()
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    moved = folder.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"which is not there\. Put it there .*: ln -s WHERE "):
        find_saved_model(tmp_path / "run").load(numerics, 16)
    folder.symlink_to(moved)
    find_saved_model(tmp_path / "run").load(numerics, 16)
