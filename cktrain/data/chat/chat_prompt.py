"""A conversation as the ids that a model is given before it answers: its template rendered, and encoded."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from cktrain.data.chat.named_templates import template_of
from cktrain.data.chat.template import ChatTemplate, stock_templates
from cktrain.data.chat.template_tokens import TemplateTokens
from cktrain.data.documents import BadRow
from cktrain.side_files import SideFiles, SpecialTokens


class ChatPrompt:
    """The chat template and the tokenizer of a model."""

    def __init__(
        self,
        side: SideFiles,
        chat_template: str | None = None,
        special_tokens: SpecialTokens = "text",
        date: datetime.date | None = None,
    ) -> None:
        """`chat_template`: a name or a file instead of the model's own; `date`: what one is told that asks, None: today.

        Raises ValueError where there is no template.
        """
        template = template_of(side, chat_template, date or datetime.date.today())
        if template is None:
            others = "".join(f"{name} (its own), " for name in sorted(stock_templates(side)))
            raise ValueError(
                f"[chat] {side.found_in} has no{' default' if others else ''} chat template, which says how a conversation "
                f"is written. Give --chat-template (chat_template= in Python): {others}chatml, llama3, plain or a file."
            )
        self.template: ChatTemplate = template
        self._tokens = TemplateTokens(side, special_tokens=special_tokens)
        self.stop_ids = self._tokens.ends
        """Ids that end an answer."""

    def ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """The ids of messages and of what begins an answer. Raises ValueError for what the template refuses."""
        try:
            rendered = self.template.render(messages, tools, prompt=True, literal=self._tokens.literal)
        except BadRow as error:
            raise ValueError(f"[chat] {error.why}. Change the messages, or give another template.") from None
        return self._tokens.ids(rendered)
