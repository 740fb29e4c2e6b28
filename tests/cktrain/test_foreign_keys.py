"""Keys of other trainers: each is answered with ours, or with an honest "not yet"."""

from __future__ import annotations

import pytest

from cktrain.config import Config
from cktrain.config_file import _places, load_config
from cktrain.foreign_keys import _KEYS, translated

TO_COME = {
    "log.wandb",
}
GOOD = """\
run: {dir: runs/x, steps: 10}
model: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64, vocab_size: 100}
data: {path: tokens.bin, sequence_length: 16}
batch: {micro_batch_size: 2, global_batch_size: 4}
"""


def test_every_answer_is_a_key_of_ours_or_said_to_come():
    places = _places(Config)
    assert {"optimizer.lr", "data.validation.every", "model.qk_norm", "model.activation_function"} <= set(
        places
    )
    for key, (place, note) in _KEYS.items():
        assert place in places or note, key
        assert place in (*places, *TO_COME, ""), key
        assert key not in places, key


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("learning_rate: 1e-3", "learning_rate: unknown key. Here it is optimizer.lr"),
        ("optimizer: {learning-rate: 1e-3}", "optimizer.learning-rate: unknown key. Here it is optimizer.lr"),
        ("num_train_epochs: 3", "Here it is run.epochs .instead of run.steps"),
        ("per_device_train_batch_size: 3", "Here it is batch.micro_batch_size"),
        ("gradient_accumulation_steps: 3", "Here it is batch.gradient_accumulation_steps .or batch.global"),
        ("max_length: 8", "Here it is data.sequence_length"),
        ("cutoff_len: 8", "Here it is data.sequence_length"),
        ("sequence_len: 8", "Here it is data.sequence_length"),
        ("load_in_4bit: true", "Here it is model.quantize .as q8_0 or nf4, for a frozen base"),
        ("lora_rank: 8", "Here it is adapter.r"),
        ("iters: 8", "Here it is run.steps"),
        ("lora_parameters: {rank: 8}", "Here it is adapter .a block"),
        ("lora: {r: 8}", "Here it is adapter .a block"),
        ("lora_dropout: 0.1", "Here it is adapter.lora_dropout"),
        ("val_set_size: 0.1", "Here it is data.validation .the share of the rows of data.train"),
        ("sample_packing: true", "Here it is data.packing .bfd or none"),
        ("train_on_inputs: false", "Here it is data.train_on .assistant, completion or all"),
        ("weight_decay: 0.1", "It belongs to another block: optimizer.weight_decay"),
        ("every: 3", "another block: checkpoint.every or data.validation.every or log.every"),
    ],
)
def test_keys_that_people_know(tmp_path, line, answer):
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(ValueError, match=rf"run.yaml:5: .*{answer}"):
        load_config(path)


def test_what_nobody_knows_is_not_answered():
    assert translated("flux_capacitor", _places(Config)) is None
