"""`cktrain generate MODEL --prompt TEXT`: continue a text with a run or a Hugging Face folder."""

from __future__ import annotations

import argparse
import os
import sys
import time

from cktrain.launch import arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `cktrain generate`."""
    parser.add_argument(
        "model", type=arguments.path, help="folder of a run, a checkpoint, or a Hugging Face folder"
    )
    parser.add_argument(
        "--adapter",
        type=arguments.path,
        help="PEFT's folder, or a run of an adapter, beside a Hugging Face folder",
    )
    parser.add_argument("--prompt", default="", help="text to continue; default: the start of a document")
    parser.add_argument(
        "--max-tokens",
        type=arguments.whole(0, 2**31 - 1),
        default=100,
        help="tokens to generate at most (default 100)",
    )
    parser.add_argument(
        "--temperature",
        type=arguments.number(0.0, 1e6),
        default=0.8,
        help="0: always the likeliest token (default 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=arguments.whole(0),
        default=0,
        help="choose among the K likeliest tokens; 0: among all",
    )
    parser.add_argument(
        "--top-p",
        type=arguments.number(0.0, 1.0, above=True),
        default=1.0,
        help="choose among the fewest tokens of this probability",
    )
    parser.add_argument(
        "--seed",
        type=arguments.whole(0, 2**64 - 1),
        default=0,
        help="the same seed gives the same text (default 0)",
    )
    parser.add_argument(
        "--tokenizer", type=arguments.path, help="folder with a tokenizer.json; default: the model's own"
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
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from cktrain.comm.environment import read_process_environment
    from cktrain.host.bind import bind

    binding = bind(read_process_environment(os.environ), threads=options.threads)
    from cktrain.generate import Sampler
    from cktrain.loaded_model import open_model

    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    model = open_model(
        options.model,
        threads=binding.threads,
        tokenizer=options.tokenizer,
        any_tokenizer=options.any_tokenizer,
        special_tokens=options.special_tokens,
        adapter=options.adapter,
    )
    # The argument's bytes are UTF-8 even where the locale made Python read them as something else.
    text = os.fsencode(options.prompt).decode("utf-8", errors="surrogateescape")
    prompt = model.codec.encode(text)
    if beyond := sorted(index for index in model.codec.stop_ids if index >= model.vocab_size):
        print(
            f"cktrain: note: of the ids that end a text {', '.join(map(str, beyond))} are beyond the model's vocabulary of "
            f"{model.vocab_size:,} and never come",
            file=sys.stderr,
        )
    pieces = model.stream(prompt, options.max_tokens, sampler)
    count, start = -1, time.perf_counter()  # the last piece is of no token of its own
    _write(text)
    for piece in pieces:
        _write(piece)
        count += 1
    _write("\n")
    seconds = time.perf_counter() - start
    if count == model.max_positions - len(prompt) + 1 < options.max_tokens:
        print(
            f"cktrain: note: after {count} of {options.max_tokens} tokens the model's {model.max_positions:,} positions "
            "are full",
            file=sys.stderr,
        )
    print(f"{count} tokens, {count / seconds:.1f} tokens/s, {model.path}", file=sys.stderr)
    return 0


def _write(text: str) -> None:
    """UTF-8 whatever the terminal's locale says."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
