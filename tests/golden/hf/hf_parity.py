"""Parity with transformers, as a table: logits, loss and gradients of small models of every family.

    python tests/golden/hf/hf_parity.py            beside transformers (needs torch and transformers)
    python tests/golden/hf/hf_parity.py --as-is    the same, its RMSNorm and cosines left in fp32
    python tests/golden/hf/hf_parity.py --golden   beside the stored results (made by make_goldens.py)
    python tests/golden/hf/hf_parity.py --bf16     bf16 here and in transformers, each beside transformers in fp64

Each model is saved by transformers and loaded here. Figures are max|a-b| / max|b| over a tensor, b being
transformers' in fp64; for gradients the worst tensor's. The tests use the functions of this file.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.hf.config_json import read_model_config
from cktrain.hf.tensors import hf_tensors, load_weights
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics

HERE = Path(__file__).resolve().parent
IGNORE = -100

CASES = sorted(path.parent.name for path in HERE.glob("*/config.json"))
"""Each folder is a case: its config.json says the class and the sizes."""

Result = dict[str, np.ndarray]
"""`logits` (B, T, V), `loss` () the sum over valid targets, `grad.NAME` of each Hugging Face tensor."""


def judge_config(case: str, hidden_size: int | None = None) -> tuple[Any, str]:
    """The case's configuration for transformers, of another width if one is given, and the type of its stored weights."""
    import transformers

    values = json.loads((golden_folder(case) / "config.json").read_text())
    width = "n_embd" if "n_embd" in values else "hidden_size"
    if hidden_size is not None:
        derived = values.get("head_dim") == values[width] // values.get("num_attention_heads", 1)
        values |= {width: hidden_size, "vocab_size": 2 * hidden_size + 1}
        if "intermediate_size" in values:
            values["intermediate_size"] = hidden_size * 3 // 2 + 1
        if "mamba_d_head" in values:  # checked against the width, and not used
            values["mamba_d_head"] = "auto"
        if derived:
            values["head_dim"] = hidden_size // values["num_attention_heads"]
    dtype = values.pop("dtype")
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = attention_of(type(config))
    return config, dtype


def attention_of(config_class: type) -> str:
    """sdpa where the class has it: the eager path computes its softmax in fp32 even in an fp64 model."""
    import transformers

    return "sdpa" if transformers.MODEL_FOR_CAUSAL_LM_MAPPING[config_class]._supports_sdpa else "eager"


def build_judge(case: str, hidden_size: int | None = None, seed: int = 0) -> Any:
    """The case's transformers model in fp32: weights of standard deviation 0.2, what norms multiply by around 1."""
    import torch
    import transformers

    torch.manual_seed(seed)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_config(
        judge_config(case, hidden_size)[0], dtype=torch.float32
    )
    with torch.no_grad():
        for name, param in model.named_parameters():
            is_norm_weight = param.ndim == 1 and name.endswith("weight")
            around_one = is_norm_weight and not _has_unit_offset(model.get_submodule(name.rpartition(".")[0]))
            param.normal_(mean=1.0 if around_one else 0.0, std=0.2)
    return model


def draw_tokens(
    vocab_size: int, batch_size: int = 3, length: int = 33, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets (B, T) int32; a tenth of the targets is ignored."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, vocab_size, (batch_size, length + 1)).astype(np.int32)
    tokens, targets = ids[:, :-1].copy(), ids[:, 1:].copy()
    targets[rng.random(targets.shape) < 0.1] = IGNORE
    return tokens, targets


def rounded_folder(judge: Any, folder: Path) -> Any:
    """The model with weights rounded to bf16, saved in the folder; in fp32 again."""
    import torch

    judge.to(torch.bfloat16).save_pretrained(folder)
    return type(judge).from_pretrained(
        folder, dtype=torch.float32, attn_implementation=judge.config._attn_implementation
    )


def judge_bf16_results(folder: Path, kind: type, tokens: np.ndarray, targets: np.ndarray) -> Result:
    """What transformers computes in bf16; the loss of its logits in fp32, as here."""
    import torch

    model = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()  # type: ignore[attr-defined]
    return _computed(model, tokens, targets)


def judge_results(model: Any, tokens: np.ndarray, targets: np.ndarray, widen: bool = True) -> Result:
    """What transformers computes in fp64.

    Even then its RMSNorm rounds to fp32, the softmax of its eager attention too (which Gemma 2 has alone), and its cosines
    are torch's fp32 ones, an ulp off the rounded exact ones. `widen` takes the first two out and rounds the third
    correctly, so that the comparison is exact.
    """

    model = model.double().eval()
    if widen and not model._supports_sdpa:
        model.config._attn_implementation = _exact_attention()
    for module in model.modules():
        if widen and type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_wide_rms_norm, module)
        if widen and type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = functools.partial(_rounded_rotary, module)
    return _computed(model, tokens, targets)


def _computed(model: Any, tokens: np.ndarray, targets: np.ndarray) -> Result:
    """Logits, loss and gradients of the model as it is."""
    import torch

    model.zero_grad()
    logits = model(torch.tensor(tokens, dtype=torch.int64)).logits
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        torch.tensor(targets, dtype=torch.int64).flatten(),
        reduction="sum",
        ignore_index=IGNORE,
    )
    loss.backward()
    grads = {
        f"grad.{name}": (param.grad.float() if param.grad.dtype == torch.bfloat16 else param.grad).numpy()
        for name, param in model.named_parameters()
    }
    return {"logits": logits.detach().numpy(), "loss": np.array(loss.item()), **grads}


def _wide_rms_norm(module: Any, x: Any) -> Any:
    import torch

    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    weight = module.weight + 1 if _has_unit_offset(module) else module.weight
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _has_unit_offset(module: Any) -> bool:
    """Whether a norm multiplies by 1 + weight, as Gemma's do."""
    return type(module).__name__.startswith("Gemma") and type(module).__name__.endswith("RMSNorm")


def _rounded_rotary(module: Any, x: Any, position_ids: Any, layer_type: str | None = None) -> Any:
    import torch

    layer = () if layer_type is None else (layer_type,)
    type(module).forward(module, x, position_ids, *layer)  # longrope's frequencies are those of the batch
    prefix = "" if layer_type is None else f"{layer_type}_"
    inv_freq, scaling = (getattr(module, f"{prefix}{name}") for name in ("inv_freq", "attention_scaling"))
    angles = (position_ids[..., None].float() * inv_freq.float()).double()
    return tuple(torch.cat((t, t), -1).float().double() * scaling for t in (angles.cos(), angles.sin()))


def _exact_attention() -> str:
    """The name of eager attention whose softmax has the type of its scores."""
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, softcap: Any, **_: Any) -> Any:
        k, v = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (k, v))
        scores = q @ k.transpose(2, 3) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.softmax(scores + mask, -1)
        return (weights @ v).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("exact", attend)
    AttentionMaskInterface.register("exact", eager_mask)
    return "exact"


def our_results(
    folder: Path, tokens: np.ndarray, targets: np.ndarray, kernels: Any, precision: str
) -> Result:
    """What this project computes from the folder."""
    config = read_model_config(folder)
    numerics = Numerics(kernels, precision)
    model = build_model(config, numerics, tokens.shape[1])
    params = ParamStore(model.params(), numerics)
    load_weights(folder, config, params)
    slot = model.plan(*tokens.shape).allocate()[0]
    params.begin_sums()
    loss, count = model.forward_loss(tokens, targets, slot)
    assert count == np.count_nonzero(targets != IGNORE)
    model.backward_loss(tokens, slot)
    logits = model.head.logits(model.hidden(tokens, slot))
    grads = {f"grad.{t.name}": t.view(t.param.grad).copy() for t in hf_tensors(config, params.params)}
    return {"logits": logits.reshape(*tokens.shape, -1), "loss": np.array(loss), **grads}


def differences(ours: Result, judge: Result) -> dict[str, float]:
    """Relative difference of each tensor; both sides must have the same ones."""
    assert ours.keys() == judge.keys(), sorted(ours.keys() ^ judge.keys())
    found = {}
    for name, wanted in judge.items():
        assert ours[name].shape == wanted.shape, name
        found[name] = float(np.abs(ours[name].astype(np.float64) - wanted).max() / np.abs(wanted).max())
    return found


def table_row(case: str, kernels: str, found: dict[str, float]) -> str:
    """One line: the case, the kernels, and the differences."""
    grads = {name: value for name, value in found.items() if name.startswith("grad.")}
    worst = max(grads, key=lambda name: grads[name])
    return (
        f"{case:22}{kernels:18}{found['logits']:10.1e}{found['loss']:10.1e}{grads[worst]:10.1e}"
        f"  {worst.removeprefix('grad.')}"
    )


HEADING = f"{'model':22}{'kernels':18}{'logits':>10}{'loss':>10}{'gradient':>10}  worst gradient"


def bf16_differences(case: str, hidden_size: int, folder: Path) -> dict[str, dict[str, float]]:
    """Of both in bf16, from transformers in fp64 with the same weights."""
    judge = rounded_folder(build_judge(case, hidden_size), folder)
    tokens, targets = draw_tokens(judge.config.vocab_size)
    wanted = judge_results(judge, tokens, targets)
    best = cython_kernels.load()
    return {
        f"{best.isa} bf16": differences(our_results(folder, tokens, targets, best, "bf16"), wanted),
        "transformers bf16": differences(judge_bf16_results(folder, type(judge), tokens, targets), wanted),
    }


def bf16_rows(case: str, hidden_size: int) -> list[str]:
    """Lines of the table."""
    with tempfile.TemporaryDirectory() as folder:
        found = bf16_differences(case, hidden_size, Path(folder))
        return [table_row(case, name, each) for name, each in found.items()]


def kernel_sets() -> list[tuple[str, Any, str]]:
    """(name, kernels, precision): the reference in fp64 and fp32, and the best compiled set."""
    reference = cython_kernels.load("reference")
    found = [("reference fp64", reference, "fp64"), ("reference fp32", reference, "fp32")]
    best = cython_kernels.load()
    if best.isa != "reference":
        found.append((f"{best.isa} fp32", best, "fp32"))
    return found


def golden_folder(case: str) -> Path:
    """Where a case's golden files stand."""
    return HERE / case


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Parity with transformers, as a table.")
    parser.add_argument("--golden", action="store_true", help="compare with the stored results")
    parser.add_argument(
        "--as-is", action="store_true", help="leave fp32 in transformers' RMSNorm and cosines"
    )
    parser.add_argument("--bf16", action="store_true", help="bf16 here and there, beside fp64")
    parser.add_argument("--hidden-size", type=int, default=48)
    options = parser.parse_args()
    print(HEADING)
    for case in CASES:
        if options.bf16:
            print("\n".join(bf16_rows(case, options.hidden_size)))
            continue
        with tempfile.TemporaryDirectory() as temporary:
            if options.golden:
                folder = golden_folder(case)
                stored = dict(np.load(folder / "results.npz"))
                tokens, targets = stored.pop("tokens"), stored.pop("targets")
            else:
                folder = Path(temporary)
                judge = build_judge(case, options.hidden_size)
                judge.save_pretrained(folder)
                tokens, targets = draw_tokens(judge.config.vocab_size)
                stored = judge_results(judge, tokens, targets, widen=not options.as_is)
            for name, kernels, precision in kernel_sets():
                print(
                    table_row(
                        case,
                        name,
                        differences(our_results(folder, tokens, targets, kernels, precision), stored),
                    )
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
