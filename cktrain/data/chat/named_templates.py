"""Chat templates by name, for models that bring none: `--chat-template chatml`. They mark where the assistant speaks."""

from __future__ import annotations

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
