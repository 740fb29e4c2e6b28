"""Replayed steps against the same steps unrecorded, bit for bit, and steps that cannot be replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.generation.decoder import Decoder
from cktrain.hf.folder import save_folder
from cktrain.loaded_model import open_model
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.models.transformer import Transformer
from cktrain.nn.mlp import SwiGLU
from cktrain.nn.numerics import Numerics

kernels = cython_kernels.load()
pytestmark = pytest.mark.skipif(kernels.isa == "reference", reason="no compiled kernels")

SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 90,
    "max_position_embeddings": 400,
    "intermediate_size": 70,
    "initializer_range": 0.2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "window": {"sliding_window": 5, "num_key_value_heads": 3},
    "window of some layers": {
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {"qk_norm": True, "num_key_value_heads": 1},
    "olmo2": {"family": "olmo2", "num_key_value_heads": 2},
    "gpt2": {"family": "gpt2"},
}


def make_model(name: str, precision: str = "fp32") -> Transformer:
    numerics = Numerics(cython_kernels.load(), precision)
    model = build_model(parse_model({**SIZES, **MODELS[name]}), numerics, 400)
    ParamStore(model.params(), numerics, train=False).initialize(seed=11)
    return model


def texts(count: int) -> np.ndarray:
    """(count, sequences): tokens that are fed one after another."""
    return np.random.default_rng(3).integers(0, SIZES["vocab_size"], (count, 3), np.int32)


def logits(
    model: Transformer, batch: int, tokens: np.ndarray, **options: Any
) -> tuple[list[np.ndarray], Decoder]:
    """The logits of each step of sequences whose prompts differ in length."""
    decoder = Decoder(model, 400, batch, **options)
    for sequence in range(batch):
        decoder.read(sequence, [5, 7, 11, 13, 2][: 5 - sequence])
    return [decoder.step(step[:batch]) for step in tokens], decoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_are_the_unrecorded_ones(
    name: str, batch: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 tokens: more than a window's ring holds."""
    model, tokens = make_model(name, precision), texts(300)
    replayed, decoder = logits(model, batch, tokens)
    step = decoder.recorded_step
    assert step is not None and step.is_replayed and step.problem == ""
    monkeypatch.setattr(model.num.kernels, "recording", None)
    wanted, unrecorded = logits(model, batch, tokens)
    assert unrecorded.recorded_step is not None and not unrecorded.recorded_step.is_replayed
    assert all(a.tobytes() == b.tobytes() for a, b in zip(replayed, wanted, strict=True))
    assert len({a.tobytes() for a in replayed}) == len(replayed)


def test_a_replay_has_the_same_bits_with_any_number_of_threads() -> None:
    model, tokens = make_model("llama"), texts(40)
    try:
        found = []
        for threads in (1, 2, 3):
            model.num.kernels.set_num_threads(threads)
            found.append(logits(model, 2, tokens)[0])
    finally:
        model.num.kernels.set_num_threads(1)
    for other in found[1:]:
        assert all(a.tobytes() == b.tobytes() for a, b in zip(found[0], other, strict=True))


def test_keys_and_values_in_bf16_round_once() -> None:
    """A key of bf16 is off by 2^-9 of itself, and so are scores of size 1; the logits of three layers by some per cent."""
    model, tokens = make_model("llama"), texts(20)
    wanted, _ = logits(model, 1, tokens)
    found, decoder = logits(model, 1, tokens, kv_dtype=np.dtype(ml_dtypes.bfloat16))
    assert decoder.cache.memory[0].dtype == ml_dtypes.bfloat16
    difference = np.abs(np.array(found) - np.array(wanted)).max() / np.abs(wanted).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize("activations", ["exact", "q8"])
def test_steps_of_weights_in_blocks_are_replayed(
    activations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numerics = Numerics(cython_kernels.load(), "fp32")
    sizes = {**SIZES, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}
    config = parse_model(sizes)
    params = ParamStore(build_model(config, numerics, 400).params(), numerics)
    params.initialize(seed=11)
    save_folder(tmp_path / "model", config, params)
    opened = open_model(tmp_path / "model", tokenizer="none", quantize="q8_0", activations=activations)
    model, tokens = opened.decoder(1).model, texts(20)
    replayed, decoder = logits(model, 2, tokens)
    assert decoder.recorded_step is not None and decoder.recorded_step.is_replayed
    monkeypatch.setattr(model.num.kernels, "recording", None)
    wanted, _ = logits(model, 2, tokens)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(replayed, wanted, strict=True))


@pytest.mark.parametrize(("positions", "capacity"), [(8, 20), (20, 8)])
def test_a_replay_ends_with_the_tables_and_the_cache(positions: int, capacity: int) -> None:
    numerics = Numerics(cython_kernels.load(), "fp32")
    model = build_model(parse_model({**SIZES, **MODELS["llama"]}), numerics, positions)
    ParamStore(model.params(), numerics, train=False).initialize(seed=11)
    decoder = Decoder(model, capacity)
    for _ in range(8):
        decoder.feed([3])
    assert decoder.recorded_step is not None and decoder.recorded_step.is_replayed
    with pytest.raises(ValueError, match=r"is 8, (outside \[0, 8\)|and keys has 8 positions)"):
        decoder.feed([3])


def test_a_text_that_was_read_anew_is_known() -> None:
    model = make_model("llama")
    decoder = Decoder(model, 400)
    decoder.follow([1, 2, 3, 4, 5])
    decoder.read(0, [9, 8, 7, 6])
    decoder.feed([5])
    assert (decoder.known([1, 2, 3, 4, 5]), decoder.known([9, 8, 7, 6, 5, 4])) == (0, 5)
    # The same sums in another order: a step beside a chunk.
    found, wanted = decoder.follow([9, 8, 7, 6, 5, 4]), Decoder(model, 400).follow([9, 8, 7, 6, 5, 4])
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


class Doubling(SwiGLU):
    """Numpy changes what a kernel wrote before the next one reads it."""

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        super()._activate(hidden, expanded)
        hidden *= 2


class Copying(SwiGLU):
    """A kernel reads what numpy made."""

    def _activate(self, hidden: np.ndarray, expanded: np.ndarray) -> None:
        super()._activate(hidden, expanded.copy())


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Doubling, "replayed, it gives other logits"),
        (Copying, "swiglu_forward reads gate_up, which no kernel wrote"),
    ],
)
def test_a_step_with_numpy_in_it_is_never_replayed(
    kind: type[SwiGLU], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = make_model("llama"), texts(6)
    mlp = next(module for module in model.modules() if isinstance(module, SwiGLU))
    monkeypatch.setattr(mlp, "__class__", kind)
    found, decoder = logits(model, 2, tokens)
    step = decoder.recorded_step
    assert step is not None and not step.is_replayed and step.problem == problem
    monkeypatch.setattr(model.num.kernels, "recording", None)
    wanted, _ = logits(model, 2, tokens)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))
