"""The vectorised Kneser-Ney model against one made of dictionaries, straight from the formula."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cktrain.data.ngram import bits_per_byte, token_probabilities


class Dictionaries:
    """Interpolated Kneser-Ney as Chen & Goodman write it, one gram at a time."""

    def __init__(self, order, train, vocab_size):
        self.vocab_size = vocab_size
        train = [int(token) for token in train]
        self.counts = {order: Counter(tuple(train[i : i + order]) for i in range(len(train) - order + 1))}
        for k in range(order - 1, 0, -1):
            self.counts[k] = Counter(gram[1:] for gram in self.counts[k + 1])
        self.discounts = {}
        for k, counts in self.counts.items():
            ones = sum(count == 1 for count in counts.values())
            twos = sum(count == 2 for count in counts.values())
            self.discounts[k] = ones / (ones + 2 * twos) if ones else 0.5

    def probability(self, context, token):
        k = len(context) + 1
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        followers = [count for gram, count in self.counts[k].items() if gram[:-1] == context]
        if not followers:
            return lower
        discounted = max(self.counts[k][(*context, token)] - self.discounts[k], 0)
        return (discounted + self.discounts[k] * len(followers) * lower) / sum(followers)


tokens = st.lists(st.integers(0, 4), min_size=6, max_size=60)


@given(st.integers(1, 5), tokens, st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_probabilities_are_those_of_the_formula(order, train, validation):
    model = Dictionaries(order, train, 6)
    expected = [
        model.probability(tuple(validation[max(0, i - order + 1) : i]), validation[i])
        for i in range(1, len(validation))
    ]
    found = token_probabilities(order, np.array(train), np.array(validation), 6)
    # The same sums in fp64, in another order: a few ulp per order.
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@given(st.integers(1, 5), tokens, st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_probabilities_sum_to_one(order, train, context):
    last = [token_probabilities(order, np.array(train), np.array([*context, w]), 6)[-1] for w in range(6)]
    assert min(last) > 0
    assert sum(last) == pytest.approx(1, abs=1e-12)


def test_bits_per_byte_is_the_sum_over_all_tokens_but_the_first():
    train = np.array([0, 1, 0, 1, 0, 1, 2, 0, 1], dtype=np.uint16)
    validation = np.array([0, 1, 2, 0], dtype=np.int32)
    probabilities = token_probabilities(2, train, validation, 3)
    assert len(probabilities) == 3
    assert bits_per_byte(2, train, validation, 7, 3) == pytest.approx(
        -np.log2(probabilities).sum() / 7, rel=1e-15
    )


def test_noise_costs_its_entropy_and_structure_less():
    random = np.random.default_rng(0)
    noise = random.integers(0, 16, 60_000)
    for order in (1, 2):  # 4 bits per token is what uniform noise costs any model
        assert bits_per_byte(order, noise[:50_000], noise[50_000:], 9_999, 16) == pytest.approx(4, abs=0.02)
    # Each token follows from the two before it: a trigram knows it, a bigram cannot.
    lagged = [1, 2]
    for step in random.integers(0, 2, 20_000):
        lagged.append((lagged[-2] + step) % 16)
    lagged = np.array(lagged)
    bits = [bits_per_byte(order, lagged[:18_000], lagged[18_000:], 2_001, 16) for order in (2, 3, 5)]
    assert bits[0] > 2.5 and bits[1] < 1.2 and bits[2] < 1.4


def test_a_vocabulary_whose_5_grams_do_not_fit_64_bits():
    random = np.random.default_rng(1)
    values = random.choice(2**20, 10, replace=False)  # 100 bits for five
    train, validation = values[random.integers(0, 10, 800)], values[random.integers(0, 10, 40)]
    model = Dictionaries(5, train, 2**20)
    validation_list = validation.tolist()
    expected = [
        model.probability(tuple(validation_list[max(0, i - 4) : i]), validation_list[i]) for i in range(1, 40)
    ]
    np.testing.assert_allclose(token_probabilities(5, train, validation, 2**20), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ([1, 2, 3, 4], [1, 2], "4 training and 2 validation tokens are too few for a 5-gram model"),
        ([1] * 9, [1], "9 training and 1 validation tokens are too few"),
        ([1] * 9, [1, 10], "token id 10 is beyond the vocabulary of 10"),
    ],
)
def test_tokens_that_no_model_can_be_made_of(train, validation, message):
    with pytest.raises(ValueError, match=message):
        token_probabilities(5, np.array(train), np.array(validation), 10)
