"""Makes the stored side of the parity check: small models of every family with transformers' results.

    python tests/golden/hf/make_goldens.py [CASE ...]      (needs torch and transformers)

A new case is a folder with a config.json, which says the type of the weights too (`dtype`). This adds model.safetensors as
transformers saves it, and results.npz: tokens, targets, and what transformers computes in fp64 from these very weights (see
hf_parity.judge_results), rounded to fp32: logits, loss (fp64) and the gradient of every tensor. A case's
weights depend on its name alone.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from hf_parity import CASES, build_judge, draw_tokens, golden_folder, judge_config, judge_results


def main() -> int:
    """Write the folders."""
    import torch

    total = 0
    for case in sys.argv[1:] or CASES:
        folder, seed = golden_folder(case), zlib.crc32(case.encode())
        model = build_judge(case, seed=seed).to(getattr(torch, judge_config(case)[1]))
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        model = type(model).from_pretrained(
            folder, dtype=torch.float32
        )  # its rotary frequencies in fp32 again
        tokens, targets = draw_tokens(model.config.vocab_size, batch_size=2, length=20, seed=seed)
        results = judge_results(model, tokens, targets)
        stored = {
            name: value if name == "loss" else value.astype(np.float32) for name, value in results.items()
        }
        np.savez_compressed(folder / "results.npz", tokens=tokens, targets=targets, **stored)
        total += sum(path.stat().st_size for path in folder.iterdir())
    print(f"{total:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
