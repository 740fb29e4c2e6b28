"""A row to tokens and labels: rendered, and of the text what the assistant says is learned, with the end of its turn.

How it is known where the assistant speaks, the first that holds:

    the template's own {% generation %} blocks, or those of the marked one that is kept for a stock template
    the difference of two renderings: up to a turn with what an answer begins with, and with the turn
    the same, but each turn a sample of its own, which ends with it (a template that renders older turns otherwise)

Else the row is refused. A prompt must be rendered as at inference: of a conversation in which it is not, the maker keeps
count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cktrain.data.chat.pairs import Pair
from cktrain.data.chat.rows import Conversation, PlainText, Row
from cktrain.data.chat.template import ChatTemplate, Rendered, Span, stock_templates
from cktrain.data.chat.template_tokens import TemplateTokens
from cktrain.data.documents import BadRow
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import SideFiles, SpecialTokens

TrainOn = Literal["assistant", "all", "completion"]
TRAIN_ON: tuple[TrainOn, ...] = ("assistant", "all", "completion")


@dataclass(frozen=True)
class Prepared:
    """A text to encode and what of it is learned. `around`: what begins and ends a document belongs to it."""

    text: str
    learned: list[Span]
    literal: list[Span]
    around: bool = False


@dataclass(frozen=True)
class Sample:
    """Token ids, and whether each is learned; the first is not."""

    ids: list[int]
    learned: list[bool]
    text_bytes: int


class SampleMaker:
    """Samples of rows, by one tokenizer and template; counts what its user should hear of.

    `masks` says by which method rows were masked. Of the others, count and first place: `unwritten` of which the template
    leaves something out, `unlike_inference` whose prompts are rendered otherwise at inference, `endless` whose answers end
    without a token that ends them, `crossing` of texts in which a token holds both prompt and completion, `unlearned` with
    answers that say that they are not learned.
    """

    def __init__(
        self,
        side: SideFiles,
        eos_token: str | None,
        template: ChatTemplate | None,
        marked: ChatTemplate | None,
        train_on: TrainOn = "assistant",
        special_tokens: SpecialTokens = "text",
    ):
        """`marked`: the template with {% generation %}, None where there is none of it."""
        self.template = template
        self.marked = marked
        self.train_on = train_on
        self.masks: Counter[str] = Counter()
        self.unwritten = _Met()
        self.unlike_inference = _Met()
        self.endless = _Met()
        self.crossing = _Met()
        self.unlearned = _Met()
        self.tokenizer = Tokenizer.of(side, eos_token, special_tokens)  # of texts without a template
        self.ends: set[int] = set()
        """Ids of tokens that were learned as the ends of answers."""
        self._other_templates = sorted(stock_templates(side))
        self._tokens = TemplateTokens(side, eos_token, special_tokens)

    def prepare_pair(self, pair: Pair, place: str) -> list[Prepared]:
        """The two texts of a pair, the chosen one first, each with its answer to learn. Raises BadRow."""
        found = []
        for row in (pair.chosen, pair.rejected):
            texts = self.prepare(row, place)
            if len(texts) != 1:
                raise BadRow(
                    "an answer of several turns, whose older ones the chat template renders otherwise",
                    "Give answers of one turn, and what was said before in the prompt.",
                )
            found += texts
        if found[0].text == found[1].text:
            raise BadRow("chosen and rejected are equal", "Leave the row out: nothing is preferred in it.")
        return found

    def prepare(self, row: Row, place: str) -> list[Prepared]:
        """The texts that a row becomes, mostly one. Raises BadRow."""
        if isinstance(row, PlainText):
            text, border = row.prompt + row.completion, len(row.prompt)
            return [Prepared(text, [(0 if self.train_on == "all" else border, len(text))], [], around=True)]
        if self.template is None:
            others = "".join(f"{name}, " for name in self._other_templates)
            default = " default" if others else ""
            raise BadRow(
                f"a conversation, and the tokenizer has no{default} chat template",
                f"Name one with --chat-template ({others}chatml, llama3, plain or a file).",
            )
        full = self._render(self.template, row, len(row.messages))
        self._look_for_what_is_left_out(row, full.text, place)
        if self.train_on == "all":
            if row.unlearned:
                raise BadRow(
                    "an answer that says that it is not learned", "Leave out --train-on all, or its key."
                )
            return [Prepared(full.text, [(0, len(full.text))], full.literal)]
        turns = row.answers
        if self.train_on == "completion":
            turns = turns[-1:] if row.completion is None else [i for i in turns if i >= row.completion]
            if not turns:
                raise BadRow("no answer in its completion")
        if row.unlearned:
            self.unlearned.add(place)
        turns = [turn for turn in turns if turn not in row.unlearned]
        method, samples = self._masked(row, turns, place)
        self.masks[method] += 1
        return samples

    def encode(self, prepared: Sequence[Prepared], places: Sequence[str]) -> list[Sample]:
        """Each text's tokens, one sample for one text; `places` are where they came from."""
        found: list[Sample] = []
        with_template = [each for each in prepared if not each.around]
        plain = [each for each in prepared if each.around]
        encoded = iter(self._tokens.encode([each.text for each in with_template]))
        encoded_plain = iter(self.tokenizer.encode_with_offsets([each.text for each in plain]))
        for each, place in zip(prepared, places, strict=True):
            ids, offsets = next(encoded_plain if each.around else encoded)
            learned = _overlapping(offsets, each.learned)
            if each.around:
                border = each.learned[0][0]
                if any(begin < border < end for begin, end in offsets):
                    self.crossing.add(place)
                before = self.tokenizer.beginning(ids)
                whole = self.tokenizer.document(ids)
                after = len(whole) - len(before) - len(ids)
                ids, learned = whole, [*[self.train_on == "all"] * len(before), *learned, *[True] * after]
            else:
                if self.train_on != "all":
                    self._learn_ends(ids, learned, place)
                ids, learned = self._tokens.as_text(each.text, each.literal, ids, offsets, learned)
            if learned:
                learned[0] = False  # nothing is before it to predict it from
            found.append(Sample(ids, learned, len(each.text.encode())))
        return found

    def _render(
        self, template: ChatTemplate, row: Conversation, count: int, prompt: bool = False
    ) -> Rendered:
        return template.render(
            row.messages[:count], row.tools, row.options, prompt=prompt, literal=self._tokens.literal
        )

    def _look_for_what_is_left_out(self, row: Conversation, text: str, place: str) -> None:
        """A template that knows no tools writes nothing of them. BadRow for calls, which are what is to be learned."""
        for message in row.messages:
            for call in message.get("tool_calls", ()):
                if call["function"]["name"] not in text:
                    raise BadRow(
                        "the chat template leaves tool calls out",
                        "Take a model whose template has tools, or --chat-template FILE.",
                    )
        wanted = [content.strip() for content in row.texts]
        wanted += [str(tool.get("function", tool).get("name", "")) for tool in row.tools or ()]
        wanted.append(str(row.messages[-1].get("reasoning_content") or "").strip())
        if not all(each in text for each in wanted):
            self.unwritten.add(place)

    def _masked(self, row: Conversation, turns: list[int], place: str) -> tuple[str, list[Prepared]]:
        assert self.template is not None
        prompts = [self._render(self.template, row, turn, prompt=True).text for turn in turns]
        full = self._render(self.marked or self.template, row, len(row.messages))
        if self.marked is not None and (spans := self._generated(row, turns, full)) is not None:
            if not all(full.text.startswith(prompt) for prompt in prompts):
                self.unlike_inference.add(place)
            # A block may begin with what the prompt ends with, mostly a line end.
            begins = [len(prompt) for prompt in prompts if full.text.startswith(prompt)]
            spans = [(max([a, *(b for b in begins if a <= b < z)]), z) for a, z in spans]
            return "generation blocks", [Prepared(full.text, spans, full.literal)]
        afters = [self._render(self.template, row, turn + 1) for turn in turns]
        begun = all(after.text.startswith(prompt) for after, prompt in zip(afters, prompts, strict=True))
        if not begun:
            raise BadRow(
                "the chat template does not go on from its own generation prompt, so nobody knows what is answered",
                "Give a template with {% generation %} blocks (--chat-template FILE), or --train-on all.",
            )
        if all(full.text.startswith(after.text) for after in afters):
            spans = [
                (len(prompt), self._end_of(after.text)) for after, prompt in zip(afters, prompts, strict=True)
            ]
            return "difference of prefixes", [Prepared(full.text, spans, full.literal)]
        samples = [
            Prepared(after.text, [(len(prompt), self._end_of(after.text))], after.literal)
            for after, prompt in zip(afters, prompts, strict=True)
        ]
        return "one sample per turn", samples

    def _end_of(self, text: str) -> int:
        """Where a turn ends: without the white space after the token that ends it."""
        bare = text.rstrip()
        return len(bare) if bare.endswith(self._tokens.end_names) else len(text)

    def _generated(self, row: Conversation, turns: list[int], full: Rendered) -> list[Span] | None:
        spans = full.generated
        if len(spans) == len(row.answers):
            return [spans[row.answers.index(turn)] for turn in turns]
        # Several blocks in one turn, or none in some: whose a block is, is not known.
        return spans if turns == row.answers and spans else None

    def _learn_ends(self, ids: list[int], learned: list[bool], place: str) -> None:
        """Let the end of each turn be learned, also where a template's block ends before it."""
        ended, ends = True, self._tokens.ends
        for index in range(len(ids)):
            if not learned[index] or (index + 1 < len(ids) and learned[index + 1]):
                continue
            if ids[index] in ends:
                self.ends.add(ids[index])
            elif index + 1 < len(ids) and ids[index + 1] in ends:
                learned[index + 1] = True
                self.ends.add(ids[index + 1])
            else:
                ended = False
        if not ended:
            self.endless.add(place)


class _Met:
    """How often something was met, and where first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def add(self, place: str) -> None:
        self.count += 1
        self.first = self.first or place


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token's characters overlap one of the spans."""
    return [any(begin < z and a < end for a, z in spans) for begin, end in offsets]
