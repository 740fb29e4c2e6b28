"""`cktrain evaluate MODEL --data FILE`: losses, metrics of answers and their intervals, alone or beside another model; or
`--tasks NAME,…`: tasks of lm-evaluation-harness.

cktrain evaluate runs/support --compare base --data test.jsonl --metrics exact_match,rouge_l
cktrain evaluate runs/support --data runs/support/data --general general.txt --json > result.json
cktrain evaluate runs/support --tasks own_capitals --task-folder tasks
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cktrain.launch import arguments
from cktrain.launch.commands.data import columns_of
from cktrain.launch.commands.generate import add_model_arguments, bind_threads, open_model_of
from cktrain.launch.terminal import needed_output, write

if TYPE_CHECKING:
    from cktrain.loaded_model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain evaluate`."""
    add_model_arguments(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--tasks",
        metavar="NAME,...",
        help="tasks of lm-evaluation-harness instead of rows (extra eval)",
    )
    what.add_argument(
        "--data",
        type=arguments.path,
        help="file of chats or instructions, folder of such, or folder that `cktrain data prepare` made",
    )
    parser.add_argument(
        "--compare",
        type=arguments.path,
        metavar="base|MODEL",
        help="evaluate this model on the same rows too; base: what the run or the adapter started from",
    )
    parser.add_argument(
        "--metrics", default="", help="of answers, with commas between: exact_match, rouge_l (extra eval)"
    )
    parser.add_argument(
        "--answers", type=arguments.whole(0), default=50, help="rows that are answered (default 50); 0: none"
    )
    parser.add_argument(
        "--max-tokens", type=arguments.whole(1, 2**31 - 1), default=256, help="of an answer (default 256)"
    )
    parser.add_argument(
        "--general",
        type=arguments.path,
        metavar="FILE",
        help="text in general, for bits per byte: what was forgotten",
    )
    parser.add_argument(
        "--worst", type=arguments.whole(0), default=20, help="rows of the highest loss to show (default 20)"
    )
    parser.add_argument(
        "--samples", type=arguments.whole(0), default=3, help="answers to show side by side (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, with all answers")
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--split",
        choices=("train", "validation"),
        default="validation",
        help="of a prepared folder (default validation)",
    )
    rows.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be used")
    rows.add_argument(
        "--train-on",
        choices=("assistant", "all", "completion"),
        default="assistant",
        help="what of a file's rows counts: every answer (default), every token, or the completion",
    )
    rows.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="chatml, llama3, plain or a file; default: the model's own",
    )
    rows.add_argument(
        "--columns", metavar="OURS=THEIRS,...", help="what the data calls our keys: prompt=question"
    )
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument(
        "--task-folder", type=arguments.path, metavar="DIR", help="with YAML files of tasks of your own"
    )
    tasks.add_argument(
        "--shots",
        type=arguments.whole(0, 1000),
        help="examples before each question; default: as a task says",
    )
    tasks.add_argument("--limit", type=arguments.whole(1), help="documents of each task; default: all")
    tasks.add_argument("--chat", action="store_true", help="write prompts by the model's chat template")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    needed_output("evaluate")
    _refuse_options_of_the_other(options)
    threads = bind_threads(options)
    if options.tasks is not None:
        return _run_tasks(options, threads)
    from cktrain.evaluation.evaluate import BASE, EvaluationOptions, evaluate_model
    from cktrain.evaluation.report import as_dict, as_text
    from cktrain.evaluation.rows import RowOptions

    asked = EvaluationOptions(
        [name.strip() for name in options.metrics.split(",") if name.strip()],
        options.answers,
        options.max_tokens,
        options.general,
        RowOptions(
            options.train_on,
            options.chat_template,
            columns_of(options.columns) or {},
            options.special_tokens or "text",
            options.skip_bad,
            options.split,
        ),
    )
    opened: list[Model] = []

    def open_one(path: str | Path | None) -> Model:
        opened.clear()
        opened.append(open_model_of(options, threads, path))
        return opened[0]

    compare = options.compare if options.compare in (None, BASE) else Path(options.compare)
    found = evaluate_model(open_one, compare, options.data, asked, _say)
    if options.json:
        write(json.dumps(as_dict(found, options.worst), ensure_ascii=False, indent=1) + "\n")
    else:
        write(as_text(found, opened[0].decode, options.worst, options.samples) + "\n")
    return 0


def _refuse_options_of_the_other(options: argparse.Namespace) -> None:
    """ValueError for what says nothing of rows, or of tasks."""
    of_rows = {"--compare": options.compare, "--metrics": options.metrics, "--general": options.general}
    of_tasks = {"--task-folder": options.task_folder, "--shots": options.shots, "--limit": options.limit}
    of_tasks["--chat"] = options.chat
    given, what = (of_tasks, "--tasks") if options.tasks is None else (of_rows, "--data")
    for name, value in given.items():
        if value is not None and value is not False and value != "":
            raise ValueError(f"[evaluate] {name} is of {what}, which is not given. Leave it out.")


def _run_tasks(options: argparse.Namespace, threads: int) -> int:
    try:
        from cktrain.evaluation.harness import run_tasks, table_of
    except ImportError as error:
        raise ValueError(
            f"[evaluate] --tasks needs EleutherAI's lm-evaluation-harness ({error}): pip install 'cktrain[eval]'."
        ) from None

    options.special_tokens = options.special_tokens or "parse"
    model = open_model_of(options, threads)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    found = run_tasks(
        model,
        names,
        folder=options.task_folder,
        shots=options.shots,
        limit=options.limit,
        chat=options.chat,
    )
    kept = {key: found[key] for key in ("results", "n-shot", "n-samples", "versions") if key in found}
    write((json.dumps(kept, indent=1, default=str) if options.json else table_of(found)) + "\n")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
