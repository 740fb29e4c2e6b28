"""Texts side by side against each of them alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.generation.batch import Batch, Place, side_by_side
from cktrain.generation.decoder import Decoder, generate
from cktrain.generation.sampler import Sampler
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 60,
    "intermediate_size": 36,
    "initializer_range": 0.3,
}
LENGTHS = [5, 1, 9, 2, 2, 20, 3]
STOPS = frozenset([7, 11, 13])


def make_model(**options: Any) -> Transformer:
    kernels = cython_kernels.load()
    numerics = Numerics(kernels, "fp64" if kernels.isa == "reference" else "fp32")
    model = build_model(parse_model({**SIZES, **options}), numerics, 60)
    ParamStore(model.params(), numerics, train=False).initialize(seed=4)
    return model


@pytest.mark.parametrize("places", [1, 3, 7])
@pytest.mark.parametrize(
    "options",
    [{"num_key_value_heads": 2}, {"sliding_window": 4}, {"family": "gpt2"}],
    ids=["llama", "window", "gpt2"],
)
def test_each_text_is_what_it_is_alone(options: dict[str, Any], places: int) -> None:
    model = make_model(**options)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 50, length).tolist() for length in LENGTHS]

    def begin(number: int, reader: Place | None) -> Iterator[int]:
        sampler = Sampler(1.2, seed=number)  # texts of several lengths, some of which end at a stop
        return generate(model, prompts[number], 12, sampler.choose, 60, STOPS, reader)

    alone = [list(begin(number, None)) for number in range(len(prompts))]
    assert len({len(text) for text in alone}) > 1
    batch = Batch(Decoder(model, 40, places))
    found = list(side_by_side(batch, begin, len(prompts)))
    assert dict(found) == dict(enumerate(alone))
    assert not batch.decoder.cache.lengths.any()
    assert list(side_by_side(batch, begin, 0)) == []


def test_a_text_that_nobody_reads_on_leaves_its_place() -> None:
    model = make_model()

    def begin(number: int, place: Place) -> Iterator[int]:
        tokens = generate(model, [1, 2, number], 20, Sampler(temperature=0).choose, 60, decoder=place)
        return (token for token, _ in zip(tokens, range(3 + number), strict=False))  # as a stop string does

    found = dict(side_by_side(Batch(Decoder(model, 30, 2)), begin, 4))
    for number in range(4):
        alone = list(generate(model, [1, 2, number], 20, Sampler(temperature=0).choose, 60))
        assert found[number] == alone[: 3 + number]


@pytest.mark.parametrize("places", [2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"sliding_window": 4}], ids=["llama", "window"])
def test_a_text_that_has_filled_its_place_does_not_stop_those_that_go_on(
    options: dict[str, Any], places: int
) -> None:
    """Each text fills its place, and they do so in different steps."""
    model = make_model(**options)

    def begin(number: int, place: Place | None) -> Iterator[int]:
        prompt = [1, 2, number, *[3] * (5 * number % 8)]
        choose = Sampler(temperature=0).choose
        return generate(model, prompt, 13 - len(prompt), choose, 60, decoder=place)

    found = dict(side_by_side(Batch(Decoder(model, 12, places)), begin, 15))
    assert found == {number: list(begin(number, None)) for number in range(15)}
