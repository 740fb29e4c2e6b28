"""llama.cpp (the wheel xllamacpp) answers with the file that `./run finetune` wrote, and its answer is as likely as ours.

    python tests/integration/asked_by_llama_cpp.py FOLDER

llama.cpp rounds weights and activations to 8 bits here, so that a near tie may go the other way, and the answers part from
there. What is held against the merged folder is therefore how likely it finds llama.cpp's answer: at temperature 0 about as
likely as its own. Within 0.5 nats a token: wrong weights, another template or another tokenizer cost several.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xllamacpp

import cktrain as ck
from cktrain.loaded_model import Model

QUESTION = [{"role": "user", "content": "What does json.dumps do? (Python's standard library)"}]
TOKENS = 24
NATS = 0.5


def answer_of_llama_cpp(path: Path) -> str:
    """To the question, at temperature 0."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
    request = {"messages": QUESTION, "max_tokens": TOKENS, "temperature": 0.0}
    answer = xllamacpp.Server(params).handle_chat_completions(request)
    return str(answer["choices"][0]["message"]["content"])


def nats_per_token(model: Model, answer: str) -> float:
    """Mean loss of an answer's tokens after the question."""
    prompt = model.chat_prompt().ids(QUESTION)
    ids = [*prompt, *model.encode(answer)[:TOKENS]]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    return model.loss(ids, labels)


def main(folder: Path) -> int:
    """0 where llama.cpp's answer is as likely as the model's own."""
    ck.bind()
    theirs = answer_of_llama_cpp(folder / "model.gguf")
    model = ck.load(folder / "model")
    ours = model.chat(QUESTION, TOKENS, temperature=0)
    print(f"llama.cpp: {theirs!r}\ncktrain:   {ours!r}")
    if not theirs.strip():
        print("llama.cpp answers nothing", file=sys.stderr)
        return 1
    losses = nats_per_token(model, theirs), nats_per_token(model, ours)
    print(f"nats a token: {losses[0]:.3f} and {losses[1]:.3f}")
    return 0 if losses[0] <= losses[1] + NATS else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
