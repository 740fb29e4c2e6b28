"""The text part of a model that sees: what transformers' whole model computes from a text, from a folder of the whole."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "golden" / "hf"))
from hf_parity import differences, draw_tokens, judge_results, our_results

from cktrain import cython_kernels
from cktrain.hf.folder import resolve_model, save_folder
from cktrain.hf.tensors import WEIGHTS_FILE, load_weights
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.models.family import FromFolder
from cktrain.nn.numerics import Numerics
from cktrain.side_files import read_side_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.judge

EXACT = 1e-12
"""Both sides are fp64; 5e-15 was the most that was measured."""
BY_CLASS = {"language_model.model.": "model.language_model.", "": "model."}
"""How the names that transformers writes begin in its class, which some of its versions wrote."""


@pytest.fixture(scope="module")
def whole() -> Any:
    """A Gemma 3 that sees, of random weights with standard deviation 0.2."""
    text = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 300,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 16,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    }
    sight = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=sight, mm_tokens_per_image=4, image_token_id=299, eos_token_id=[1, 2]
    )
    torch.manual_seed(3)
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.2)
    return model


def save(whole: Any, folder: Path, *, by_class: bool) -> None:
    """As transformers writes it, or with the names of its class."""
    whole.float().save_pretrained(folder)
    if not by_class:
        return
    stored = safetensors_torch.load_file(folder / WEIGHTS_FILE)
    renamed = {}
    for name, tensor in stored.items():
        prefix = next(prefix for prefix in BY_CLASS if name.startswith(prefix))
        renamed[BY_CLASS[prefix] + name.removeprefix(prefix)] = tensor
    safetensors_torch.save_file(renamed, folder / WEIGHTS_FILE, metadata={"format": "pt"})


@pytest.mark.parametrize("by_class", [False, True])
def test_the_text_part_computes_what_the_whole_does(
    whole: Any, by_class: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(whole, tmp_path / "whole", by_class=by_class)
    names = set(safetensors_torch.load_file(tmp_path / "whole" / WEIGHTS_FILE))
    prefix = "model.language_model." if by_class else "language_model.model."
    assert any(name.startswith(prefix) for name in names) and any("vision_tower" in name for name in names)

    text = transformers.Gemma3ForCausalLM(whole.config.text_config)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    tokens, targets = draw_tokens(299, length=20)
    tokens[tokens == 0] = 1  # transformers computes no gradient of the padding token's row
    ids = torch.tensor(tokens, dtype=torch.int64)
    with torch.no_grad():
        np.testing.assert_allclose(whole(ids).logits, text(ids).logits, rtol=0, atol=1e-4)
    wanted = judge_results(text, tokens, targets)
    ours = our_results(tmp_path / "whole", tokens, targets, cython_kernels.load("reference"), "fp64")
    assert max(differences(ours, wanted).values()) <= EXACT

    # What is saved is a model of text alone: its class has the same weights, and nothing of what sees.
    with caplog.at_level(logging.INFO):
        config, _ = resolve_model(FromFolder(from_pretrained=str(tmp_path / "whole")))
    assert "its text part is taken, and saved alone" in caplog.text
    numerics = Numerics(cython_kernels.load("reference"), "fp32")
    params = ParamStore(build_model(config, numerics, 8).params(), numerics)
    load_weights(tmp_path / "whole", config, params)
    save_folder(tmp_path / "text", config, params, side=read_side_files(tmp_path / "whole"))
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text", output_loading_info=True, dtype="auto"
    )
    assert type(loaded).__name__ == "Gemma3ForCausalLM" and not any(report.values()), report
    for name, tensor in whole.model.language_model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    written = json.loads((tmp_path / "text" / "config.json").read_text())
    assert not {"text_config", "vision_config", "mm_tokens_per_image"} & set(written)
    assert written["eos_token_id"] == [1, 2]
