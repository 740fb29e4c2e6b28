"""PEFT judges: it loads our folder beside transformers' model and computes the same logits, and its folder is read here."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from cktrain import cython_kernels  # noqa: E402
from cktrain.config import Config  # noqa: E402
from cktrain.hf.folder import save_folder  # noqa: E402
from cktrain.loaded_model import open_model  # noqa: E402
from cktrain.memory.param_store import ParamStore  # noqa: E402
from cktrain.models.build import build_model  # noqa: E402
from cktrain.nn.numerics import Numerics  # noqa: E402

pytestmark = pytest.mark.judge

IDS = np.arange(12) * 5 % 61
TOLERANCE = 2e-5
"""Of the largest logit: fp32 sums of up to 40 terms in another order."""
ADAPTERS = {
    "llama": {
        "r": 3,
        "rank_pattern": {"k_proj": 2},
        "alpha_pattern": {"o_proj": 9},
        "exclude_modules": ["up_proj"],
    },
    "gpt2": {"r": 4, "use_rslora": True},
    "olmo2": {"r": 2, "target_modules": ["q_proj", "layers.1.mlp.down_proj"]},
    "gemma": {"r": 3, "rank_pattern": {"k_proj": 2}},
    "phi3": {"r": 3, "rank_pattern": {"qkv_proj": 2}},
    "granite": {"r": 2},
    "granite4": {"r": 2, "target_modules": ["q_proj", "input_linear"]},
    "llama, dora": {"r": 3, "use_dora": True, "rank_pattern": {"k_proj": 2}, "exclude_modules": ["up_proj"]},
    "gpt2, dora": {"r": 4, "use_dora": True},
    "phi3, dora": {"r": 3, "use_dora": True},
    "llama, whole": {
        "r": 2,
        "target_modules": ["q_proj"],
        "modules_to_save": ["embed_tokens", "lm_head", "norm"],
    },
    "llama, tied": {"r": 2, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "gpt2, tied": {"r": 2, "modules_to_save": ["wte", "attn.c_proj", "ln_f"], "ensure_weight_tying": True},
}


def model_keys(case):
    family, _, variant = case.partition(", ")
    tied = {"model.tie_word_embeddings": True} if variant == "tied" else {}
    return {"model.family": family, **tied}


@pytest.fixture
def base(tiny, tmp_path):
    def make(case):
        model = tiny(**model_keys(case)).model.model_copy(update={"max_position_embeddings": 16})
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(model, numerics, 16).params(), numerics)
        params.initialize(5)
        save_folder(tmp_path / "base", model, params)
        return tmp_path / "base"

    return make


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS[None])).logits[0].numpy()


def close(found, wanted):
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("case", list(ADAPTERS))
def test_peft_computes_the_logits_of_our_checkpoint(tiny, composed, base, tmp_path, case):
    folder = base(case)
    values = tiny(**model_keys(case)).model_dump(mode="json", exclude={"adapter"})
    values |= {"model": {"from_pretrained": str(folder)}, "precision": "fp32", "adapter": ADAPTERS[case]}
    values["optimizer"] = {"lr": 0.1}
    trainer = composed(Config.model_validate(values)).trainer
    for _ in range(3):
        trainer.step()
    checkpoint = trainer.save()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    before = logits(plain)
    theirs = peft.PeftModel.from_pretrained(plain, checkpoint).eval()
    ours = open_model(tmp_path / "run").logits(IDS)
    assert np.abs(ours - before).max() > 1e-2
    close(ours, logits(theirs))
    close(ours, logits(theirs.merge_and_unload()))


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "gemma", "phi3", "granite", "granite4"])
@pytest.mark.parametrize("targets", ["all-linear", None])
@pytest.mark.parametrize("dora", [False, True])
def test_a_folder_that_peft_wrote_is_read(base, tmp_path, family, targets, dora):
    folder = base(family)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    gpt2, fused = family == "gpt2", {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(family)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules=targets or ([fused] if fused else ["q_proj", "v_proj"]),
        init_lora_weights=False,
        rank_pattern={} if fused else {"v_proj": 3},
        fan_in_fan_out=gpt2,
        use_dora=dora,
    )
    theirs = peft.get_peft_model(plain, config).eval()
    if dora:
        with torch.no_grad():
            for name, param in theirs.named_parameters():
                if "magnitude" in name:
                    param.mul_(1 + torch.rand_like(param))
    theirs.save_pretrained(tmp_path / "peft")
    ours = open_model(folder, adapter=tmp_path / "peft")
    close(ours.logits(IDS), logits(theirs))
    ids = torch.tensor(IDS[None])
    theirs(input_ids=ids, labels=ids).loss.backward()
    gradients = ours.gradients(IDS)
    trained = {name: param.grad.numpy() for name, param in theirs.named_parameters() if param.requires_grad}
    assert len(trained) == len([name for name in gradients if ".lora_" in name]) > 0
    for name, wanted in trained.items():
        plain_name = name.replace(".default", "")
        close(gradients[plain_name.removesuffix(".weight") if "magnitude" in name else plain_name], wanted)


@pytest.mark.parametrize("tied", [False, True])
def test_modules_that_peft_trained_whole_are_read(base, tmp_path, tied):
    folder = base("llama, tied" if tied else "llama")
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj"],
        init_lora_weights=False,
        modules_to_save=["embed_tokens", "norm"],
        ensure_weight_tying=tied,
    )
    theirs = peft.get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, param in theirs.named_parameters():
            if "modules_to_save" in name:
                param.mul_(1 + torch.rand_like(param))
    theirs.save_pretrained(tmp_path / "peft")
    close(open_model(folder, adapter=tmp_path / "peft").logits(IDS), logits(theirs))
