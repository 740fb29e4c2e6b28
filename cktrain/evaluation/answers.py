"""What a model answers to the questions of rows, at temperature 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cktrain.evaluation.rows import EvaluationRow
from cktrain.generation.sampler import Sampler
from cktrain.loaded_model import Model


@dataclass(frozen=True)
class Answered:
    """A question, what the row has for an answer, and what the model says."""

    place: str
    question: str
    reference: str
    answer: str
    ended: bool
    """Whether the model ended it, rather than the limit of tokens."""


def evenly(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, as far from each other as can be."""
    kept = min(count, most)
    return [index * count // kept for index in range(kept)]


def answer_rows(
    model: Model,
    rows: Sequence[EvaluationRow],
    max_tokens: int,
    stop_ids: frozenset[int],
    done: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Each row's answer; `stop_ids` end one beside the model's own end tokens. `done` hears of each."""
    if not rows:
        return []
    prompts = [(row, *(row.answer or (0, 0))) for row in rows]
    longest = max(start for _, start, _ in prompts)
    # What questions begin with in common, mostly a system prompt, is read once.
    decoder = model.decoder(min(model.max_positions, longest + max_tokens))
    found = []
    for row, start, end in prompts:
        pieces = model.stream(row.ids[:start], max_tokens, Sampler(0), stop_ids=stop_ids, decoder=decoder)
        answer = "".join(pieces)
        question, reference = model.decode(row.ids[:start]), model.decode(row.ids[start:end])
        found.append(Answered(row.place, question, reference, answer, pieces.finish == "end"))
        done()
    return found
