"""Where the assistant speaks in the models' stock templates that do not mark it: the same text, with the tag set in it.

A family is recognised by the lines of its template in which the assistant's turn is written; each of them is replaced by
one that writes the same and stands partly in `{% generation %}`, together with the end of the turn, which is learned. So a
stock template and its marked one render the same text, and a later edition of a template whose turn is unchanged is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BEGIN, END = "{% generation %}", "{% endgeneration %}"


@dataclass(frozen=True)
class Family:
    """A template's name, and (stock lines, marked lines), all of which must be in it."""

    name: str
    edits: tuple[tuple[str, str], ...]


def _turn(head: str, body: str, tail: str, role: str, *, dash: bool = True) -> str:
    """A turn that one line writes for every role: `head`, `body` (learned where it is the assistant's), `tail`."""
    left, newline = ("{{-", "{%-") if dash else ("{{", "{%")
    said = f"{left} {body} }}}}"
    return (
        f"{left} {head} }}}}{newline} if {role} == 'assistant' %}}{BEGIN}{said}{END}"
        f"{newline} else %}}{said}{newline} endif %}}{left} {tail} }}}}"
    )


_CHATML = r"'<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n'"
_QWEN_LINE = (
    "{{- " + _CHATML + " }}",
    _turn(r"'<|im_start|>' + message.role + '\n'", "message.content + '<|im_end|>'", r"'\n'", "message.role"),
)
_QWEN_END = (
    "        {{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}",
    f"        {{{{- '<|im_end|>' }}}}{END}{{{{- '\\n' }}}}\n    {{%- elif message.role == \"tool\" %}}",
)
_QWEN3_THINK = r"""{{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n')"""
_LLAMA_HEAD = r"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
_LLAMA_CALL = r"""{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}"""
_LLAMA_LINE = (
    "{{- " + _LLAMA_HEAD + "+ message['content'] | trim + '<|eot_id|>' }}",
    _turn(_LLAMA_HEAD, "message['content'] | trim + '<|eot_id|>'", "''", "message['role']"),
)
_LLAMA_TOOL = '    {%- elif message.role == "tool" or message.role == "ipython" %}'
_SMOLLM3 = '"<|im_start|>assistant\\n" + '
_PHI = "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
_GEMMA = "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"

FAMILIES = (
    Family(
        "qwen3",
        (
            (
                "{%- if loop.index0 > ns.last_query_index %}",
                r"{{- '<|im_start|>' + message.role + '\n' }}"
                + BEGIN
                + "{%- if loop.index0 > ns.last_query_index %}",
            ),
            (_QWEN3_THINK, r"{{- '<think>\n' + reasoning_content.strip('\n')"),
            (r"{{- '<|im_start|>' + message.role + '\n' + content }}", "{{- content }}"),
            _QWEN_END,
        ),
    ),
    Family(
        "qwen2.5",
        (
            _QWEN_LINE,
            (
                "        {{- '<|im_start|>' + message.role }}\n        {%- if message.content %}",
                "        {{- '<|im_start|>' + message.role }}" + BEGIN + "{%- if message.content %}",
            ),
            _QWEN_END,
        ),
    ),
    Family(
        "llama-3.1",
        (
            _LLAMA_LINE,
            (
                "{%- if builtin_tools is defined and tool_call.name in builtin_tools %}\n            "
                + _LLAMA_CALL,
                _LLAMA_CALL
                + BEGIN
                + "{%- if builtin_tools is defined and tool_call.name in builtin_tools %}",
            ),
            ("{%- else  %}\n            " + _LLAMA_CALL, "{%- else  %}"),
            ("{%- endif %}\n" + _LLAMA_TOOL, "{%- endif %}" + END + "\n" + _LLAMA_TOOL),
        ),
    ),
    Family(
        "llama-3.2",
        (
            _LLAMA_LINE,
            (_LLAMA_CALL + '\n        {{- \'{"name"', _LLAMA_CALL + BEGIN + '{{- \'{"name"'),
            ('{{- "<|eot_id|>" }}\n' + _LLAMA_TOOL, '{{- "<|eot_id|>" }}' + END + "\n" + _LLAMA_TOOL),
        ),
    ),
    Family(
        "llama-3",
        (
            (
                "{{ content }}{% endfor %}",
                "{% set said = message['content'] | trim + '<|eot_id|>' %}{{ content[:content|length - said|length] }}"
                f"{{% if message['role'] == 'assistant' %}}{BEGIN}{{{{ said }}}}{END}{{% else %}}{{{{ said }}}}"
                "{% endif %}{% endfor %}",
            ),
            ("{% set content = " + _LLAMA_HEAD + "+ message['content'] | trim + '<|eot_id|>' %}",) * 2,
        ),
    ),
    Family(
        "smollm3",
        (
            (
                "{{ " + _SMOLLM3 + 'content.lstrip("\\n") + "<|im_end|>\\n" }}',
                '{{ "<|im_start|>assistant\\n" }}'
                + BEGIN
                + '{{ content.lstrip("\\n") + "<|im_end|>" }}'
                + END
                + '{{ "\\n" }}',
            ),
            (
                "{{ " + _SMOLLM3 + '"<think>\\n\\n</think>\\n" + content.lstrip("\\n") + "<|im_end|>\\n" }}',
                '{{ "<|im_start|>assistant\\n<think>\\n\\n</think>\\n" }}'
                + BEGIN
                + '{{ content.lstrip("\\n") + "<|im_end|>" }}'
                + END
                + '{{ "\\n" }}',
            ),
        ),
    ),
    Family(
        "chatml",  # SmolLM2 among others
        (
            (
                r"{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
                _turn(
                    r"'<|im_start|>' + message['role'] + '\n'",
                    "message['content'] + '<|im_end|>'",
                    r"'\n'",
                    "message['role']",
                    dash=False,
                ),
            ),
        ),
    ),
    Family(
        "gemma",
        (
            (
                _GEMMA,
                _turn(
                    "'<start_of_turn>' + role + '\n'",
                    "message['content'] | trim + '<end_of_turn>'",
                    "'\n'",
                    "message['role']",
                    dash=False,
                ),
            ),
        ),
    ),
    Family(
        "phi-3.5",
        (
            (
                _PHI,
                "{{'<|assistant|>\n'}}" + BEGIN + "{{message['content'] + '<|end|>'}}" + END + "{{'\n'}}",
            ),
        ),
    ),
)


def marked_template(stock: str) -> tuple[str, str] | None:
    """(family, the template with the tag) of a stock template; None where no family's lines are in it."""
    text = stock.replace("\r\n", "\n")
    for family in FAMILIES:
        for edits in (family.edits, _with_line_ends(family.edits)):
            if all(old in text for old, _ in edits):
                for old, new in edits:
                    text = text.replace(old, new)
                return family.name, text
    return None


def _with_line_ends(edits: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    r"""The same where a template's literals have line ends themselves instead of \n, as SmolLM2's."""
    return [(old.replace(r"\n", "\n"), new.replace(r"\n", "\n")) for old, new in edits]
