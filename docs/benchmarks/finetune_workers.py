"""Processes that take fine-tuning steps when asked: cktrain on a configuration, PEFT on transformers' model.

Both read the same Hugging Face folder. `SHAPES` are those of models that people fine-tune; `write_model` makes a folder of
random bf16 weights of such a shape, so that nothing is to be fetched. A worker answers lines as contenders.py says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from contenders import Run, Workers, answer

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_theta": 1e5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": SMOLLM2,
    "smollm2-10": {**SMOLLM2, "num_hidden_layers": 10},
    "llama-1b": LLAMA_1B,
    "llama-1b-4": {**LLAMA_1B, "num_hidden_layers": 4},
}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


def write_model(folder: Path, shape: str) -> None:
    """A Hugging Face folder of random weights of the shape, in bf16."""
    from cktrain import cython_kernels
    from cktrain.hf.folder import save_folder
    from cktrain.memory.param_store import ParamStore
    from cktrain.models import parse_model
    from cktrain.models.build import build_model
    from cktrain.nn.numerics import Numerics

    config = parse_model({"family": "llama", **SHAPES[shape]})
    numerics = Numerics(cython_kernels.load(), "fp32")
    params = ParamStore(build_model(config, numerics, 1).params(), numerics)
    params.initialize(0)
    save_folder(folder, config, params, dtype="bfloat16")


def model_folder(folder: Path, shape: str) -> Path:
    """The folder of such a model below `folder`, made by a process of its own where it is not there yet."""
    made = folder / shape
    if not made.exists():
        subprocess.run([sys.executable, __file__, "make", str(made), shape], check=True)
    return made


def random_tokens(folder: Path, vocab_size: int) -> Path:
    """A raw uint32 file of 200,000 random ids below the vocabulary's size."""
    import numpy as np

    file = folder / f"tokens-{vocab_size}.bin"
    if not file.exists():
        np.random.default_rng(0).integers(0, vocab_size, 200_000).astype(np.uint32).tofile(file)
    return file


def configuration(
    folder: Path,
    name: str,
    shape: str,
    length: int,
    rows: int,
    *,
    adapter: Mapping[str, Any] | None = LORA,
    **blocks: Any,
) -> dict[str, Any]:
    """Of the run `name` of cktrain on `rows` sequences of `length` random tokens; `blocks` add to it, or replace."""
    values: dict[str, Any] = {
        "run": {"dir": str(folder / name), "steps": 1_000_000},
        "model": {"from_pretrained": str(model_folder(folder, shape))},
        "data": {
            "path": str(random_tokens(folder, SHAPES[shape]["vocab_size"])),
            "dtype": "uint32",
            "sequence_length": length,
        },
        "batch": {"micro_batch_size": rows, "global_batch_size": rows},
        "optimizer": {"lr": 1e-4, "weight_decay": 0.0, "betas": [0.9, 0.999]},
        "checkpoint": {"every": 0, "resume": "none"},
        "precision": "fp32",
    }
    return {**values, **({} if adapter is None else {"adapter": dict(adapter)}), **blocks}


def cktrain_steps(values: dict[str, Any]) -> Run:
    """Steps of the run that the configuration describes, on this rank's cores."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    mode = values.get("launch", {}).get("bind", "auto")
    binding = bind(read_process_environment(os.environ), mode=mode)
    from cktrain.comm import bootstrap
    from cktrain.compose import compose
    from cktrain.config import Config

    config = Config.model_validate(values)
    group = bootstrap.init(
        transport=config.comm.transport, environ=os.environ, engine_core=binding.progress_core
    )
    trainer = compose(config, group, binding.threads).trainer
    return lambda n: sum(trainer.step().comm_seconds for _ in range(n))


def peft_steps(values: dict[str, Any]) -> Run:
    """Steps of PEFT on PyTorch as its users write them: SDPA, fused AdamW, fp32; compiled where `values` say so."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        values["folder"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **LORA))
    model.train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    forward = torch.compile(model) if values["compiled"] else model
    ids = torch.randint(base.config.vocab_size, (values["rows"], values["length"]))

    def run(n: int) -> float:
        for _ in range(n):
            forward(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return 0.0

    return run


STEPS = {"cktrain": cktrain_steps, "peft": peft_steps}


def start(
    name: str,
    kind: str,
    values: dict[str, Any],
    *,
    warm_up: int = 1,
    commands: Sequence[Sequence[str]] = ((),),
    environments: Sequence[Mapping[str, str]] = ({},),
) -> Workers:
    """A contender; of several ranks each has what its command line begins with, and its environment."""
    workers = []
    for prefix, environment in zip(commands, environments, strict=True):
        command = [*prefix, sys.executable, __file__, kind, json.dumps(values), str(warm_up)]
        workers.append(
            subprocess.Popen(
                command,
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    return Workers(name, workers)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        write_model(Path(sys.argv[2]), sys.argv[3])
    else:
        answer(STEPS[sys.argv[1]](json.loads(sys.argv[2])), int(sys.argv[3]))
