"""An adapter to a GGUF file, which llama.cpp puts beside a model's own (`--lora`), as its converter writes it.

    general.type adapter, general.architecture of the model, adapter.type lora, adapter.lora.alpha
    blk.N.attn_q.weight.lora_a (r, in), …lora_b (out, r)       F32 or F16

llama.cpp multiplies by alpha over the rank that it sees in the tensor, with one alpha for all. So alpha is that of rank r
here, alpha · √r where rsLoRA divides by √r, and where a pattern gives a module another scale, its lora_b is multiplied by
the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from cktrain.hf.gguf_file.architectures import to_neighbours
from cktrain.hf.gguf_file.export import architecture_of, title_of
from cktrain.hf.gguf_file.reader import block_types
from cktrain.hf.peft_config import AdapterConfig
from cktrain.hf.peft_folder import PREFIX, WEIGHTS_FILE
from cktrain.models.family import ModelConfig
from cktrain.safetensors_file import read_header, to_finite
from cktrain.whole_output import refuse_existing, whole_file

AdapterKind = Literal["f32", "f16"]
ADAPTER_KINDS: tuple[AdapterKind, ...] = ("f32", "f16")


def export_gguf_adapter(
    path: Path, folder: Path, adapter: AdapterConfig, config: ModelConfig, kind: AdapterKind = "f32"
) -> int:
    """Write the adapter of PEFT's `folder` as the file `path`; returns its weights.

    Raises ValueError where the file exists, for an architecture or an adapter that llama.cpp has not, for a number that is
    not finite, and OSError when writing fails. There is no file then.
    """
    refuse_existing(path, "gguf")
    beyond = [key for key in ("use_dora", "modules_to_save") if getattr(adapter, key)]
    if beyond:
        raise ValueError(
            f"[gguf] the adapter has {' and '.join(beyond)}, which llama.cpp puts beside no model. Merge it: --merge --gguf "
            "TYPE."
        )
    gguf, architecture = block_types(), architecture_of(config)
    dtype = np.dtype({"f32": np.float32, "f16": np.float16}[kind])
    scale = adapter.model_copy(update={"rank_pattern": {}, "alpha_pattern": {}}).scale_of("")
    count = 0
    with whole_file(path, "gguf") as temporary:
        writer = gguf.GGUFWriter(temporary, architecture.name)
        writer.add_type("adapter")
        writer.add_string("general.name", title_of(path))
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", scale * adapter.r)
        for tensor in read_header(folder / WEIGHTS_FILE):
            module, _, half = tensor.name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
            name, values = f"{module}.weight", tensor[:].astype(np.float32)
            if half == "B":
                values *= np.float32(adapter.scale_of(module) / (scale * adapter.r / values.shape[1]))
                if architecture.permutes(name):
                    values = to_neighbours(values, config.resolved_head_dim)
            stored = to_finite(values, dtype, f"{tensor.name} in {tensor.file}")
            writer.add_tensor(
                f"{architecture.theirs(name)}.lora_{half.lower()}", np.ascontiguousarray(stored)
            )
            count += stored.size
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return count
