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
    from cktrain import cython_kernels
    from cktrain.generate import Sampler, generate
    from cktrain.nn.numerics import Numerics
    from cktrain.saved_model import find_saved_model
    from cktrain.text_stream import Codec, TextStream

    sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
    saved = find_saved_model(options.model)
    side = saved.side_files(options.tokenizer, options.any_tokenizer)
    if not side.files and not saved.hugging_face:
        raise ValueError(
            f"[generate] {options.model} has no tokenizer.json, neither had the data it was trained on. "
            "Give its folder with --tokenizer."
        )
    codec = Codec(side, options.special_tokens)
    # The argument's bytes are UTF-8 even where the locale made Python read them as something else.
    text = os.fsencode(options.prompt).decode("utf-8", errors="surrogateescape")
    prompt = codec.encode(text)
    limit, vocab_size = saved.config.max_position_embeddings, saved.config.vocab_size
    assert limit is not None and vocab_size is not None
    codec.check(prompt, vocab_size)
    if beyond := sorted(index for index in codec.stop_ids if index >= vocab_size):
        print(
            f"cktrain: note: of the ids that end a text {', '.join(map(str, beyond))} are beyond the model's vocabulary of "
            f"{vocab_size:,} and never come",
            file=sys.stderr,
        )
    positions = min(limit, len(prompt) + max(options.max_tokens, 1) - 1)
    kernels = cython_kernels.load()
    kernels.set_num_threads(binding.threads)
    model, _ = saved.load(Numerics(kernels, "fp32"), positions)
    tokens = generate(model, prompt, options.max_tokens, sampler.choose, positions, codec.stop_ids)
    stream, count, start = TextStream(codec, prompt), 0, time.perf_counter()
    _write(text)
    for token in tokens:
        _write(stream.push(token))
        count += 1
    _write(stream.finish() + "\n")
    seconds = time.perf_counter() - start
    if count == limit - len(prompt) + 1 < options.max_tokens:
        print(
            f"cktrain: note: after {count} of {options.max_tokens} tokens the model's {limit:,} positions are full",
            file=sys.stderr,
        )
    print(f"{count} tokens, {count / seconds:.1f} tokens/s, {saved.path}", file=sys.stderr)
    return 0


def _write(text: str) -> None:
    """UTF-8 whatever the terminal's locale says."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()
