"""The probabilities of tokens beside transformers' logits processors, in the order in which its generate applies them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cktrain.generation.sampler import Sampler

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel  # noqa: E402

pytestmark = pytest.mark.judge


@pytest.fixture(scope="module")
def model():
    """Only for the list of its processors."""
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(2, 300),
    ties=st.booleans(),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 40),
    top_p=st.one_of(st.just(1.0), st.floats(0.05, 0.999)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 0.9)),
    penalty=st.one_of(st.just(1.0), st.floats(0.5, 2.0)),
    written=st.integers(1, 30),
)
def test_probabilities_are_those_of_transformers(
    model, seed, size, ties, temperature, top_k, top_p, min_p, penalty, written
):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=size) * 4
    if ties:
        logits = np.round(
            logits
        )  # equal ones are kept or left out together, except by top-p, which cuts among them
        top_p = 1.0
    text = rng.integers(0, size, written)
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p or None,
        repetition_penalty=penalty,
    )
    processors = model._get_logits_processor(config, input_ids_seq_length=written, device="cpu")
    ids = torch.tensor(text)[None]
    wanted = torch.softmax(processors(ids, torch.tensor(logits)[None]), -1)[0].numpy()
    found = Sampler(temperature, top_k, top_p, min_p, penalty).probabilities(logits, text)
    assert found.sum() == pytest.approx(1)
    # fp64 on both sides: sums of up to 300 terms in another order.
    assert np.abs(found - wanted).max() <= 1e-12
