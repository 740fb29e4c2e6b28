"""N-gram baselines: interpolated Kneser-Ney over the same tokens that the model sees.

Kneser & Ney 1995 in the interpolated form of Chen & Goodman 1998 (section 4.1.6): with c_k the count of a
k-gram,

    p_k(w | h) = max(c_k(hw) - D_k, 0) / c_k(h.) + D_k N_k(h) / c_k(h.) p_{k-1}(w | h')

where c_k(h.) sums c_k(hw) over w, N_k(h) is the number of w with c_k(hw) > 0 and h' is h without its first
token. The counts of the highest order are occurrences; those of a lower order k are the number of different
tokens that precede the k-gram. D_k = n1 / (n1 + 2 n2), with n1 and n2 the number of k-grams of count 1 and 2.
p_0 is uniform over the vocabulary. A context that was never seen leaves p_k = p_{k-1}.

Vectorised over the whole stream: each different k-gram of training and validation gets a dense number, from
the number of its first k - 1 tokens and its last token, so that the keys fit 64 bits for any order and every
table is an array indexed by that number.

Shapes: M tokens of training and validation together, G_k different k-grams.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def bits_per_byte(
    order: int,
    train_tokens: npt.NDArray[Any],
    validation_tokens: npt.NDArray[Any],
    validation_bytes: int,
    vocab_size: int,
) -> float:
    """Bits per byte of text that the model of `order` needs for the validation tokens but the first.

    Tokens are integers (any dtype, 1-D) in [0, vocab_size); ValueError when one is not, or they are too few.
    """
    probabilities = token_probabilities(order, train_tokens, validation_tokens, vocab_size)
    return float(-np.log2(probabilities).sum() / validation_bytes)


def token_probabilities(
    order: int, train_tokens: npt.NDArray[Any], validation_tokens: npt.NDArray[Any], vocab_size: int
) -> npt.NDArray[np.float64]:
    """p(token | the order - 1 tokens before it) of every validation token but the first: fp64 (len - 1).

    At the start of the validation tokens, where fewer tokens precede, the context is as long as it can be.
    """
    assert order >= 1, order
    if len(train_tokens) < order or len(validation_tokens) < 2:
        raise ValueError(
            f"[data.ngram] {len(train_tokens):,} training and {len(validation_tokens):,} validation tokens are too few "
            f"for a {order}-gram model. Prepare more text."
        )
    boundary = len(train_tokens)
    tokens = np.concatenate([train_tokens, validation_tokens]).astype(np.int64)
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"[data.ngram] token id {max(tokens.max(), -tokens.min()):,} is beyond the vocabulary of {vocab_size:,}: the "
            "shards are damaged. Prepare the data again."
        )

    # grams[k] (M) is the number of the k-gram that ends at each place; places before k - 1 hold no k-gram and
    # are never read. Grams that cross from training to validation are numbered, but not counted or looked up.
    grams: list[npt.NDArray[np.int32]] = [np.zeros(len(tokens), np.int32), tokens.astype(np.int32)]
    for _ in range(2, order + 1):
        key = np.roll(grams[-1], 1) * np.int64(vocab_size) + tokens
        grams.append(np.unique(key, return_inverse=True)[1].astype(np.int32))

    # From the highest order down, since a lower order's counts are made of the higher one's different grams.
    counts: list[Ints] = [np.zeros(0, np.int64)] * (order + 1)
    occurrences = np.bincount(grams[order][order - 1 : boundary], minlength=_size(grams[order]))
    counts[order] = occurrences
    for k in range(order - 1, 0, -1):
        suffix = np.zeros(len(counts[k + 1]), np.int32)
        suffix[grams[k + 1][k:]] = grams[k][k:]
        counts[k] = np.bincount(suffix[counts[k + 1] > 0], minlength=_size(grams[k]))

    places = np.arange(boundary + 1, len(tokens))
    probabilities = np.full(len(places), 1.0 / vocab_size)
    for k in range(1, order + 1):
        here = places[k - 2 :] if k > 2 else places  # those with k - 1 validation tokens before them
        lower = probabilities[len(places) - len(here) :]
        lower[:] = _interpolate(grams[k - 1], grams[k], counts[k], k, here, lower)
    return probabilities


def _interpolate(
    contexts: npt.NDArray[np.int32],
    grams: npt.NDArray[np.int32],
    count: Ints,
    k: int,
    places: Ints,
    lower: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """p_k at `places` from p_{k-1} there; `contexts` and `grams` (M) number (k-1)-grams and k-grams."""
    ones, twos = np.count_nonzero(count == 1), np.count_nonzero(count == 2)
    # Without grams of count 1 the formula gives no discount, and the unseen would be impossible.
    discount = ones / (ones + 2 * twos) if ones else 0.5

    context_of = np.zeros(len(count), np.int32)
    if k > 1:
        context_of[grams[k - 1 :]] = contexts[k - 2 : -1]
    total = np.bincount(context_of, weights=count, minlength=_size(contexts))
    different = np.bincount(context_of, weights=count > 0, minlength=_size(contexts))

    context = contexts[places - 1]
    seen = total[context] > 0
    divisor = np.where(seen, total[context], 1.0)
    discounted = np.maximum(count[grams[places]] - discount, 0.0)
    p: npt.NDArray[np.float64] = (discounted + discount * different[context] * lower) / divisor
    return np.where(seen, p, lower)


def _size(grams: npt.NDArray[np.int32]) -> int:
    return int(grams.max()) + 1
