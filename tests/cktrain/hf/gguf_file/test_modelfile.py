"""Modelfiles for Ollama: the template around messages is that of the model, or it is refused."""

import pytest
from gguf_made_here import byte_level, side_files

from cktrain.hf.gguf_file.modelfile import modelfile
from cktrain.side_files import SideFiles, read_side_files

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)


def of(template, tmp_path, **config):
    return modelfile(
        tmp_path / "Modelfile",
        "m.gguf",
        side_files(tmp_path / "side", byte_level(), chat_template=template, **config),
    )


def test_chatml_with_a_default_system_message(tmp_path):
    assert of(CHATML, tmp_path).splitlines() == [
        "FROM ./m.gguf",
        'TEMPLATE """{{- range .Messages }}{{ if eq .Role "system" }}<|im_start|>system',
        "{{ .Content }}<|im_end|>",
        '{{ else if eq .Role "user" }}<|im_start|>user',
        "{{ .Content }}<|im_end|>",
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant',
        "{{ .Content }}<|im_end|>",
        "{{ end }}{{ end }}<|im_start|>assistant",
        '"""',
        'SYSTEM """Be kind."""',
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
    ]


@pytest.mark.parametrize("added", [True, False])
def test_the_beginning_token_is_left_to_ollama_where_the_tokenizer_adds_it(added, tmp_path):
    text = of(HEADERS, tmp_path, bos_token="<|endoftext|>", add_bos_token=added)
    begin = "" if added else "<|endoftext|>"
    ranged = '{{- range .Messages }}{{ if eq .Role "system" }}[system]\n\n{{ .Content }}<|im_end|>{{ else'
    assert f'TEMPLATE """{begin}{ranged}' in text
    assert "SYSTEM" not in text


def test_the_token_that_ends_a_turn_stops_though_the_models_ids_are_silent_of_it(tmp_path):
    side = side_files(tmp_path / "side", byte_level(), chat_template=CHATML, eos_token="<|endoftext|>")
    (tmp_path / "side/generation_config.json").write_text('{"eos_token_id": 2}')
    side = read_side_files(tmp_path / "side")
    lines = modelfile(tmp_path / "Modelfile", "m.gguf", side).splitlines()
    assert lines[-2:] == ['PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|im_end|>"']


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
        "{{ messages[-1].content }}",
    ],
)
def test_a_template_that_does_more_is_refused(template, tmp_path):
    with pytest.raises(ValueError, match="does more than put text around messages"):
        of(template, tmp_path)


def test_without_a_template_or_over_another_file_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no chat template"):
        modelfile(tmp_path / "Modelfile", "m.gguf", SideFiles())
    (tmp_path / "Modelfile").write_text("mine")
    with pytest.raises(ValueError, match="Modelfile exists"):
        modelfile(tmp_path / "Modelfile", "m.gguf", SideFiles())
