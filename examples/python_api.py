"""cktrain from Python, in a folder of its own: data, training, the loss curve, text, gradients, a Hugging Face folder.

python examples/python_api.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

import cktrain as ck

ck.bind()  # to this process's cores, before numpy is loaded

import numpy as np  # noqa: E402

from cktrain.data.prepare import prepare  # noqa: E402

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="cktrain-"))
folder.mkdir(parents=True, exist_ok=True)

# Data: a hundred sums, a document each, as `cktrain data prepare` would make it of a file of text.
lines = [f"{a} + {b} = {a + b}" for a in range(10) for b in range(10)]
(folder / "sums.txt").write_text("<|endoftext|>".join(lines * 20))
prepare(
    folder / "sums.txt", folder / "data", vocab_size=300, validation_fraction=0.1, reuse=True, progress=False
)

# Training: the keys of the YAML file, docs/configuration.md. Called again, it goes on where it was.
config = {
    "run": {"dir": str(folder / "run"), "steps": 60, "seed": 1},
    "model": {
        "family": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 300,
    },
    "data": {"path": str(folder / "data"), "sequence_length": 64},
    "batch": {"micro_batch_size": 8, "global_batch_size": 8},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 5},
    "log": {"every": 20},
}
run = ck.train(config, {"run.steps": 80})
run.plot(folder / "loss.png")
print("losses:", run.losses().training)

# The model: text, and numbers.
model = run.load()
print("3 + 4 continues as", repr(model.generate("3 + 4", max_tokens=8, temperature=0)))
ids = np.array(model.encode("3 + 4 = 7"))
print("logits", model.logits(ids).shape, "loss", round(model.loss(ids), 3))
gradients = model.gradients(ids)
largest = max(gradients, key=lambda name: float(np.abs(gradients[name]).max()))
print("the largest gradient is of", largest, gradients[largest].shape)

# For transformers and others.
if not (folder / "exported").exists():
    run.export(folder / "exported")
assert ck.load(folder / "exported").loss(ids) == model.loss(ids)
print("all in", folder)
