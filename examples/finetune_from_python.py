"""Fine-tune a model from Python: an adapter on rows of your own, its loss before and after, and files for others.

python examples/finetune_from_python.py MODEL ROWS FOLDER
"""

import sys
from pathlib import Path

import cktrain as ck

model, rows, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])

# The keywords are the options of `cktrain finetune`; `overrides` takes any key of the configuration.
run = ck.finetune(
    model,
    rows,
    folder / "run",
    adapter={"r": 8, "lora_alpha": 16},
    epochs=2,
    chat={"sequence_length": 128, "validation_fraction": 0.1},
    overrides={"optimizer.lr": 1e-3},
)
print("validation losses:", [(step, round(loss, 3)) for step, loss in run.losses().validation])
run.plot(folder / "loss.png")

# Before and after, on the rows that were held out.
found = ck.evaluate(run, run.path / "data", compare="base", answers=1, max_tokens=16)
difference = found.differences["loss"]
print(f"loss, after less before: {difference.value:.3f}")

# An answer, and the files: for PEFT, for transformers, for llama.cpp.
print(run.load().chat([{"role": "user", "content": "say 3"}], max_tokens=16, temperature=0))
run.save_adapter(folder / "adapter")
run.export(folder / "merged", merge=True)
run.export(folder / "model.gguf", merge=True, gguf="f16")
print("all in", folder)
