"""Files of others, by kind: whole ones of each, and how they are read.

Each is read as the commands read it, by `Kind.read`, which raises ValueError where it refuses one.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "hf" / "gguf_file"))

from chat_models import REASONED, SYSTEM, TOOL, TOOLS, TURN, write_model, write_rows, write_weights
from gguf_made_here import small_file

from cktrain import cython_kernels
from cktrain.data.chat.prepare import ChatOptions, prepare_chat
from cktrain.hf.config_json import read_model_config
from cktrain.hf.peft_folder import CONFIG_FILE, WEIGHTS_FILE, peft_adapter, read_adapter_config
from cktrain.hf.tensors import check_weights, matching_tensors
from cktrain.memory.param_store import ParamStore
from cktrain.models.build import build_model
from cktrain.models.family import ModelConfig
from cktrain.nn.numerics import Numerics
from cktrain.safetensors_file import read_header, to_finite
from cktrain.saved_model import find_saved_model
from cktrain.side_files import read_side_files

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content }}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""It is short, because it is compiled for each file."""

ROWS = [
    {"messages": TURN},
    {"messages": SYSTEM, "weight": 1},
    {"messages": TOOL, "tools": TOOLS},
    {"messages": REASONED, "chat_template_kwargs": {"enable_thinking": True}},
    {"conversations": [{"from": "human", "value": "Hi ☃"}, {"from": "gpt", "value": "Ho."}]},
    {"instruction": "count", "input": "", "output": "1 2", "history": [["a", "b"]]},
    {"prompt": TURN[:1], "completion": TURN[1:]},
    {"prompt": "one,", "completion": " two"},
    {"text": "A line\nand another."},
]


@dataclass(frozen=True)
class Kind:
    """A kind of file. `damaged` are the files to change, each with how much of its beginning matters most."""

    damaged: dict[Path, int]
    read: Callable[[bool], None]
    """Read all; the flag asks for the other of two ways."""


def numerics() -> Numerics:
    """The kernels that the small models stand on."""
    return Numerics(cython_kernels.load("reference"), "fp32")


def gguf(folder: Path) -> Kind:
    """A model, its tokenizer and template in one file."""
    small_file(folder)
    file = folder / "whole.gguf"
    return Kind({file: 12_000}, partial(_read_gguf, file))


def _read_gguf(file: Path, _: bool) -> None:
    config = read_model_config(file)
    assert read_side_files(file).json("config.json")
    params = build_model(config, numerics(), positions=1).params()
    for tensor in matching_tensors(file, config, params):
        for _, values in tensor.pieces():
            to_finite(values, np.dtype(np.float32), tensor.name)


def safetensors(folder: Path) -> Kind:
    """The weights of a Hugging Face folder."""
    write_weights(folder / "model", template=None)
    config = read_model_config(folder / "model")
    file = folder / "model" / "model.safetensors"
    return Kind({file: _header_of(file)}, partial(_read_safetensors, folder / "model", config))


def _read_safetensors(folder: Path, config: ModelConfig, _: bool) -> None:
    check_weights(folder, config, build_model(config, numerics(), positions=1).params())


def adapter(folder: Path) -> Kind:
    """PEFT's folder, beside its base."""
    base, peft = write_weights(folder / "base", template=None), folder / "adapter"
    config = read_model_config(base)
    saved = find_saved_model(base)
    keys = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"q_proj": 3}, "modules_to_save": ["norm"], "use_rslora": True}  # fmt: skip
    peft.mkdir()
    (peft / CONFIG_FILE).write_text(json.dumps(keys))
    lora = read_adapter_config(peft)
    model = build_model(config, numerics(), positions=1, adapter=lora)
    params = ParamStore(model.params(), numerics())
    params.initialize(seed=3)
    whole = {param.name: param.data for param in params.params}
    peft_adapter(lora, config, model, None).write_arrays(peft, whole)
    (peft / CONFIG_FILE).write_text(json.dumps(json.loads((peft / CONFIG_FILE).read_text())) + "\n")
    damaged = {peft / CONFIG_FILE: 10**6, peft / WEIGHTS_FILE: _header_of(peft / WEIGHTS_FILE)}
    return Kind(damaged, lambda _: _read_adapter(saved.path, peft))


def _read_adapter(base: Path, peft: Path) -> None:
    find_saved_model(base).with_adapter(peft).load(numerics(), positions=1)


def jsonl(folder: Path) -> Kind:
    """Rows of chats and instructions, which become shards or, if one is bad, nothing."""
    model = write_model(folder / "model", TEMPLATE)
    rows = write_rows(folder / "rows.jsonl", list(ROWS))
    return Kind({rows: 10**6}, partial(_prepare, rows, model))


def _prepare(rows: Path, model: Path, skip_bad: bool) -> None:
    out = rows.parent / "out"
    options = ChatOptions(sequence_length=512, validation_fraction=0.0, skip_bad=skip_bad)
    try:
        prepare_chat(rows, out, tokenizer=model, options=options, progress=False)
    except ValueError:
        assert not out.exists(), f"{out} was left behind"
        raise
    shutil.rmtree(out)


def _header_of(file: Path) -> int:
    return min(tensor.start for tensor in read_header(file))


KINDS: dict[str, Callable[[Path], Kind]] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "adapter": adapter,
    "jsonl": jsonl,
}
