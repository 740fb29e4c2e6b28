"""The runs of a comparison, as a table, and why these.

The whole product of families, instruction sets, precisions, layouts and options is some thousand runs. What can go
wrong in one place only is run once:

- A family is a way to put modules together: each one runs alone, in fp32, in bf16 and on the fp64 reference kernels.
- An instruction set is a set of kernels: each runs, in fp32 and bf16, the two models that together call every op.
- A layout is a way to divide and to add: each runs for a Llama with grouped heads and for GPT-2 (biases, learned
  positions, a tied head on two stages), in fp32; in bf16 and in fp64 where copies or types differ.
- An option (accumulation is in all of them) runs alone and in the layout with which it meets most.
- Each example runs in its own layout and precision, smaller.

"ISA" in a case is "" for the best compiled set, a set's name, or "reference". What is longer than a second is made
smaller: the bits of a wrong order of additions differ in the first steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Blocks = dict[str, Any]

STEPS = 20
WORDS = 512
UNEVEN_WORDS = 61
PREPARED, RAW = "../data/prepared", f"../data/{UNEVEN_WORDS}.bin"

BASE: Blocks = {
    "run": {"steps": STEPS, "seed": 3},
    "data": {"path": PREPARED, "sequence_length": 32, "validation": {"every": 10, "batches": 1}},
    "batch": {"micro_batch_size": 2, "global_batch_size": 8},
    "optimizer": {"lr": 1e-2},
    "schedule": {"warmup_steps": 3},
    "checkpoint": {"every": 0, "resume": "none"},
    "log": {"every": 1},
    "launch": {"bind": "none", "threads": 1},
}

SMALL: Blocks = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": WORDS,
    "initializer_range": 0.1,
}
LLAMA: Blocks = {"family": "llama", **SMALL, "num_key_value_heads": 2, "intermediate_size": 96}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MIXED = {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}

FAMILIES: dict[str, Blocks] = {
    "llama": LLAMA,
    "llama 3, tied": {**LLAMA, "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "mistral": {**LLAMA, "sliding_window": 8},
    "qwen2": {**LLAMA, "qkv_bias": True, "rms_norm_eps": 1e-6},
    "qwen3, tied": {**LLAMA, "qk_norm": True, "head_dim": 32, "tie_word_embeddings": True},
    "gpt2": {"family": "gpt2", **SMALL},
    "gpt2, untied": {
        "family": "gpt2",
        **SMALL,
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
}
EVERY_OP: dict[str, Blocks] = {
    "everything": {**LLAMA, **MIXED, "qk_norm": True, "attention_bias": True, "mlp_bias": True},
    "gpt2": FAMILIES["gpt2"],
}
"""Together they call every op; "everything" has all that a Llama may have."""


@dataclass(frozen=True)
class Case:
    """One run, done by both sides in the same words."""

    name: str
    blocks: Blocks = field(default_factory=dict)
    """Over BASE, or over the example's file."""
    example: str = ""
    """The side's own examples/NAME; otherwise the configuration is BASE."""
    ranks: int = 1
    isa: str = ""
    launcher: str = "cktrain launch"
    """Of several ranks: cktrain launch or mpirun."""
    quick: bool = False
    exported: bool = False
    """Its checkpoint is also exported, imported and asked to write."""
    resumed: bool = False
    """A second run goes on from the checkpoint of its middle."""


def merged(base: Blocks, over: Blocks) -> Blocks:
    """Blocks over blocks, key by key."""
    both = dict(base)
    for key, value in over.items():
        deeper = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = merged(both[key], value) if deeper else value
    return both


def _blocks(model: Blocks, precision: str, *over: Blocks) -> Blocks:
    blocks: Blocks = {"model": model, "precision": precision}
    for more in over:
        blocks = merged(blocks, more)
    return blocks


def _ranks(blocks: Blocks) -> int:
    """The product of the degrees; one that is "the rest" counts 2."""
    parallel = blocks.get("parallel", {})
    return math.prod(abs(parallel.get(axis, 1)) for axis in ("data", "tensor", "pipeline")) * (
        2 if parallel.get("data") == -1 else 1
    )


ONE: Blocks = {"launch": {"threads": 2}}
LAYOUTS: dict[str, Blocks] = {
    "data 2": {"parallel": {"data": 2}},
    "tensor 2": {"parallel": {"tensor": 2}},
    "pipeline 2": {"parallel": {"pipeline": 2, "cut": "flops"}},
    "2 x 2 x 2": {"parallel": {"data": 2, "tensor": 2, "pipeline": 2, "cut": "flops"}},
}
ACCUMULATION: Blocks = {"batch": {"micro_batch_size": 1}}
BLOCK: Blocks = {"memory": {"checkpointing": "block"}}
DOCUMENTS: Blocks = {"data": {"document_mask": True}}
LONG: Blocks = {"data": {"sequence_length": 160}}
"""Three tiles of attention's kernel, the last one partly filled."""
MANY_WORDS: Blocks = {
    "model": {"vocab_size": 32000},
    "data": {"sequence_length": 128},
    "batch": {"micro_batch_size": 4},
}
"""The head computes its logits in three chunks of rows."""
DETERMINISTIC: Blocks = {"run": {"deterministic": True}}
UNEVEN: Blocks = {
    "model": {"vocab_size": UNEVEN_WORDS},
    "data": {"path": RAW, "validation": {"path": RAW}},
}
SGD: Blocks = {"optimizer": {"name": "sgd", "nesterov": True}, "schedule": {"name": "linear"}}

# name -> (model, precision, what differs, in quick)
OPTIONS: dict[str, tuple[str, str, tuple[Blocks, ...], bool]] = {
    "accumulation, one thread": ("everything", "fp32", (ACCUMULATION,), False),
    "block": ("everything", "bf16", (ONE, BLOCK), True),
    "block, pipeline 2": ("gpt2", "fp32", (BLOCK, LAYOUTS["pipeline 2"]), False),
    "longer": ("everything", "bf16", (ONE, LONG, {"model": {"sliding_window": 96}}), False),
    "many words": ("everything", "fp32", (ONE, MANY_WORDS), False),
    "documents": ("everything", "fp32", (ONE, LONG, DOCUMENTS), True),
    "documents, 2 x 2 x 2": ("everything", "fp32", (LONG, DOCUMENTS, LAYOUTS["2 x 2 x 2"]), False),
    "deterministic, alone": ("gpt2", "fp32", (DETERMINISTIC, ACCUMULATION), False),
    "deterministic, data 2, no ZeRO": (
        "everything",
        "fp32",
        (DETERMINISTIC, ACCUMULATION, LAYOUTS["data 2"], {"parallel": {"zero": 0}}),
        False,
    ),
    "data 2, no ZeRO": ("gpt2", "fp32", (LAYOUTS["data 2"], {"parallel": {"zero": 0}}), False),
    "gpipe": ("gpt2", "fp32", (LAYOUTS["pipeline 2"], {"parallel": {"schedule": "gpipe"}}), False),
    "61 words, tensor 2": ("everything", "fp32", (UNEVEN, LAYOUTS["tensor 2"]), False),
    "sgd": ("gpt2", "fp32", (ONE, SGD), False),
    "bf16 on the wire, data 2": (
        "everything",
        "bf16",
        (LAYOUTS["data 2"], {"comm": {"wire_dtype": "bf16"}}),
        False,
    ),
    "resumed": ("everything", "bf16", (ONE, {"checkpoint": {"every": STEPS // 2}}), False),
}


def cases(examples: Path, sets: list[str]) -> list[Case]:
    """The table. `sets` are the kernel sets of this machine: "reference", then the compiled ones, best last."""
    return [
        *_families(),
        *_instruction_sets([name for name in sets if name != "reference"]),
        *_layouts(),
        *_options(),
        *_examples(examples),
    ]


def _families() -> Iterator[Case]:
    for name, model in FAMILIES.items():
        quick = name in ("qwen3, tied", "gpt2")
        blocks = _blocks(model, "fp32", ONE)
        yield Case(f"{name}: fp32", blocks, quick=quick, exported=True)
        yield Case(f"{name}: bf16", _blocks(model, "bf16", ONE))
        yield Case(f"{name}: fp64", _blocks(model, "fp64"), isa="reference", quick=name == "qwen2")


def _instruction_sets(compiled: list[str]) -> Iterator[Case]:
    for isa in compiled:
        for name, model in EVERY_OP.items():
            for precision in ("fp32", "bf16"):
                quick = name == "everything" and isa == compiled[-1]
                yield Case(
                    f"{name}: {precision}, {isa}", _blocks(model, precision, ONE), isa=isa, quick=quick
                )


def _layouts() -> Iterator[Case]:
    for layout, over in LAYOUTS.items():
        ranks = _ranks(over)
        for name, model in (("qwen3, tied", FAMILIES["qwen3, tied"]), ("gpt2", FAMILIES["gpt2"])):
            quick = layout in ("tensor 2", "2 x 2 x 2") and name == "qwen3, tied"
            yield Case(f"{name}: fp32, {layout}", _blocks(model, "fp32", over), ranks=ranks, quick=quick)
        yield Case(f"everything: bf16, {layout}", _blocks(EVERY_OP["everything"], "bf16", over), ranks=ranks)
    for name, layout in (("everything", "2 x 2 x 2"), ("gpt2", "tensor 2")):
        over = LAYOUTS[layout]
        blocks = _blocks(EVERY_OP[name], "fp64", over)
        yield Case(f"{name}: fp64, {layout}", blocks, ranks=_ranks(over), isa="reference")
    over = merged(LAYOUTS["data 2"], {"comm": {"transport": "mpi"}})
    blocks = _blocks(FAMILIES["llama"], "fp32", over)
    yield Case("llama: fp32, data 2 over MPI", blocks, ranks=2, launcher="mpirun")


def _options() -> Iterator[Case]:
    for option, (name, precision, over, quick) in OPTIONS.items():
        blocks = _blocks(EVERY_OP[name], precision, *over)
        resumed = option == "resumed"
        yield Case(
            f"{name}: {precision}, {option}", blocks, ranks=_ranks(blocks), quick=quick, resumed=resumed
        )


SMALLER: Blocks = {
    "run": {"steps": STEPS},
    "model": {"num_hidden_layers": 2, "hidden_size": 96, "vocab_size": WORDS},
    "data": {"path": PREPARED, "sequence_length": 64, "validation": {"every": 10, "batches": 1}},
    "batch": {"micro_batch_size": 1, "global_batch_size": 8},
    "schedule": {"warmup_steps": 3},
    "comm": {"transport": "auto"},
    "checkpoint": {"every": 0, "resume": "none"},
    "log": {"every": 1},
    "launch": {"bind": "none", "threads": 1},
}
"""What an example becomes here: its layout, its family, its options and its precision stay."""


def _examples(folder: Path) -> Iterator[Case]:
    for path in sorted(folder.glob("*.yaml")):
        blocks = yaml.safe_load(path.read_text())
        if "from_pretrained" in blocks.get(
            "model", {"from_pretrained": ""}
        ):  # a user's folder; machines, not a run
            continue
        over = SMALLER
        if "decay_steps" in blocks.get("schedule", {}):
            over = merged(over, {"schedule": {"decay_steps": STEPS // 2}})
        if blocks.get("parallel", {}).get("pipeline", 1) > 1:
            over = merged(over, {"parallel": {"cut": "flops"}})
        ranks = _ranks(blocks)
        quick = path.stem in ("demo", "pipeline")
        yield Case(f"examples/{path.name}", over, example=path.name, ranks=ranks, quick=quick)


# Bytes are planned for these, without running them: name -> (file of the repository, what differs, ranks).
PLANS: dict[str, tuple[str, Blocks, int]] = {
    "reference, fp32": ("docs/benchmarks/reference.yaml", {"precision": "fp32"}, 1),
    "reference, fp32, block": (
        "docs/benchmarks/reference.yaml",
        {"precision": "fp32", "memory": {"checkpointing": "block"}},
        1,
    ),
    "reference, bf16": ("docs/benchmarks/reference.yaml", {"precision": "bf16"}, 1),
    "reference, fp32, data 2": (
        "docs/benchmarks/reference.yaml",
        {"precision": "fp32", "batch": {"global_batch_size": 8}, "parallel": {"data": 2}},
        2,
    ),
    "reference, bf16, 2 x 2 x 2": (
        "docs/benchmarks/reference.yaml",
        {
            "precision": "bf16",
            "batch": {"micro_batch_size": 1, "global_batch_size": 8},
            "parallel": {"data": 2, "tensor": 2, "pipeline": 2, "cut": "flops"},
        },
        8,
    ),
    "demo": ("examples/demo.yaml", {}, 1),
    "accumulation": ("examples/accumulation.yaml", {}, 1),
}
QUICK_PLANS = ("reference, fp32", "reference, bf16, 2 x 2 x 2")
