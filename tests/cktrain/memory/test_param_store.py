"""Flat parameters: reverse layer order, alignment, tied weights once, segments of equal decay, seeded weights."""

from __future__ import annotations

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.memory import arena
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics


def build(config, precision: str = "fp32") -> ParamStore:
    numerics = Numerics(cython_kernels.load(), precision)
    model = build_model(config.model, numerics, 16)
    return ParamStore(model.params(), numerics)


def test_the_backward_fills_the_buffer_from_its_start(tiny):
    names = [param.name for param in build(tiny()).params]
    assert names[0] == "lm_head.weight" and names[1] == "model.norm.weight"
    assert names[-1] == "model.embed_tokens.weight"
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers, reverse=True)


def test_parameters_are_views_that_do_not_overlap_and_start_on_cache_lines(tiny):
    params = build(tiny())
    end = 0
    for param in params.params:
        assert param.start >= end and param.start * 4 % 64 == 0
        end = param.start + param.size
        param.data[...] = 1
        assert params.data[param.start : end].all()
        assert param.value is param.data
    assert params.data.sum() == params.count, "the gaps between parameters stay zero"


def test_a_tied_weight_stands_once(tiny):
    tied, untied = build(tiny(**{"model.tie_word_embeddings": True})), build(tiny())
    assert untied.count - tied.count == 61 * 24
    assert [p.name for p in tied.params].count("model.embed_tokens.weight") == 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_segments_cover_every_element_once_with_its_decay(tiny, family):
    params = build(tiny(**{"model.family": family}))
    for start, stop in [(0, params.size), (100, 1000), (0, 64), (params.size - 10, params.size), (70, 70)]:
        segments = params.segments(start, stop)
        assert sum(s.stop - s.start for s in segments) == stop - start
        decay = np.zeros(params.size, bool)
        for segment in segments:
            decay[segment.start : segment.stop] = segment.decay
        for param in params.params:
            low, high = max(start, param.start), min(stop, param.start + param.size)
            if low < high:
                assert (decay[low:high] == (len(param.shape) == 2)).all(), param.name


def test_fresh_weights_depend_on_the_seed_and_the_name_alone(tiny):
    one, again, other = build(tiny()), build(tiny(**{"model.num_hidden_layers": 3})), build(tiny())
    one.initialize(1)
    again.initialize(1)
    other.initialize(2)
    name = "model.layers.1.mlp.gate_up_proj.weight"
    np.testing.assert_array_equal(one[name].data, again[name].data)
    assert (one[name].data != other[name].data).mean() > 0.99
    assert one[name].data.std() == pytest.approx(0.02, rel=0.1)
    assert (one["model.norm.weight"].data == 1).all()


def test_bf16_copies_follow_the_master_weights(tiny):
    params = build(tiny(), "bf16")
    params.initialize(1)
    for param in params.params:
        if len(param.shape) == 2:
            assert param.value.dtype.name == "bfloat16"
            np.testing.assert_array_equal(param.value, param.data.astype(param.value.dtype))
        else:
            assert param.value is param.data


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parameters_are_held_once_without_gradient_or_master(tiny, precision):
    numerics = Numerics(cython_kernels.load(), precision)
    params = build_model(tiny().model, numerics, 16).params()
    frozen = [param for param in params if ".layers.0." in param.name]
    for param in frozen:
        param.tag(trainable=False)
    before = set(arena._ACCOUNTS)
    store = ParamStore(params, numerics)
    taken = {name: nbytes for number, (name, nbytes) in arena._ACCOUNTS.items() if number not in before}
    elements = sum(-(-p.size // 16) * 16 for p in params if p.trainable)
    assert store.size == elements
    assert taken["parameters"] == taken["gradients"] == 4 * elements
    itemsize = {"fp32": 4, "bf16": 2}[precision]
    held = sum(-(-p.size * (itemsize if len(p.shape) == 2 else 4) // 64) * 64 for p in frozen)
    assert taken["frozen weights"] == held
    for param in frozen:
        assert param.value is param.data and not hasattr(param, "grad") and param.start == -1
    assert [p for p in store.params if p.trainable] == store.trainable


def test_a_frozen_parameter_is_drawn_as_a_trained_one(tiny):
    numerics = Numerics(cython_kernels.load(), "fp32")
    trained = ParamStore(build_model(tiny().model, numerics, 16).params(), numerics)
    frozen = ParamStore(build_model(tiny().model, numerics, 16).params(), numerics, train=False)
    for store in (trained, frozen):
        store.initialize(5)
    assert frozen.size == 0 and frozen.count == trained.count
    for param in trained.params:
        np.testing.assert_array_equal(frozen[param.name].value, param.value)
