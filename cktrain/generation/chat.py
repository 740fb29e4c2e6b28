"""A conversation with a model: history, what of it fits, and a cache that goes on where the rendered text is unchanged.

Each question is rendered anew with all messages before it, since a template may write older turns otherwise. What of the ids
the model has read already, at their beginning, is not read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cktrain.data.chat.chat_prompt import ChatPrompt
from cktrain.generation.sampler import Sampler
from cktrain.generation.text_generation import Finish, TextGeneration
from cktrain.loaded_model import Model

DEFAULT_CONTEXT = 8192
ROOM_SHARE = 4
"""At least the answer's tokens, or this part of the context, are kept free for an answer."""


class ChatSession:
    """One model and one conversation."""

    def __init__(
        self,
        model: Model,
        prompt: ChatPrompt,
        *,
        system: str | None = None,
        context: int | None = None,
        max_tokens: int = 1024,
    ) -> None:
        """`context`: tokens of conversation and answer at most; None: 8,192, or the model's positions if fewer.

        Raises ValueError where the context is more than the positions, and for a system prompt that the template refuses.
        """
        if context is not None and not 2 <= context <= model.max_positions:
            raise ValueError(
                f"[chat] a context of {context:,} tokens: give 2 to {model.max_positions:,}, the model's positions."
            )
        self.context = context or min(model.max_positions, DEFAULT_CONTEXT)
        self.max_tokens = max_tokens
        self._model = model
        self._prompt = prompt
        self._decoder = model.decoder(self.context)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.reset()
        if system is not None:
            self._prompt.ids([*self.messages, {"role": "user", "content": "?"}])

    def reset(self) -> None:
        """Begin again, with the system prompt alone."""
        self.messages: list[dict[str, Any]] = list(self._system)
        """The whole conversation, also what no longer fits."""
        self.left_out = 0
        """Messages after the system prompt that the model is not given any more."""

    def ask(self, text: str, sampler: Sampler, stop: Sequence[str] = ()) -> Answer:
        """The answer to a message. ValueError, and the conversation as it was, for one that does not fit, or is refused."""
        message = {"role": "user", "content": text}
        ids, left_out = self._fitting([*self.messages, message])
        reused = self._decoder.known(ids)
        pieces = self._model.stream(
            ids,
            min(self.max_tokens, self.context - len(ids) + 1),
            sampler,
            stop,
            stop_ids=self._prompt.stop_ids,
            decoder=self._decoder,
        )
        newly = left_out - self.left_out
        self.left_out = left_out
        return Answer(self, message, pieces, len(ids), reused, newly)

    def _fitting(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], int]:
        """The ids of as many of the last turns as leave room for an answer, and how many messages are left out."""
        first = len(self._system)
        room = min(self.max_tokens, self.context // ROOM_SHARE)
        for left_out in range(self.left_out, len(messages) - first, 2):
            ids = self._prompt.ids([*messages[:first], *messages[first + left_out :]])
            if len(ids) + room <= self.context:
                return ids, left_out
        raise ValueError(
            f"[chat] the message has {len(ids):,} tokens with what its template puts around it, and of a context of "
            f"{self.context:,} tokens {room:,} are kept for the answer. Shorten it, or give a longer --context."
        )


class Answer:
    """Iterates over an answer's pieces of text; at its end, or by `join` where it is stopped, it joins the conversation."""

    def __init__(
        self,
        session: ChatSession,
        message: dict[str, Any],
        pieces: TextGeneration,
        prompt_tokens: int,
        reused: int,
        left_out: int,
    ) -> None:
        self._session = session
        self._message = message
        self._pieces = pieces
        self._joined = False
        self.text = ""
        """Until now."""
        self.prompt_tokens = prompt_tokens
        """Of the conversation until here."""
        self.reused = reused
        """Of these, which the model had read already."""
        self.left_out = left_out
        """Messages that no longer fit from this question on."""

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.text += piece
            yield piece
        self.join()

    def join(self) -> bool:
        """Add question and answer to the conversation, once; False, and nothing of it, where there is no answer yet."""
        if not self._joined and (self.text or self.finish is not None):
            self._session.messages += [self._message, {"role": "assistant", "content": self.text}]
            self._joined = True
        return self._joined

    @property
    def count(self) -> int:
        """Tokens until now."""
        return self._pieces.count

    @property
    def finish(self) -> Finish | None:
        """Why it ended; None before its end."""
        return self._pieces.finish
