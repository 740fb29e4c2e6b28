"""Tokens per second of a model that reads and writes: replayed and unrecorded steps, precisions and threads in turn.

    python docs/benchmarks/decode.py MODEL [--rounds 5] [--prompt 512] [--tokens 64] [--threads 1,2] [--cpu-time]

MODEL is what `cktrain bench decode` takes. Each round measures every row once, so that all have the same neighbours; the
median counts, and the spread is (largest - smallest) / median. The last table is the prompt's rate by the tokens that go
through the model at a time. With --cpu-time seconds are those of the one thread itself: for a machine that others use, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cktrain import cython_kernels
from cktrain.bench.decode import open_for_decoding, weight_bytes
from cktrain.bench.peak import cpu_name, measure_bandwidth
from cktrain.generation import decoder as decoder_module
from cktrain.generation.decoder import Decoder
from cktrain.nn.numerics import PRECISIONS, Numerics


@contextmanager
def unrecorded(kernels: Any) -> Iterator[None]:
    """Within the block no step is recorded."""
    recording, kernels.recording = kernels.recording, None
    try:
        yield
    finally:
        kernels.recording = recording


def write(decoder: Decoder, ids: list[int], tokens: int, clock: Callable[[], float]) -> float:
    """Tokens per second after the prompt, the likeliest one each time."""
    logits = decoder.read(0, ids)
    for _ in range(3):  # the step is recorded
        logits = decoder.feed([int(logits.argmax())])
    began = clock()
    for _ in range(tokens):
        logits = decoder.feed([int(logits.argmax())])
    return tokens / (clock() - began)


def line(rates: list[float]) -> str:
    """The median and the spread."""
    median = statistics.median(rates)
    return f"{median:.1f} ({100 * (max(rates) - min(rates)) / median:.0f} %)"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--chunks", default="256,512,1024")
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.thread_time if options.cpu_time else time.perf_counter
    kernels = cython_kernels.load()
    threads = [int(count) for count in options.threads.split(",")]
    if options.cpu_time and threads != [1]:
        raise SystemExit("--cpu-time counts one thread: give --threads 1.")
    positions = max(options.prompt + options.tokens + 8, 1024)
    models = {p: open_for_decoding(options.model, Numerics(kernels, p), positions) for p in ("fp32", "bf16")}
    vocabulary = models["fp32"].head.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, positions).tolist()
    prompt = ids[: options.prompt]
    rows = [(p, kv, n) for p, kv in (("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")) for n in threads]
    rates: dict[tuple[Any, ...], list[float]] = {}
    decoders: dict[tuple[Any, ...], Decoder] = {}
    reads: dict[int, list[float]] = {n: [] for n in threads}
    for _ in range(options.rounds):
        for n in [] if options.cpu_time else threads:
            kernels.set_num_threads(n)
            reads[n].append(measure_bandwidth(kernels, "read", streaming=False) / 1e9)
        for row in rows:
            precision, kv, n = row
            kernels.set_num_threads(n)
            for replayed in (True, False):
                key = (*row, replayed)
                if key not in decoders:
                    kv_dtype = np.dtype(PRECISIONS[kv][0])
                    decoders[key] = Decoder(models[precision], positions, kv_dtype=kv_dtype)
                if replayed:
                    rate = write(decoders[key], prompt, options.tokens, clock)
                else:
                    with unrecorded(kernels):
                        rate = write(decoders[key], prompt, options.tokens, clock)
                rates.setdefault(key, []).append(rate)
    print(f"{cpu_name()}, {kernels.isa}, {options.rounds} rounds, after {options.prompt} tokens\n")
    print(
        "| products | keys | threads | tokens/s | unrecorded | MB/token | GB/s | of memory's |\n"
        + 8 * "|---"
        + "|"
    )
    for precision, kv, n in rows:
        decoder = decoders[precision, kv, n, True]
        moved = weight_bytes(models[precision]) + decoder.cache.read_bytes(
            options.prompt + options.tokens // 2
        )
        found = rates[precision, kv, n, True]
        gbs = moved * statistics.median(found) / 1e9
        share = f"{100 * gbs / (best := statistics.median(reads[n])):.0f} % of {best:.1f}" if reads[n] else ""
        unrecorded_line = line(rates[precision, kv, n, False])
        print(
            f"| {precision} | {kv} | {n} | {line(found)} | {unrecorded_line} | {moved / 1e6:.0f} | {gbs:.1f} | "
            f"{share} |"
        )
    print("\n| products | threads | tokens at a time | prompt tokens/s |\n|---|---|---|---|")
    for precision in models:
        kernels.set_num_threads(threads[-1])
        read: dict[int, list[float]] = {}
        for _ in range(min(options.rounds, 3)):
            for chunk in (int(size) for size in options.chunks.split(",")):
                decoder_module.PROMPT_CHUNK = chunk
                decoder = Decoder(models[precision], positions)
                began = clock()
                decoder.read(0, ids)
                read.setdefault(chunk, []).append(len(ids) / (clock() - began))
        for chunk, found in read.items():
            print(f"| {precision} | {threads[-1]} | {chunk} | {line(found)} |")


if __name__ == "__main__":
    main()
