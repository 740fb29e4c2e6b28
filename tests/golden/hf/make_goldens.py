"""Makes the stored side of the parity check: small models of every family with transformers' results.

    python tests/golden/hf/make_goldens.py      (needs torch and transformers)

Each case's folder holds config.json, model.safetensors as transformers saved it, in one of three types, and
results.npz: tokens, targets, and what transformers computes in fp64 from these very weights (see
hf_parity.judge_results), rounded to fp32: logits, loss (fp64) and the gradient of every tensor.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hf_parity import CASES, build_judge, draw_tokens, golden_folder, judge_results

HIDDEN_SIZE = 16
DTYPES = ("bfloat16", "bfloat16", "float16", "bfloat16", "float32")


def main() -> int:
    """Write all folders."""
    import torch

    total = 0
    for number, case in enumerate(CASES):
        folder = golden_folder(case)
        model = build_judge(case, HIDDEN_SIZE, seed=number).to(getattr(torch, DTYPES[number % len(DTYPES)]))
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        model = type(model).from_pretrained(
            folder, dtype=torch.float32
        )  # its rotary frequencies in fp32 again
        tokens, targets = draw_tokens(model.config.vocab_size, batch_size=2, length=20, seed=number)
        results = judge_results(model, tokens, targets)
        stored = {
            name: value if name == "loss" else value.astype(np.float32) for name, value in results.items()
        }
        np.savez_compressed(folder / "results.npz", tokens=tokens, targets=targets, **stored)
        total += sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(CASES)} folders, {total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
