"""`cktrain finetune MODEL DATA -o RUN`: prepare the data, write the configuration, say what to expect, train, compare.

cktrain finetune models/smol chats.jsonl -o runs/support             an adapter (LoRA) beside the model's weights
cktrain finetune smol.gguf chats.jsonl -o runs/support --full        all weights, of a GGUF file
cktrain finetune models/smol pairs.jsonl -o runs/better --objective dpo    preference: prompt, chosen, rejected
cktrain finetune models/smol chats.jsonl -o runs/support --dry-run   all but the training
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktrain.launch import arguments
from cktrain.launch.commands.data import add_chat_arguments, given_chat_options

if TYPE_CHECKING:
    from cktrain.config import Config
    from cktrain.folder_lock import FolderLock
    from cktrain.host.bind import Binding

EXIT_INPUT = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain finetune`."""
    parser.add_argument(
        "model", type=arguments.path, help="Hugging Face folder, GGUF file, run or checkpoint"
    )
    parser.add_argument(
        "data",
        type=arguments.path,
        help="file of chats or instructions, folder of such, or folder that `cktrain data prepare` made",
    )
    parser.add_argument(
        "-o", "--out", type=arguments.path, required=True, metavar="RUN", help="folder of the run"
    )
    parser.add_argument(
        "--full", action="store_true", help="train all weights; default: an adapter beside them"
    )
    parser.add_argument(
        "--epochs",
        type=arguments.number(1e-6, 1e6),
        help="passes over the data; default: 3 of an adapter, 2 of all weights, 1 of preference",
    )
    parser.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="hold the frozen weights in blocks of few bits, as q8_0, or a GGUF file's own: stored (docs/quantized.md)",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the configuration, for instance --set adapter.r=8",
    )
    parser.add_argument("--dry-run", action="store_true", help="prepare and say what to expect; do not train")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with the run that RUN holds")
    again.add_argument(
        "--overwrite", action="store_true", help="start afresh in RUN; the checkpoints there are set aside"
    )
    add_chat_arguments(parser)
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--validation", type=arguments.held_out, help="share of the rows held out; default: 0.05"
    )
    rows.add_argument(
        "--special-tokens",
        choices=("text", "parse"),
        help="special tokens that are written out in messages: ordinary text (default), or the tokens",
    )
    rows.add_argument("--eos-token", metavar="TOKEN", help="token that ends a row of text without a template")
    rows.add_argument(
        "--skip-bad", action="store_true", help="leave out rows that cannot be used, into rejected.jsonl"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Prepare, plan, train, compare; returns the exit status."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.config import LaunchConfig
    from cktrain.host.process import bind_for

    process = read_process_environment(os.environ)
    if process.rank > 0 or (process.size or 1) > 1:
        raise ValueError(
            f"[finetune] several ranks were started ({process.variables} say so), and it prepares as one. Give --dry-run "
            "without them, then start `cktrain train RUN/finetune.yaml` with them; if nobody started others, set "
            "CKTRAIN_SIZE=1."
        )
    binding = bind_for(LaunchConfig(), 1, process)  # before numpy is imported; the run's own binding follows
    from cktrain.fine_tuning import owned_run

    with owned_run(options.out) as lock:
        return _prepare_and_train(options, binding, lock)


def _prepare_and_train(options: argparse.Namespace, binding: Binding, lock: FolderLock) -> int:
    from cktrain.fine_tuning import FineTuning, prepare

    goes_on = _goes_on(options)
    chat = given_chat_options(options)
    if options.validation is not None:
        chat["validation_fraction"] = options.validation
    for name in ("special_tokens", "eos_token"):
        if getattr(options, name) is not None:
            chat[name] = getattr(options, name)
    if options.skip_bad:
        chat["skip_bad"] = True
    chat.pop("preference", None)  # which the objective says
    held = [] if options.quantize is None else [f"model.quantize={options.quantize}"]
    held += [] if options.objective is None else [f"objective.name={options.objective}"]
    asked = FineTuning(
        options.model,
        options.data,
        options.out,
        full=options.full,
        epochs=options.epochs,
        chat=chat,
        overrides=[*held, *options.overrides],
    )
    prepared = prepare(asked, say=_say, lock=lock, goes_on=goes_on)
    print("\n".join(prepared.lines), flush=True)
    refusal = _say_plan(prepared.config, prepared.file, binding)
    print(f"configuration: {prepared.file}", flush=True)
    if refusal:
        print(f"cktrain: {refusal}", file=sys.stderr)
        return EXIT_INPUT
    overrides = [] if goes_on else ["checkpoint.resume=none"]
    if options.dry_run:
        words = ["cktrain", "train", str(prepared.file), *(f"--set={override}" for override in overrides)]
        print(f"train with: {shlex.join(words)}")
        return 0
    from cktrain.launch.commands import train

    lock.hand_over()
    status = train.run(argparse.Namespace(config=str(prepared.file), overrides=overrides, flag=options.flag))
    if status == 0:
        from cktrain.fine_tuning_result import losses_in_words, next_commands

        print("\n".join([*losses_in_words(prepared.config), *next_commands(prepared.config)]), flush=True)
    return status


def _goes_on(options: argparse.Namespace) -> bool:
    """Whether the run in RUN, if there is one, is to go on. ValueError: there is one, and nobody said what to do."""
    from cktrain.fine_tuning import holds_run, refuse_used

    if options.overwrite:
        return False
    if options.resume or not holds_run(options.out):
        if options.resume and not any(Path(options.out, "checkpoints").glob("step-*")):
            _say(f"[finetune] {options.out} has no checkpoint to go on from: it begins with step 1.")
        return True
    if not (sys.stdin is not None and sys.stdin.isatty()):
        refuse_used(options.out)
    question = f"{options.out} holds a run. Go on with it (r), start afresh and set its checkpoints aside (o), or stop (s)? "
    try:
        answer = input(question).strip().lower()
    except EOFError:  # Ctrl-D
        answer = ""
    if answer not in ("r", "o"):
        refuse_used(options.out)
    return answer == "r"


def _say_plan(config: Config, file: Path, binding: Binding) -> str:
    """Memory and time by `cktrain plan`; returns why the run does not fit, or nothing."""
    from cktrain.comm.solo_group import SoloGroup
    from cktrain.launch.commands import plan as plan_command
    from cktrain.plan.plan import gib
    from cktrain.training.metrics import format_seconds

    parser = argparse.ArgumentParser()
    plan_command.add_arguments(parser)
    found = plan_command.plan_here(parser.parse_args([str(file)]), config, SoloGroup(), binding)
    plan = found.plan
    if found.batch:
        print(found.batch)
    print(f"memory: {gib(plan.node_bytes)} of {gib(plan.machine.node_bytes)}, in {plan.precision}")
    measured = found.source.partition("; links")[0]  # of one rank there are none
    if plan.step is None:
        print(found.source)
    else:
        steps = config.run.total_steps
        print(
            f"time: {_short(plan.step.step)} a step, {plan.tokens_per_second or 0:,.0f} tokens/s: about "
            f"{format_seconds(plan.step.step * steps)} for {steps:,} steps, and validation ({measured})"
        )
        if not plan.step.beside:
            an_epoch = plan.step.reference * steps / (config.run.epochs or 1.0)
            print(f"reference: about {format_seconds(an_epoch)} before the first step, once")
    if plan.disturbance:
        print(f"note: {plan.disturbance}")
    return found.refusal


def _short(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _say(text: Any) -> None:
    print(text, file=sys.stderr, flush=True)
