"""Tokens per second beside llama.cpp's, of the same GGUF files, in interleaved rounds.

    python docs/benchmarks/decode_beside_llama.py --llama-bench PATH FILE.gguf... [--rounds 7] [--threads 1 2] [--tokens 64]
        [--prompt 512]

llama-bench must be built for the CPU at hand: `pip download --no-binary :all: --no-deps llama-cpp-python`, then in its
vendor/llama.cpp `cmake -B build -DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release` and `cmake --build build --target llama-bench`.
Each round runs every row once: the file in llama.cpp, and in cktrain as stored with exact activations, and rounded to 8 bits
as llama.cpp rounds them, or with products in bf16 for a file of bf16. A row reads a prompt of random tokens, and writes from
one token on. The first row stands twice in each round: the ratio of its medians is A/A. Bytes are those of the weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from cktrain import cython_kernels
from cktrain.bench.decode import open_for_decoding, weight_bytes
from cktrain.bench.peak import cpu_name, measure_bandwidth
from cktrain.generation.decoder import Decoder
from cktrain.nn.numerics import Numerics


def rates_of_llama(program: str, file: str, threads: int, prompt: int, tokens: int) -> tuple[float, float]:
    """(decode, prefill) in tokens per second of one run, which warms up by itself."""
    command = [
        program,
        "-m",
        file,
        "-t",
        str(threads),
        "-p",
        str(prompt),
        "-n",
        str(tokens),
        "-r",
        "1",
        "-o",
        "json",
    ]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    by_kind = {row["n_gen"] > 0: row["avg_ts"] for row in found}
    return by_kind[True], by_kind[False]


class Ours:
    """A file opened one way."""

    def __init__(self, file: str, precision: str, rounds: bool, prompt: int, tokens: int) -> None:
        self.kernels = cython_kernels.load()
        numerics = Numerics(self.kernels, precision)
        numerics.rounds = rounds
        self.model = open_for_decoding(
            file, numerics, prompt + tokens + 8, "stored" if precision == "fp32" else None
        )
        self.decoder = Decoder(self.model, prompt + tokens + 8)
        self.prompt, self.tokens = prompt, tokens

    def rates(self, threads: int) -> tuple[float, float]:
        """(decode, prefill) in tokens per second; the first tokens are written before the clock starts."""
        self.kernels.set_num_threads(threads)
        assert self.model.head is not None
        ids = np.random.default_rng(0).integers(0, self.model.head.vocab_size, self.prompt).tolist()
        self.decoder.read(0, ids[:16])
        began = time.perf_counter()
        self.decoder.read(0, ids)
        prefill = self.prompt / (time.perf_counter() - began)
        logits = self.decoder.read(0, ids[:1])
        for _ in range(3):  # the step is recorded
            logits = self.decoder.feed([int(logits.argmax())])
        began = time.perf_counter()
        for _ in range(self.tokens):
            logits = self.decoder.feed([int(logits.argmax())])
        return self.tokens / (time.perf_counter() - began), prefill


def spread(found: list[float]) -> str:
    """The median, and (largest - smallest) / median."""
    median = statistics.median(found)
    return f"{median:.1f} ({100 * (max(found) - min(found)) / median:.0f} %)"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    ways: dict[tuple[str, str], Ours] = {}
    for file in options.files:
        sixteen = any(kind in Path(file).stem for kind in ("F16", "BF16"))
        ways[file, "fp32"] = Ours(file, "fp32", False, options.prompt, options.tokens)
        if not sixteen:
            ways[file, "q8 activations"] = Ours(file, "fp32", True, options.prompt, options.tokens)
        elif "BF16" in Path(file).stem:
            ways[file, "bf16"] = Ours(file, "bf16", False, options.prompt, options.tokens)
    kernels = cython_kernels.load()
    first = next(iter(ways))
    found: dict[tuple[str, str, int, str], list[float]] = defaultdict(list)
    reads: dict[int, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for threads in options.threads:
            kernels.set_num_threads(threads)
            reads[threads].append(measure_bandwidth(kernels, "read", streaming=False) / 1e9)
            for file in options.files:
                rates = rates_of_llama(options.llama_bench, file, threads, options.prompt, options.tokens)
                for what, rate in zip(("decode", "prefill"), rates, strict=True):
                    found[file, "llama.cpp", threads, what].append(rate)
            for (file, way), ours in ways.items():
                for label in (way, "again") if (file, way) == first else (way,):
                    for what, rate in zip(("decode", "prefill"), ours.rates(threads), strict=True):
                        found[file, label, threads, what].append(rate)
    print(f"{cpu_name()}, {kernels.isa}, {options.rounds} rounds\n")
    print("| file | threads | llama.cpp | cktrain | | ratio | GB/s | of memory's | prefill | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (file, way), ours in ways.items():
        for threads in options.threads:
            mine, theirs = (found[file, who, threads, "decode"] for who in (way, "llama.cpp"))
            read, theirs_read = (
                statistics.median(found[file, who, threads, "prefill"]) for who in (way, "llama.cpp")
            )
            rate, most = statistics.median(mine), statistics.median(reads[threads])
            moved = weight_bytes(ours.model) * rate / 1e9
            print(
                f"| {Path(file).stem} | {threads} | {spread(theirs)} | {spread(mine)} | {way} | "
                f"{rate / statistics.median(theirs):.2f} | {moved:.1f} | {100 * moved / most:.0f} % of {most:.1f} | "
                f"{read:.0f} | {read / theirs_read:.2f} |"
            )
    for threads in options.threads:
        twice = [
            statistics.median(found[first[0], label, threads, "decode"]) for label in (first[1], "again")
        ]
        print(f"\nA/A, {threads} threads: {twice[0] / twice[1]:.3f}")


if __name__ == "__main__":
    main()
