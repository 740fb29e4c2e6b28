"""The step that cktrain's LoRA is compared with: transformers and PEFT, as their users would write it. One line of JSON.

    python docs/benchmarks/peft_step.py FOLDER THREADS LENGTH fp32|bf16 [--make SHAPE]

FOLDER is a Hugging Face folder; with --make it gets a Llama of random weights first (SHAPE is JSON of a LlamaConfig), and
nothing is measured. The adapter has rank 16 on all linears but the head; a step has 4 sequences, clipping and AdamW.
"""

from __future__ import annotations

import argparse
import json
import time


def main() -> None:
    """Make the folder, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("threads", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("--make", metavar="SHAPE")
    options = parser.parse_args()
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    if options.make:
        config = transformers.LlamaConfig(**json.loads(options.make))
        transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(options.folder)
        print(json.dumps({"made": options.folder}))
        return
    base = transformers.AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype)
    model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    ids = torch.randint(0, base.config.vocab_size, (4, options.length))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    print(json.dumps({"tokens_per_s": ids.numel() / sorted(times[2:])[1]}))


if __name__ == "__main__":
    main()
