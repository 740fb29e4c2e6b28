"""Parity with transformers, as a table: logits, loss and gradients of small models of every family.

    python tests/golden/hf/hf_parity.py            beside transformers (needs torch and transformers)
    python tests/golden/hf/hf_parity.py --as-is    the same, its RMSNorm and cosines left in fp32
    python tests/golden/hf/hf_parity.py --golden   beside the stored results (made by make_goldens.py)

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
        if derived:
            values["head_dim"] = hidden_size // values["num_attention_heads"]
    dtype = values.pop("dtype")
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    # sdpa: the eager path computes its softmax in fp32 even in an fp64 model.
    config._attn_implementation = "sdpa"
    return config, dtype


def build_judge(case: str, hidden_size: int | None = None, seed: int = 0) -> Any:
    """The case's transformers model in fp32: weights of standard deviation 0.2, norm weights around 1."""
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
            param.normal_(mean=1.0 if is_norm_weight else 0.0, std=0.2)
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


def judge_results(model: Any, tokens: np.ndarray, targets: np.ndarray, widen: bool = True) -> Result:
    """What transformers computes in fp64.

    Even then its RMSNorm rounds to fp32 and its cosines are torch's fp32 ones, an ulp off the rounded exact
    ones. `widen` takes the first out and rounds the second correctly, so that the comparison is exact.
    """
    import torch

    model = model.double().eval()
    for module in model.modules():
        if widen and type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_wide_rms_norm, module)
        if widen and type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = functools.partial(_rounded_rotary, module)
    model.zero_grad()
    logits = model(torch.tensor(tokens, dtype=torch.int64)).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1),
        torch.tensor(targets, dtype=torch.int64).flatten(),
        reduction="sum",
        ignore_index=IGNORE,
    )
    loss.backward()
    grads = {f"grad.{name}": param.grad.numpy() for name, param in model.named_parameters()}
    return {"logits": logits.detach().numpy(), "loss": np.array(loss.item()), **grads}


def _wide_rms_norm(module: Any, x: Any) -> Any:
    import torch

    return module.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon))


def _rounded_rotary(module: Any, x: Any, position_ids: Any) -> Any:
    import torch

    angles = (position_ids[..., None].float() * module.inv_freq.float()).double()
    return tuple(
        torch.cat((t, t), -1).float().double() * module.attention_scaling
        for t in (angles.cos(), angles.sin())
    )


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
    parser.add_argument("--hidden-size", type=int, default=48)
    options = parser.parse_args()
    print(HEADING)
    for case in CASES:
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
