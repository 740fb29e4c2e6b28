"""`cktrain generate MODEL --prompt TEXT`: continue a text with a run, a Hugging Face folder or a GGUF file.

cktrain generate runs/demo --prompt 'def '                              tokens appear as they are made
cktrain generate runs/demo --prompts prompts.txt --temperature 0        a prompt per line; out come JSON lines
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cktrain.launch import arguments
from cktrain.launch.terminal import needed_output, write

if TYPE_CHECKING:
    from cktrain.generation.sampler import Sampler
    from cktrain.loaded_model import Model

EXIT_INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain generate`."""
    add_model_arguments(parser)
    parser.add_argument(
        "--batch",
        type=arguments.whole(1, 4096),
        help="prompts of a file that are continued side by side (default 6)",
    )
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--prompt", default="", help="text to continue; default: the start of a document")
    prompts.add_argument(
        "--prompts",
        type=arguments.path,
        metavar="FILE",
        help='file with a prompt per line, or, where it ends in .jsonl, lines of {"prompt": TEXT}; out come JSON lines',
    )
    parser.add_argument(
        "--max-tokens",
        type=arguments.whole(0, 2**31 - 1),
        default=100,
        help="tokens to generate at most (default 100)",
    )
    add_sampling_arguments(parser, temperature=0.8)
    parser.set_defaults(run=_run)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and how it is opened."""
    parser.add_argument(
        "model",
        type=arguments.path,
        help="folder of a run, a checkpoint, a Hugging Face folder, or a GGUF file",
    )
    parser.add_argument(
        "--adapter",
        type=arguments.path,
        help="PEFT's folder, or a run of an adapter, beside a Hugging Face folder",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="what products are computed in; weights stay as their files have them (default fp32)",
    )
    parser.add_argument(
        "--kv-dtype",
        choices=("fp32", "bf16"),
        help="what keys and values are kept in; default: what products are computed in",
    )
    parser.add_argument(
        "--quantize",
        metavar="FORMAT",
        help="hold the matrices in blocks of few bits, as q8_0 (docs/quantized.md); default: in --dtype, or as the run "
        "of an adapter held them",
    )
    parser.add_argument(
        "--activations",
        choices=("exact", "q8"),
        default="exact",
        help="q8: while text is written, round what quantized matrices are multiplied with to 8 bits (default exact)",
    )
    parser.add_argument(
        "--tokenizer",
        type=arguments.path,
        help="folder with a tokenizer.json, or an id of a Hub; default: the model's own",
    )
    parser.add_argument(
        "--any-tokenizer", action="store_true", help="take --tokenizer although it is not the model's own"
    )
    parser.add_argument(
        "--special-tokens",
        choices=("text", "parse"),
        help="special tokens written out in the prompt: ordinary text, or the tokens; default: as in the model's data",
    )
    parser.add_argument("--threads", type=arguments.threads, help="threads; default: all cores")


def add_sampling_arguments(parser: argparse.ArgumentParser, temperature: float) -> None:
    """How the next token is chosen, and where a text ends."""
    group = parser.add_argument_group("choice of tokens")
    group.add_argument(
        "--temperature",
        type=arguments.number(0.0, 1e6),
        default=temperature,
        help=f"0: always the likeliest token (default {temperature:g})",
    )
    group.add_argument(
        "--top-k",
        type=arguments.whole(0),
        default=0,
        help="choose among the K likeliest tokens; 0: among all",
    )
    group.add_argument(
        "--top-p",
        type=arguments.number(0.0, 1.0, above=True),
        default=1.0,
        help="choose among the fewest tokens of this probability",
    )
    group.add_argument(
        "--min-p",
        type=arguments.number(0.0, 1.0),
        default=0.0,
        help="choose among tokens of at least this share of the likeliest one's probability",
    )
    group.add_argument(
        "--repetition-penalty",
        type=arguments.number(0.0, 1e6, above=True),
        default=1.0,
        help="makes tokens less likely that stand in the text already; 1: it does not",
    )
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end where this text comes, without it; may be given several times",
    )
    group.add_argument(
        "--seed",
        type=arguments.whole(0, 2**64 - 1),
        default=0,
        help="the same seed gives the same text (default 0)",
    )


def open_bound_model(options: argparse.Namespace) -> Model:
    """Bind this process, then open the model that the options name."""
    return open_model_of(options, bind_threads(options))


def bind_threads(options: argparse.Namespace) -> int:
    """Bind this process, before numpy is imported; how many threads it has."""
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    return bind(read_process_environment(os.environ), threads=options.threads).threads


def open_model_of(options: argparse.Namespace, threads: int, other: str | Path | None = None) -> Model:
    """The model that the options name, or another one beside it, which has its own tokenizer and no adapter."""
    from cktrain.loaded_model import open_model

    if other is not None:
        return open_model(other, precision=options.dtype, threads=threads, kv_dtype=options.kv_dtype)
    return open_model(
        options.model,
        precision=options.dtype,
        threads=threads,
        tokenizer=options.tokenizer,
        any_tokenizer=options.any_tokenizer,
        special_tokens=options.special_tokens,
        adapter=options.adapter,
        kv_dtype=options.kv_dtype,
        quantize=options.quantize,
        activations=options.activations,
    )


def new_sampler(options: argparse.Namespace) -> Sampler:
    """By the options; one of its own for each text, so that a text does not depend on those before it."""
    from cktrain.generation.sampler import Sampler

    return Sampler(
        options.temperature,
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.seed,
    )


def stop_strings(options: argparse.Namespace) -> list[str]:
    """Those that were given. ValueError for an empty one."""
    found = [as_utf8(stop) for stop in options.stop]
    if not all(found):
        raise ValueError(
            "[generate] --stop is empty, and every text ends there. Give a text, or leave it out."
        )
    return found


def as_utf8(argument: str) -> str:
    """An argument's bytes are UTF-8 even where the locale made Python read them as something else."""
    return os.fsencode(argument).decode("utf-8", errors="surrogateescape")


def _run(options: argparse.Namespace) -> int:
    needed_output("generate")
    stops = stop_strings(options)
    model = open_bound_model(options)
    codec = model.codec
    if beyond := sorted(index for index in codec.stop_ids if index >= model.vocab_size):
        _note(
            f"of the ids that end a text {', '.join(map(str, beyond))} are beyond the model's vocabulary of "
            f"{model.vocab_size:,} and never come"
        )
    try:
        if options.prompts is not None:
            return _continue_all(model, options, stops)
        return _continue_one(model, options, stops)
    except KeyboardInterrupt:
        write("\n")
        return EXIT_INTERRUPTED


def _continue_one(model: Model, options: argparse.Namespace, stops: list[str]) -> int:
    text = as_utf8(options.prompt)
    prompt = model.codec.encode(text)
    pieces = model.stream(prompt, options.max_tokens, new_sampler(options), stops)
    start = time.perf_counter()
    write(text)
    for piece in pieces:
        write(piece)
    write("\n")
    seconds = time.perf_counter() - start
    if pieces.finish == "positions":
        _note(
            f"after {pieces.count} of {options.max_tokens} tokens the model's {model.max_positions:,} positions are full"
        )
    print(f"{pieces.count} tokens, {pieces.count / seconds:.1f} tokens/s, {model.path}", file=sys.stderr)
    return 0


def _continue_all(model: Model, options: argparse.Namespace, stops: list[str]) -> int:
    from cktrain.generation.prompt_file import read_prompts

    texts = read_prompts(options.prompts)
    prompts = [model.codec.encode(text) for text in texts]
    for number, prompt in enumerate(prompts, 1):  # before the first one is continued
        model.codec.check(prompt, model.vocab_size)
        if len(prompt) > model.max_positions:
            raise ValueError(
                f"[generate] {options.prompts}: prompt {number} has {len(prompt):,} tokens and the model "
                f"{model.max_positions:,} positions. Shorten the prompt."
            )
    from cktrain.loaded_model import BATCH

    count, start = 0, time.perf_counter()
    written = model.stream_all(
        prompts, options.max_tokens, lambda: new_sampler(options), stops, batch=options.batch or BATCH
    )
    for text, (continued, pieces) in zip(texts, written, strict=True):
        row: dict[str, Any] = {"prompt": text, "text": continued}
        row |= {"tokens": pieces.count, "finish": pieces.finish}
        write(json.dumps(row, ensure_ascii=False) + "\n")
        count += pieces.count
    seconds = time.perf_counter() - start
    print(
        f"{len(prompts):,} prompts, {count:,} tokens, {count / seconds:.1f} tokens/s, {model.path}",
        file=sys.stderr,
    )
    return 0


def _note(text: str) -> None:
    print(f"cktrain: note: {text}", file=sys.stderr)
