"""A model in EleutherAI's lm-evaluation-harness: its tasks, built in or from a folder, computed by this package.

The harness asks for log-probabilities of continuations, of whole texts, and for texts that go on to a stop string; its
`TemplateLM` splits context and continuation into tokens. ids (T,), logits (T, V).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
from rich.console import Console
from rich.progress import track

from cktrain.generation.sampler import Sampler
from cktrain.loaded_model import Model

Scored = tuple[float, bool]
"""Log-probability of a continuation in nats, and whether it is what temperature 0 would write."""

MAX_TOKENS = 256
"""Of a text, where a task does not say."""
_STEP = 32  # lengths are filled up to a multiple of it: what stands after a token does not change what is computed of it


class HarnessModel(TemplateLM):
    """A loaded model as the harness sees it; rows are computed one after another."""

    def __init__(self, model: Model) -> None:
        """`model` has a tokenizer; special tokens written out in prompts are what it was opened with."""
        super().__init__()
        self._model = model
        self._ends = sorted(model.codec.stop_ids)

    @property
    def max_length(self) -> int:
        """Tokens that a row may have."""
        return self._model.max_positions

    @property
    def eot_token_id(self) -> int:
        """An id that ends a text."""
        return self._ends[0] if self._ends else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text whose first token is predicted, too."""
        return self._model.codec.encode("")[-1]

    @property
    def tokenizer_name(self) -> str:
        """Of the harness's caches."""
        return str(self._model.path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """A text's ids, with what begins a document before them unless that is not wanted."""
        begin = self._model.codec.begin
        if not string:
            return [] if add_special_tokens is False else list(begin)
        ids = self._model.encode(string)
        return ids[len(begin) :] if add_special_tokens is False else ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text, for the record of results."""
        return self._model.chat_prompt().template.text if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template writes it."""
        return self._model.chat_prompt().template.render(chat_history, prompt=add_generation_prompt).text

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of whole texts, by windows of which each sees one token before it."""
        found = []
        for request in _shown(requests, "texts", disable_tqdm):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            pairs = map(make_disjoint_window, windows)
            found.append(math.fsum(self._score(context, learned)[0] for context, learned in pairs))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to one of the task's stop strings, which is not part of it."""
        return [self._text(*request.args) for request in _shown(requests, "answers", disable_tqdm)]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[Scored]:
        asked = _shown(requests, "continuations", disable_tqdm)
        return [self._score(context, continuation) for _, context, continuation in asked]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """Of a continuation that is not longer than the model; what of the context does not fit is left out."""
        if not continuation:
            return 0.0, True
        ids = [*context, *continuation][-(self.max_length + 1) :]
        first = (
            len(ids) - len(continuation) - 1
        )  # the row of logits that predicts the continuation's first token
        if first < 0:
            raise ValueError(
                f"[evaluate] a continuation has {len(continuation):,} tokens, and the model {self.max_length:,} positions. "
                "Leave its task out."
            )
        logits = self._logits(ids[:-1])[first:]
        chosen = np.arange(len(continuation)), np.asarray(continuation)
        highest = logits.max(axis=-1)
        total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=-1))
        greedy = bool(np.all(logits.argmax(axis=-1) == continuation))
        return float((logits[chosen] - total).sum()), greedy

    def _logits(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        length = min(-(-len(ids) // _STEP) * _STEP, self.max_length)
        row = np.zeros(length, np.int64)
        row[: len(ids)] = ids
        return self._model.logits(row)[: len(ids)].astype(np.float64)

    def _text(self, context: str, settings: dict[str, Any]) -> str:
        most = min(int(settings.get("max_gen_toks", MAX_TOKENS)), self.max_length - 1)
        until = settings.get("until") or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        heat = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        sampler = Sampler(heat, int(settings.get("top_k") or 0), float(settings.get("top_p") or 1.0))
        ids = self.tok_encode(context)[-(self.max_length - most) :]
        return "".join(self._model.stream(ids, most, sampler, stop))


def _shown(requests: Sequence[Any], what: str, hidden: bool) -> Iterable[Any]:
    """The requests, with a bar on standard error."""
    return track(requests, what, console=Console(stderr=True), disable=hidden)


def run_tasks(
    model: Model,
    tasks: Sequence[str],
    *,
    folder: str | Path | None = None,
    shots: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> dict[str, Any]:
    """The harness's results of its tasks, and of those in YAML files below `folder`.

    Args:
        model: opened with special_tokens="parse" where prompts have them, as of a chat template.
        tasks: names of tasks, groups or tags.
        folder: of tasks of one's own.
        shots: examples before each question; None: as a task says.
        limit: documents of each task; None: all.
        chat: prompts are written by the chat template.

    Raises:
        ValueError: no task has such a name; its data cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(
        include_path=None if folder is None else str(folder), include_defaults=folder is None
    )
    if folder is not None and any(not manager.match_tasks([name]) for name in tasks):
        manager = TaskManager(include_path=str(folder))  # its own are many thousand files
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise ValueError(
            f"[evaluate] --tasks: lm-evaluation-harness has no task {unknown[0]!r}"
            f"{'' if folder is None else f', nor has {folder}'}. `lm-eval ls tasks` lists its own."
        )
    found = simple_evaluate(
        HarnessModel(model),
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        apply_chat_template=chat,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    assert found is not None, "of rank 0"
    return dict(found)


def table_of(found: dict[str, Any]) -> str:
    """The harness's own table of its results."""
    return str(make_table(found))
