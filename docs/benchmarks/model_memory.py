"""Memory that adapting or training the checkpoints of docs/models.md takes, by `cktrain plan`; nothing is loaded or trained.

    python docs/benchmarks/model_memory.py [--only WORD]

A checkpoint is its published config.json, as far as it is the architecture's, beside a sparse file with the names, shapes
and bf16 types of its weights. One rank, one sequence of 512 tokens, fp32, blocks computed again in the backward pass:

    LoRA      rank 16 on all linears, the frozen weights in bf16, as the file has them
    QLoRA     the same over blocks of 4 bits (model.quantize q4_0)
    all       every weight trained by AdamW: weights, gradients and two moments in fp32
    all, 8    the same with moments of 8 bits (optimizer.name adamw_8bit)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LENGTH = 512
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, **UNTIED}
QWEN2 = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "vocab_size": 151936}
QWEN3 = {**QWEN2, "model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": True}
GEMMA3 = {"model_type": "gemma3_text", "head_dim": 256, "vocab_size": 262144, "sliding_window": 512}


def sizes(hidden: int, layers: int, heads: int, kv: int, inner: int, **more: Any) -> dict[str, Any]:
    """Keys of config.json."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": inner,
        **more,
    }


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {**LLAMA, **sizes(576, 30, 9, 3, 1536, vocab_size=49152, **TIED)},
    "SmolLM2-360M": {**LLAMA, **sizes(960, 32, 15, 5, 2560, vocab_size=49152, **TIED)},
    "SmolLM2-1.7B": {**LLAMA, **sizes(2048, 24, 32, 32, 8192, vocab_size=49152, **TIED)},
    "Llama-3.2-1B": {**LLAMA, **sizes(2048, 16, 32, 8, 8192, vocab_size=128256, **TIED)},
    "Llama-3.2-3B": {**LLAMA, **sizes(3072, 28, 24, 8, 8192, vocab_size=128256, head_dim=128, **TIED)},
    "Llama-3.1-8B": {**LLAMA, **sizes(4096, 32, 32, 8, 14336, vocab_size=128256)},
    "Mistral-7B": {**LLAMA, **sizes(4096, 32, 32, 8, 14336, vocab_size=32768), "model_type": "mistral"},
    "Qwen2.5-0.5B": {**QWEN2, **sizes(896, 24, 14, 2, 4864, **TIED)},
    "Qwen2.5-1.5B": {**QWEN2, **sizes(1536, 28, 12, 2, 8960, **TIED)},
    "Qwen3-0.6B": {**QWEN3, **sizes(1024, 28, 16, 8, 3072)},
    "Qwen3-1.7B": {**QWEN3, **sizes(2048, 28, 16, 8, 6144)},
    "Qwen3-4B": {**QWEN3, **sizes(2560, 36, 32, 8, 9728)},
    "Gemma-3-270M": {**GEMMA3, **sizes(640, 18, 4, 1, 2048)},
    "Gemma-3-1B": {**GEMMA3, **sizes(1152, 26, 4, 1, 6912)},
    "Gemma-3-4B, text": {**GEMMA3, **sizes(2560, 34, 8, 4, 10240, vocab_size=262208, sliding_window=1024)},
    "Gemma-2-2B": {
        "model_type": "gemma2",
        "head_dim": 256,
        "vocab_size": 256000,
        "sliding_window": 4096,
        **sizes(2304, 26, 8, 4, 9216),
    },
    "SmolLM3-3B": {
        **LLAMA,
        **sizes(2048, 36, 16, 4, 11008, vocab_size=128256, **TIED),
        "model_type": "smollm3",
    },
    "Phi-4-mini": {
        **LLAMA,
        **sizes(3072, 32, 24, 8, 8192, vocab_size=200064, partial_rotary_factor=0.75, **TIED),
        "model_type": "phi3",
    },
    "OLMo-2-1B": {**LLAMA, **sizes(2048, 16, 16, 16, 8192, vocab_size=100352), "model_type": "olmo2"},
    "OLMo-2-7B": {**LLAMA, **sizes(4096, 32, 32, 32, 11008, vocab_size=100352), "model_type": "olmo2"},
    "Granite-4.1-3B": {
        **LLAMA,
        **sizes(2560, 40, 40, 8, 8192, vocab_size=100352, head_dim=64, **TIED),
        "model_type": "granite",
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": {"r": 16, "target_modules": "all-linear"}},
    "QLoRA": {"adapter": {"r": 16, "target_modules": "all-linear"}, "quantize": "q4_0"},
    "all": {},
    "all, 8": {"optimizer": "adamw_8bit"},
}


def write_folder(folder: Path, values: dict[str, Any]) -> int:
    """config.json and a sparse file of bf16 weights; how many weights there are."""
    from cktrain import cython_kernels
    from cktrain.hf.config_json import read_model_config
    from cktrain.hf.tensors import hf_tensors
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    config = read_model_config(folder)
    model = build_model(config, Numerics(cython_kernels.load("reference"), "fp32"), 1)
    header: dict[str, Any] = {}
    end = 0
    for tensor in hf_tensors(config, model.params()):
        begin, end = end, end + 2 * int(np.prod(tensor.shape))
        header[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return end // 2


def planned(folder: Path, model: Path, way: dict[str, Any]) -> float:
    """GB of one rank, by `cktrain plan`."""
    tokens = folder / "tokens.bin"
    np.zeros(100_000, np.uint32).tofile(tokens)
    optimizer = {"lr": 1e-4, **({"name": way["optimizer"]} if "optimizer" in way else {})}
    values = {
        "run": {"dir": str(folder / "run"), "steps": 10},
        "model": {
            "from_pretrained": str(model),
            **({"quantize": way["quantize"]} if "quantize" in way else {}),
        },
        "data": {"path": str(tokens), "dtype": "uint32", "sequence_length": LENGTH},
        "batch": {"micro_batch_size": 1, "global_batch_size": 1},
        "optimizer": optimizer,
        "memory": {"checkpointing": "block"},
        **({"adapter": way["adapter"]} if "adapter" in way else {}),
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    command = ["plan", str(file), "--memory-only", "--json", "--memory", "1024GiB", "--threads", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "cktrain.launch.cli", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return float(json.loads(done.stdout)["node_bytes"]) / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", help="checkpoints whose name has this word")
    options = parser.parse_args()
    print(f"| checkpoint | parameters | {', GB | '.join(WAYS)}, GB |\n|---|---|{'---|' * len(WAYS)}")
    for name, values in CHECKPOINTS.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            count = write_folder(folder / "model", values)
            found = [planned(folder, folder / "model", way) for way in WAYS.values()]
        print(f"| {name} | {count / 1e9:.3f} B | {' | '.join(f'{one:.1f}' for one in found)} |", flush=True)


if __name__ == "__main__":
    main()
