"""What became of a fine-tuning: the validation loss before and after, the best checkpoint, and what to do with it next."""

from __future__ import annotations

import shlex
from pathlib import Path

from cktrain.checkpoint_folder import BEST_FOLDER
from cktrain.config import Config
from cktrain.data.chat.template import stock_template
from cktrain.report import METRICS_FILE, read_curve
from cktrain.side_files import read_tokenizer
from cktrain.training.best_checkpoint import best_checkpoint


def losses_in_words(config: Config) -> list[str]:
    """Validation before and after, and the best; nothing where nothing was validated. ValueError: no metrics to read."""
    run = Path(config.run.dir)
    curve = read_curve(run / METRICS_FILE)
    losses = curve.comparable_validation()
    if not losses:
        return []
    (first_step, first), (last_step, last) = losses[0], losses[-1]
    before = f"{first:.4f} before, " if first_step == 0 else ""
    lines = [f"validation loss: {before}{last:.4f} after {last_step:,} steps"]
    if len(losses) < len(curve.validation):
        lines.append(f"note: the validations before step {first_step:,} were of other rows")
    best = best_checkpoint(run / BEST_FOLDER)
    if best is not None and best[1] < last:
        lines.append(f"best: {best[1]:.4f}, {best[0]}")
    elif best is None and first_step == 0 and config.checkpoint.save_best:
        if any(loss < first for _, loss in losses):
            lines.append(f"warning: {run / BEST_FOLDER} could not be written; the log says why")
        else:
            lines.append(
                "warning: no validation was better than before. Try a lower optimizer.lr, or other data"
            )
    return lines


def next_commands(config: Config) -> list[str]:
    """What its user may call now, with the best checkpoint where a later one was worse."""
    run = Path(config.run.dir)
    losses, best = read_curve(run / METRICS_FILE).validation, best_checkpoint(run / BEST_FOLDER)
    source = run / BEST_FOLDER if best is not None and best[1] < losses[-1][1] else run
    given = shlex.quote(str(source))
    beside = (run.parent / f"{run.resolve().name}{what}" for what in ("-adapter", "-model", ".gguf"))
    adapter, model, gguf = (shlex.quote(str(path)) for path in beside)
    merge = "" if config.adapter is None else " --merge"
    talks = stock_template(read_tokenizer(config.data.resolved_path)) is not None
    lines = [f"next: cktrain chat {given}" if talks else f"next: cktrain generate {given} --prompt TEXT"]
    if config.adapter is not None:
        lines.append(f"      cktrain export {given} {adapter} --adapter  # for PEFT")
    lines.append(f"      cktrain export {given} {model}{merge}  # for transformers")
    lines.append(f"      cktrain export {given} {gguf}{merge} --gguf q8_0  # for llama.cpp")
    return lines
