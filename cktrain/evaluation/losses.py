"""Losses of rows, each for itself, and of a text: bits per byte.

Rows of similar length are computed together, filled up with ids that count nothing: what stands after a token does not
change what is computed of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cktrain.data.loader import IGNORE_INDEX
from cktrain.evaluation.rows import EvaluationRow
from cktrain.loaded_model import Model

TOKENS_AT_ONCE = 2048
_STEP = 32  # lengths are filled up to a multiple of it
WINDOW = 1024
"""Tokens that a token of a text sees before it, at most."""


def row_losses(
    model: Model, rows: Sequence[EvaluationRow]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(sum of the losses in nats, number of learned tokens) of each row."""
    sums = np.zeros(len(rows))
    counts = np.array([sum(row.learned) for row in rows], np.int64)
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        length = min(-(-len(row.ids) // _STEP) * _STEP, model.max_positions)
        by_length.setdefault(length, []).append(index)
    for length, indices in sorted(by_length.items()):
        size = max(1, TOKENS_AT_ONCE // length)
        for begin in range(0, len(indices), size):
            some = indices[begin : begin + size]
            ids = np.zeros((len(some), length), np.int64)
            labels = np.full((len(some), length), IGNORE_INDEX, np.int64)
            for place, index in enumerate(some):
                row = rows[index]
                ids[place, : len(row.ids)] = row.ids
                labels[place, : len(row.ids)] = np.where(row.learned, row.ids, IGNORE_INDEX)
            sums[some] = -model.log_probabilities(ids, labels).sum(axis=1, dtype=np.float64)
    return sums, counts


def bits_per_byte(model: Model, text: str) -> tuple[float, int]:
    """(bits that the model needs for a byte of the text, bytes): each token after up to `WINDOW` tokens before it.

    The first token of a model that puts nothing before a text is not predicted, and its bytes do not count. Raises
    ValueError for a text of fewer than two tokens.
    """
    ids = model.encode(text)
    if len(ids) < 2:
        raise ValueError("[evaluate] the general text has fewer than two tokens. Give a longer one.")
    size = len(text.encode("utf-8")) - len(model.decode(ids[:1]).encode("utf-8"))
    window, total = min(WINDOW, model.max_positions - 1), 0.0
    for begin in range(0, len(ids) - 1, window):
        piece = ids[begin : begin + window + 1]
        total -= float(model.log_probabilities(piece).sum(dtype=np.float64))
    return total / math.log(2) / size, size
