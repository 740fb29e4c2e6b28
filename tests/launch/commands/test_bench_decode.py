"""`cktrain bench decode` on random weights: what it counts, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cktrain import cython_kernels
from cktrain.host import bind
from cktrain.launch.cli import main

pytestmark = pytest.mark.skipif(
    cython_kernels.load().isa == "reference", reason="bandwidth is measured by compiled kernels"
)

YAML = """
run: {dir: runs/unused, steps: 1}
model: {family: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24, vocab_size: 50,
        max_position_embeddings: 40, tie_word_embeddings: true}
data: {path: unused, sequence_length: 8}
batch: {micro_batch_size: 1, global_batch_size: 1}
optimizer: {lr: 1.0e-3}
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(bind, "bind", lambda *_args, **_kwargs: bind.Binding((0,), 1, None, ""))
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    return str(path)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "weight", "key"),
    [("fp32", None, 4, 4), ("bf16", None, 2, 2), ("fp32", "bf16", 4, 2)],
)
def test_bytes_of_weights_and_keys(dtype, kv_dtype, weight, key, model, capsys):
    options = [] if kv_dtype is None else ["--kv-dtype", kv_dtype]
    small = ["--prompt", "9", "--tokens", "4", "--rounds", "1", "--dtype", dtype]
    assert main(["bench", "decode", model, *small, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    matrices = 2 * (16 * 48 + 16 * 16 + 3 * 16 * 24) + 50 * 16  # the tied table is read by the head
    row, norms, keys = 16 * weight, 4 * 16 * 5, 2 * 2 * 16 * key * (9 + 2 + 1)
    assert found["bytes_per_token"] == matrices * weight + row + norms + keys
    assert found["decode_gbs"] == pytest.approx(found["bytes_per_token"] * found["decode_tps"] / 1e9)
    assert found["decode_tps"] > 0 and found["prefill_tps"] > 0 and found["read_gbs"] > 0
    assert (found["threads"], found["precision"], found["kv_dtype"]) == (
        1,
        dtype,
        {4: "float32", 2: "bfloat16"}[key],
    )


@pytest.mark.parametrize("activations", ["exact", "q8"])
def test_bytes_of_weights_in_blocks(activations, model, capsys):
    pytest.importorskip("gguf")
    wide = YAML.replace("hidden_size: 16", "hidden_size: 64").replace("size: 24", "size: 96")
    Path(model).write_text(wide)
    small = ["--prompt", "9", "--tokens", "4", "--rounds", "1", "--kv-dtype", "bf16"]
    options = ["--quantize", "q4_0", "--activations", activations, "--json"]
    assert main(["bench", "decode", model, *small, *options]) == 0
    found = json.loads(capsys.readouterr().out)
    blocks = 2 * (64 * 192 + 64 * 64 + 3 * 64 * 96) // 32 * 18 + 50 * 68  # the tied table in q8_0
    assert found["bytes_per_token"] == blocks + 68 + 5 * 64 * 4 + 2 * 2 * 64 * 2 * 12
    assert (found["quantize"], found["activations"]) == ("q4_0 and q8_0", activations)
    assert main(["bench", "decode", model, *small, "--quantize", "nf4"]) == 2
    assert "down_proj.weight has rows of 96 values" in capsys.readouterr().err


def test_the_table_and_a_prompt_that_does_not_fit(model, capsys):
    assert main(["bench", "decode", model, "--prompt", "3", "--tokens", "2", "--rounds", "1"]) == 0
    assert "tokens/s, 2 tokens" in capsys.readouterr().out
    assert main(["bench", "decode", model, "--prompt", "39", "--tokens", "2"]) == 2
    assert "has 40 positions, and prompt and tokens take 41" in capsys.readouterr().err
