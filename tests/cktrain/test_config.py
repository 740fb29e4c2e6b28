"""The configuration file: what is accepted, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cktrain.config import Config
from cktrain.config_file import load_config, save_config
from cktrain.config_reference import reference

GOOD = """\
run: {dir: runs/x, steps: 10}
model: {family: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4,
        intermediate_size: 64, vocab_size: 100}
data: {path: tokens.bin, sequence_length: 16}
batch: {micro_batch_size: 2, global_batch_size: 4}
optimizer:
  lr: 3e-4
"""


@pytest.fixture
def config_of(tmp_path):
    def load(text: str, *overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load


def test_a_number_without_a_point_is_a_number(config_of):
    assert config_of(GOOD).optimizer.lr == 3e-4


def test_saved_configurations_read_back_equal(config_of, tmp_path):
    config = config_of(GOOD, "schedule.name=wsd", "optimizer.betas=[0.8, 0.9]")
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["checkpoint"]["keep"] == 3


@pytest.mark.parametrize(
    "change, message",
    [
        (
            ("  lr: 3e-4", "  lrr: 3e-4"),
            r"run.yaml:7: optimizer.lrr: unknown key. Did you mean 'optimizer.lr'\?",
        ),
        (("optimizer:", "optimiser:"), r"run.yaml:6: optimiser: unknown key. Did you mean 'optimizer'\?"),
        (("vocab_size: 100", "vocab_size: many"), r"run.yaml:3: model.vocab_size: .*integer, found 'many'"),
        (("  lr: 3e-4", "  lr: yes"), r"run.yaml:7: optimizer.lr: .*number, found 'yes'"),
        (("steps: 10", "steps: 0"), r"run.yaml:1: run.steps: .*greater than 0, found 0"),
        (("steps: 10", "steps: 1.5"), r"run.yaml:1: run.steps: .*integer, found 1.5"),
        ((", vocab_size: 100", ""), r"run.yaml:2: model: .*needs vocab_size"),
        (("data: {path: tokens.bin, ", "data: {"), r"run.yaml:4: data.path: missing"),
        (
            ("hidden_size: 32", "hidden_size: 30"),
            r"hidden_size 30 is not a multiple of num_attention_heads 4",
        ),
        (
            ("num_attention_heads: 4", "num_attention_heads: 4, num_key_value_heads: 3"),
            r"4 is not a multiple of .* 3",
        ),
        (("family: llama", "family: gpt2, qk_norm: true"), r"run.yaml:2: model: gpt2 has no qk_norm"),
        (
            ("global_batch_size: 4", "global_batch_size: 5"),
            r"run.yaml:5: batch: global_batch_size 5 .* micro_batch_size 2",
        ),
        (
            ("  lr: 3e-4", "  lr: 3e-4\n  lr: 1e-4"),
            r"run.yaml:8: optimizer.lr: the key stands twice \(first at .*:7\)",
        ),
        (("run: {", "run: ["), r"run.yaml:\d+: not valid YAML"),
        (
            ("family: llama, hidden_size: 32", "from_pretrained: x"),
            r"from_pretrained takes the architecture .* vocab_size",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(config_of, change, message):
    old, new = change
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        config_of(GOOD.replace(old, new))


@pytest.mark.parametrize(
    "override, message",
    [
        ("optimizer.lr", "expected key.path=value"),
        ("optimizer.rl=1", "--set optimizer.rl=1: optimizer.rl: unknown key. Did you mean 'optimizer.lr'"),
        ("optimizer.lr.x=1", "optimizer.lr is not a block"),
        ("run.steps=abc", "--set run.steps=abc: run.steps: .*integer"),
    ],
)
def test_overrides_go_through_the_same_checks(config_of, override, message):
    with pytest.raises(ValueError, match=message):
        config_of(GOOD, override)
    assert config_of(GOOD, "run.steps=77").run.steps == 77


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*nothing.yaml: No such file"):
        load_config(tmp_path / "nothing.yaml")


def test_the_reference_page_is_what_the_code_says():
    page = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m cktrain.config_reference > docs/configuration.md"


def test_every_key_is_documented():
    def undocumented(section, path=""):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from undocumented(field.annotation, f"{path}{name}.")
            elif not field.description:
                yield path + name

    assert list(undocumented(Config)) == []
