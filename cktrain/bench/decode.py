"""`cktrain bench decode MODEL`: how fast a model reads a prompt, and how fast it writes.

The prompt is random ids of a fixed seed; the tokens after it are chosen by the sampler at temperature 0, as `cktrain
generate` does. Writing is bound by memory: a token reads every weight and the keys and values of all tokens before it, so
its rate in bytes stands beside what `cktrain bench peak` reads at most with as many threads.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cktrain.bench.peak import measure_bandwidth
from cktrain.config_file import load_config
from cktrain.generation.decoder import Decoder
from cktrain.generation.sampler import Sampler
from cktrain.hf.folder import resolve_model
from cktrain.hf.quantize import fill_blocks, tag_quantized
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.models.transformer import Transformer
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import find_saved_model

YAML_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class DecodeReport:
    """What `bench decode --json` prints: medians over the rounds."""

    decode_tps: float
    """Tokens per second after the prompt."""
    prefill_tps: float
    """Tokens of the prompt per second."""
    bytes_per_token: int
    """Of weights, keys and values that a token reads, halfway through the text."""
    decode_gbs: float
    read_gbs: float
    """Of the machine, measured, with as many threads."""
    isa: str
    threads: int
    precision: str
    kv_dtype: str
    quantize: str
    activations: str
    prompt: int
    tokens: int
    spread: float
    """(largest - smallest) / median of decode_tps over the rounds."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Lines for people."""
        share = 100 * self.decode_gbs / self.read_gbs
        return "\n".join(
            [
                f"decode   {self.decode_tps:10.1f} tokens/s, {self.tokens} tokens, spread {100 * self.spread:.1f} %",
                f"prefill  {self.prefill_tps:10.1f} tokens/s, {self.prompt} tokens",
                f"reads    {self.bytes_per_token / 1e6:10.1f} MB per token: {self.decode_gbs:.1f} GB/s, "
                f"{share:.0f} % of {self.read_gbs:.1f} GB/s",
                f"{self.isa}, {self.threads} threads, {self.precision}, keys and values in {self.kv_dtype}, "
                f"quantize {self.quantize}, activations {self.activations}",
            ]
        )


def open_for_decoding(
    path: str | Path, numerics: Numerics, positions: int, quantize: str | None = None
) -> Transformer:
    """The model of a folder, a GGUF file or a run, or random weights in the shape that a YAML file gives.

    Raises ValueError for what cannot be opened or held in the blocks of `quantize`, and where it has fewer positions.
    """
    if Path(path).suffix.lower() not in YAML_SUFFIXES:
        saved = find_saved_model(path)
        _check_positions(path, positions, saved.config.max_position_embeddings)
        return (saved if quantize is None else saved.quantized(quantize)).load(numerics, positions)[0]
    config, _ = resolve_model(load_config(path).model)
    _check_positions(path, positions, config.max_position_embeddings)
    model = build_model(config, numerics, positions)
    held = model.params()
    for param in held:
        param.tag(trainable=False)
    if quantize not in (None, "none"):
        parts = {param: [param.name] for param in held}
        tag_quantized(quantize, {}, parts, model)
    params = ParamStore(held, numerics, train=False)
    params.initialize(0, [param for param in held if not param.spec.blocks])
    for param in held:
        if param.spec.blocks:
            fill_blocks(param)
    return model


def bench_decode(
    model: Transformer,
    prompt: int,
    tokens: int,
    rounds: int = 3,
    kv_dtype: np.dtype | None = None,
) -> DecodeReport:
    """Read `prompt` random ids and write `tokens` tokens, `rounds` times after a first one that does not count."""
    assert model.head is not None
    kernels = model.num.kernels
    ids = np.random.default_rng(0).integers(0, model.head.vocab_size, prompt).tolist()
    decoder = Decoder(model, prompt + tokens, kv_dtype=kv_dtype)
    decode, prefill = [], []
    for _ in range(rounds + 1):
        choose = Sampler(temperature=0).choose
        began = time.perf_counter()
        logits = decoder.read(0, ids)
        read = time.perf_counter()
        for _ in range(tokens):
            logits = decoder.feed([choose(logits)])
        prefill.append(prompt / (read - began))
        decode.append(tokens / (time.perf_counter() - read))
    rate = statistics.median(decode[1:])
    moved = weight_bytes(model) + decoder.cache.read_bytes(prompt + tokens // 2)
    return DecodeReport(
        decode_tps=rate,
        prefill_tps=statistics.median(prefill[1:]),
        bytes_per_token=moved,
        decode_gbs=moved * rate / 1e9,
        read_gbs=measure_bandwidth(kernels, "read", streaming=False) / 1e9,
        isa=kernels.isa,
        threads=kernels.num_threads(),
        precision=model.num.precision,
        kv_dtype=decoder.cache.memory[0].dtype.name,
        quantize=_formats_in_words(model),
        activations="q8" if model.num.rounds else "exact",
        prompt=prompt,
        tokens=tokens,
        spread=(max(decode[1:]) - min(decode[1:])) / rate,
    )


def weight_bytes(model: Transformer) -> int:
    """Of the weights that a token reads: all but tables of which it reads a row, unless the head multiplies by them."""
    assert model.embedding is not None and model.head is not None
    multiplied = {param for layer in (*model.blocks, model.head) for param in layer.params()}
    rows = sum(param.value.nbytes // param.shape[0] for param in model.embedding.params())
    return rows + sum(param.value.nbytes for param in multiplied)


def _formats_in_words(model: Transformer) -> str:
    """`q8_0`, `q4_0 and q8_0`, or none."""
    names = {part.format.name for param in model.params() if param.spec.blocks for part in param.blocks}
    return " and ".join(sorted(names)) or "none"


def _check_positions(path: str | Path, wanted: int, there: int | None) -> None:
    if there is not None and wanted > there:
        raise ValueError(
            f"[bench] {path} has {there:,} positions, and prompt and tokens take {wanted:,}. Give fewer with --prompt and "
            "--tokens."
        )
