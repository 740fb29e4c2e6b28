"""Chat templates by name, for models that bring none: `--chat-template chatml`. They mark where the assistant speaks."""

from __future__ import annotations

import datetime
from pathlib import Path

from cktrain.data.chat.template import ChatTemplate, named_tokens, stock_template, stock_templates
from cktrain.data.sniff import shown
from cktrain.data.tokenizer import Tokenizer
from cktrain.side_files import SideFiles

CHATML = r"""
{%- for message in messages -%}
    {{ '<|im_start|>' + message['role'] + '\n' }}
    {%- if message['role'] == 'assistant' -%}
        {% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
    {%- else -%}
        {{ message['content'] + '<|im_end|>' }}
    {%- endif -%}
    {{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\n' }}
{%- endif -%}
"""

LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {%- if message['role'] == 'assistant' -%}
        {% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}
    {%- else -%}
        {{ message['content'] | trim + '<|eot_id|>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif -%}
"""

PLAIN = r"""
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{ 'Assistant:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{{ '\n' }}
    {%- else -%}
        {{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ 'Assistant:' }}
{%- endif -%}
"""

NAMED = {"chatml": CHATML, "llama3": LLAMA3, "plain": PLAIN}
"""`plain` needs no tokens but the tokenizer's end token, and so fits every tokenizer."""

_MARKERS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
"""What they write that must be a token each."""


def refuse_without_markers(asked: str | None, tokenizer: Tokenizer, where: str) -> None:
    """Raises ValueError for a template that is asked for by name and whose markers are no tokens of the tokenizer.

    As pieces of text they would train and look well in the loss, but no token ends an answer: whoever runs the model later,
    here, in transformers, Ollama or llama.cpp, sees it go on until its context is full. Some trainers add the tokens and
    rows of the embedding (TRL's setup_chat_format, axolotl's tokens:); here a model keeps its vocabulary.
    """
    missing = [token for token in _MARKERS.get(asked or "", ()) if tokenizer.id_of(token) is None]
    if missing:
        raise ValueError(
            f"[data.chat] the template {asked} writes {', '.join(missing)}, which the tokenizer of {where} does not have as "
            "tokens: no token would end an answer, and the model would not learn to stop. Give --chat-template plain, which "
            "ends answers with the tokenizer's own end token, or a model whose tokenizer has them. (A file with a template "
            "of your own is taken as it is.)"
        )


def template_of(side: SideFiles, asked: str | None, date: datetime.date) -> ChatTemplate | None:
    """The template that a name or a file gives, else the tokenizer's own default; None where it has none.

    A tokenizer may have others by name (`rag`, `tool_use`).

    Raises ValueError for a file that cannot be read, and a text that is no template.
    """
    if asked is None:
        text, name = stock_template(side), f"the chat template of {side.found_in}"
    elif asked in NAMED:
        text, name = NAMED[asked], asked
    elif asked in (named := stock_templates(side)):
        text, name = named[asked], f"{asked} of {side.found_in}"
    else:
        name = asked
        try:
            text = Path(asked).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"[data.chat] --chat-template {shown(asked)}: no file that can be read ({error}), nor one of "
                f"{', '.join([*NAMED, *named])}. Correct it."
            ) from error
    return None if text is None else ChatTemplate(text, named_tokens(side), date, name)
