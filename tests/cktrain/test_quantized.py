"""`model.quantize`: a base in blocks computes what the same values would in full, for training, logits and tensor ranks."""

from __future__ import annotations

import numpy as np
import pytest
from thread_group import run_ranks

import cktrain as ck
from cktrain import cython_kernels
from cktrain.checkpoint import CheckpointError
from cktrain.compose import compose
from cktrain.config import Config
from cktrain.cython_kernels.reference.quantized import NORMAL_FLOAT
from cktrain.hf.folder import save_folder
from cktrain.hf.freeze import hold_as_stored
from cktrain.hf.quantize import encode
from cktrain.memory.arena import planning
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.nn.quantized import Quantized
from cktrain.parallel.mesh import Mesh
from cktrain.plan.memory import plan_rank
from cktrain.safetensors_file import read_header, write_safetensors
from cktrain.saved_model import find_saved_model

pytest.importorskip("gguf")

SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
ISA = cython_kernels.best()


@pytest.fixture
def pretrained(tiny, tmp_path):
    """`pretrained(**model keys)` -> a Hugging Face folder of fresh weights."""

    def make(dtype: str = "float32", **keys):
        values = {**SIZES, **keys}
        config = tiny(**{f"model.{key}": value for key, value in values.items()}).model
        config = config.model_copy(update={"max_position_embeddings": 16})
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(config, numerics, 16).params(), numerics)
        params.initialize(5)
        folder = tmp_path / f"base-{len(list(tmp_path.iterdir()))}"
        save_folder(folder, config, params, dtype=dtype)
        return folder

    return make


@pytest.fixture
def adapted(tiny):
    """`adapted(folder, quantize, adapter keys, **overrides)` -> a Config of an adapter beside the folder's weights."""

    def make(folder, quantize="none", adapter=None, **overrides) -> Config:
        values = tiny(**{"precision": "fp64", "run.steps": 4, **overrides}).model_dump(
            mode="json", exclude={"adapter"}
        )
        values["model"] = {"from_pretrained": str(folder), "quantize": quantize}
        values["adapter"] = {"r": 3, **(adapter or {})}
        return Config.model_validate(values)

    return make


def in_float16(folder):
    """The folder with its weights in fp16."""
    file = folder / "model.safetensors"
    tensors = [(tensor.name, tensor) for tensor in read_header(file)]
    write_safetensors(folder / "narrow.safetensors", tensors, "F16")
    (folder / "narrow.safetensors").rename(file)
    return folder


def decoded(folder, quantize: str, out, but=()):
    """A folder whose matrices, but for some, hold the values that the blocks of `folder` stand for."""
    saved = find_saved_model(folder)
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    model, params = saved.quantized(quantize).load(numerics, 16)
    _, plain = saved.load(numerics, 16)
    modules = {module.weight: module for module in model.modules() if hasattr(module, "format")}
    for param in params.params:
        if param.spec.blocks and param.name not in but:
            module = modules[param]
            plain[param.name].data[...] = module.format.rows(slice(0, param.shape[0]), module)
    save_folder(out, saved.config, plain)
    return out


@pytest.mark.parametrize(
    "quantize, family, adapter",
    [
        ("q8_0", "llama", {}),
        ("nf4", "llama", {"use_dora": True}),
        ("mxfp4", "gpt2", {}),
        ("q4_k", "llama", {}),  # rows of 64 values, so q5_0
        ("q4_1", "olmo2", {"modules_to_save": ["lm_head"]}),
    ],
)
def test_an_adapter_trains_as_over_the_values_of_the_blocks(
    pretrained, adapted, composed, tmp_path, quantize, family, adapter
):
    keys = {} if family == "gpt2" else {"num_key_value_heads": 2}
    folder = pretrained(family=family, **keys)
    saved = {"lm_head.weight"} if "modules_to_save" in adapter else set()
    values = decoded(folder, quantize, tmp_path / "full", saved)
    blocks = composed(adapted(folder, quantize, adapter, **{"run.dir": str(tmp_path / "a")})).trainer
    full = composed(adapted(values, "none", adapter, **{"run.dir": str(tmp_path / "b")})).trainer
    held = {param.name for param in blocks.params.frozen if param.spec.blocks}
    matrices = {param.name for param in full.params.frozen if len(param.shape) == 2}
    assert held == {name for name in matrices if "wpe" not in name and "position" not in name}
    for _ in range(4):
        assert blocks.step().loss == pytest.approx(full.step().loss, rel=1e-12)


def test_a_kernel_set_trains_on_blocks_as_the_reference_does(pretrained, adapted, composed, tmp_path):
    folder = pretrained("bfloat16")
    runs = [
        composed(adapted(folder, "q4_0", precision="fp32", **{"run.dir": str(tmp_path / isa)}), isa).trainer
        for isa in ("reference", ISA)
    ]
    losses = []
    for run in runs:
        run.model.num.kernels.activate()
        losses.append([run.step().loss for _ in range(4)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-6)  # fp32 sums in another order
    assert losses[0][-1] < losses[0][0]


def test_logits_and_text_of_a_folder_in_blocks(pretrained, tmp_path, unbound, monkeypatch):
    monkeypatch.setenv("CKTRAIN_ISA", ISA)
    folder = pretrained(tie_word_embeddings=True)
    ids = np.arange(12).reshape(1, 12) % 61
    model = ck.load(folder, quantize="q5_0", tokenizer="none")
    full = ck.load(decoded(folder, "q5_0", tmp_path / "full"), tokenizer="none")
    cython_kernels.load(ISA)
    np.testing.assert_allclose(model.logits(ids), full.logits(ids), atol=1e-5)
    assert model.loss(ids) == pytest.approx(full.loss(ids), rel=1e-5)
    with pytest.raises(ValueError, match=r"held in blocks .quantize q5_0., which have no gradients"):
        model.gradients(ids)
    model.save(tmp_path / "saved")  # the folder's own weights
    again = ck.load(tmp_path / "saved", tokenizer="none")
    assert np.array_equal(again.logits(ids), ck.load(folder, tokenizer="none").logits(ids))


@pytest.mark.parametrize("dtype, held", [("bfloat16", "bf16"), ("float16", "f16")])
def test_numbers_of_16_bits_stay_so(pretrained, tmp_path, unbound, monkeypatch, dtype, held):
    monkeypatch.setenv("CKTRAIN_ISA", ISA)
    folder = pretrained(family="gpt2", dtype="float32" if dtype == "float16" else dtype)
    if dtype == "float16":
        folder = in_float16(folder)
    ids = np.arange(12).reshape(1, 12) % 61
    numerics = Numerics(cython_kernels.load(ISA), "fp32")
    _, params = find_saved_model(folder).quantized("stored").load(numerics, 16)
    assert {param.spec.blocks for param in params.params if len(param.shape) == 2} >= {(held,)}
    got = ck.load(folder, quantize="stored", tokenizer="none").logits(ids)
    np.testing.assert_allclose(got, ck.load(folder, tokenizer="none").logits(ids), atol=1e-5)


def test_a_run_goes_on_and_is_loaded_in_its_blocks(
    pretrained, adapted, composed, tmp_path, unbound, monkeypatch
):
    folder = pretrained()
    run = composed(adapted(folder, "q8_0", **{"checkpoint.every": 2, "run.steps": 4}))
    run.trainer.run()
    model, params = find_saved_model(tmp_path / "run").load(
        Numerics(cython_kernels.load("reference"), "fp64"), 16
    )
    held = [param for param in params.params if param.spec.blocks]
    assert held and isinstance(model.head.output.format, Quantized)
    np.testing.assert_array_equal(held[0].data, run.trainer.params[held[0].name].data)
    going_on = composed(adapted(folder, "q8_0", **{"run.steps": 6})).trainer
    assert going_on.progress.step == 4
    with pytest.raises(
        CheckpointError, match=r"model.quantize is \"q8_0\" in the checkpoint and \"q4_0\" here"
    ):
        composed(adapted(folder, "q4_0", **{"run.steps": 6}))


def test_what_is_planned_is_what_is_held(pretrained, adapted, composed):
    config = adapted(pretrained(), "nf4")
    trainer = composed(config).trainer
    planned = plan_rank(trainer.config, Mesh(1, 1, 1), 0, "fp64").arenas
    count = {True: 0, False: 0}
    for param in trainer.params.frozen:
        if len(param.shape) == 2:
            count["embed" in param.name or "lm_head" in param.name] += param.size
    nbytes = count[True] // 32 * 34 + count[False] // 64 * 36
    assert nbytes <= planned["quantized weights"] <= nbytes + 64 * len(trainer.params.frozen)
    with planning() as arenas:
        model = build_model(trainer.config.model, trainer.model.num, 16, adapter=trainer.config.adapter)
        hold_as_stored(config.model.from_pretrained, trainer.config.model, model)
        ParamStore(model.params(), trainer.model.num)
    assert arenas["quantized weights"] == planned["quantized weights"]


@pytest.mark.parametrize(
    "keys, quantize, match",
    [
        (
            {"intermediate_size": 80},
            "q8_0",
            "down_proj.weight has rows of 80 values, no whole number of blocks of 32",
        ),
        (
            {"hidden_size": 96, "head_dim": 24},
            "nf4",
            "has rows of 96 values, no whole number of blocks of 64",
        ),
        ({}, "stored", "no file has a matrix in fewer bits than are computed with. Give a format"),
    ],
)
def test_what_does_not_fit_is_refused(pretrained, adapted, composed, keys, quantize, match):
    with pytest.raises(ValueError, match=match):
        composed(adapted(pretrained(**keys), quantize))


def test_weights_that_are_trained_are_not_quantized(pretrained, tiny, composed, tmp_path, unbound):
    folder = pretrained()
    values = tiny().model_dump(mode="json")
    with pytest.raises(
        ValueError, match=r"which cannot be trained, and without adapter and model\.freeze all weights are"
    ):
        Config.model_validate({**values, "model": {"from_pretrained": str(folder), "quantize": "q8_0"}})
    with pytest.raises(ValueError, match="quantize q8_0 is for pretrained weights that stay as they are"):
        tiny(**{"model.quantize": "q8_0"})
    run = composed(Config.model_validate({**values, "run": {"dir": str(tmp_path / "full"), "steps": 3}}))
    run.trainer.run()
    with pytest.raises(ValueError, match="holds weights that were trained"):
        ck.load(tmp_path / "full", quantize="q8_0")
    with pytest.raises(ValueError, match=r"quantize='q3' is unknown\. Give one of none, stored, q8_0"):
        ck.load(folder, quantize="q3")


def test_k_quants_are_held_where_256_divides_a_row_and_else_their_fallback_which_is_said(
    pretrained, adapted, composed, caplog
):
    folder = pretrained(hidden_size=256, intermediate_size=64, head_dim=64)
    with caplog.at_level("INFO"):
        trainer = composed(adapted(folder, "q4_k")).trainer
    held = {param.name: param.spec.blocks for param in trainer.params.frozen if param.spec.blocks}
    assert held["model.layers.0.self_attn.o_proj.weight"] == ("q4_k",)
    assert held["model.layers.0.mlp.down_proj.weight"] == ("q5_0",)
    assert held["model.embed_tokens.weight"] == ("q8_0",)
    assert (
        "layers.0.mlp.down_proj.weight is q5_0, its rows of 64 values are no whole number of blocks of 256"
        in caplog.text
    )
    assert np.isfinite(trainer.step().loss)


def test_codes_of_nf4_are_the_nearest_ones():
    """By a search over all 16, for numbers that are no ties; a block of zeros stays zero."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((7, 192)).astype(np.float32)
    values[3, 64:128] = 0
    got = np.empty_like(values)
    kernels = cython_kernels.load("reference")
    kernels.dequantize(got, encode(values, "nf4"), "nf4")
    codes = NORMAL_FLOAT
    groups = values.reshape(-1, 64)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    choices = largest[..., None] * codes
    nearest = np.abs(choices - groups[..., None]).argmin(axis=2)
    want = np.take_along_axis(choices, nearest[..., None], axis=2)[..., 0]
    assert np.array_equal(got, want.reshape(values.shape))


def test_tensor_ranks_hold_their_share_of_the_blocks(pretrained, adapted, tmp_path, monkeypatch):
    """The losses of one process, and each rank its rows, or its columns in whole blocks."""
    monkeypatch.setenv("CKTRAIN_ISA", "reference")
    folder = pretrained()

    def losses(world):
        config = adapted(
            folder,
            "q4_0",
            **{"parallel.tensor": world.size, "run.dir": str(tmp_path / f"on {world.size}")},
        )
        run = compose(config, world, threads=1)
        found = [run.trainer.step().loss for _ in range(3)]
        run.close()
        return found, {
            param.name: param.data.size for param in run.trainer.params.params if param.spec.blocks
        }

    ((alone, whole),) = run_ranks(1, losses)
    for found, held in run_ranks(2, losses):
        assert found == pytest.approx(alone, rel=1e-10)
        for name, nbytes in held.items():
            share = 31 * 68 if "embed" in name or "lm_head" in name else whole[name] // 2
            assert nbytes == share, name

    def refused(world):
        with pytest.raises(
            ValueError, match=r"of the 64 columns of .*o_proj.weight a tensor rank would have 32"
        ):
            losses_of_nf4(world)
        return True

    def losses_of_nf4(world):
        config = adapted(folder, "nf4", **{"parallel.tensor": 2, "run.dir": str(tmp_path / "nf4")})
        compose(config, world, threads=1)

    assert run_ranks(2, refused) == [True, True]
