"""Which linears an adapter stands beside, by Hugging Face's names and PEFT's rules of matching; all else is frozen.

    target_modules: [q_proj]          the modules of that name, or whose name ends in `.q_proj`
    target_modules: .*\\.[0-9]\\.mlp.*  a text is a regular expression of the whole name
    target_modules: all-linear        every linear but the head

Stricter than PEFT: each name must fit something, so that a misspelt one does not train less than was meant.

`modules_to_save` names what is trained whole beside the adapter: every module whose name ends so, with or without a dot
before it (`norm` is every norm), as PEFT has it. No adapter stands beside a linear that is trained whole.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from cktrain.hf.peft_config import ALL_LINEAR, AdapterConfig, fits_pattern
from cktrain.hf.tensors import HEAD, HFTensor, hf_tensors
from cktrain.models import FAMILIES
from cktrain.models.family import ModelConfig
from cktrain.models.transformer import Transformer
from cktrain.nn.adapters.dora import DoRA
from cktrain.nn.adapters.lora import LoRA, Target
from cktrain.nn.linear import Linear


def attach(adapter: AdapterConfig, config: ModelConfig, model: Transformer) -> None:
    """Put adapters beside the targets of a whole model, and freeze its weights but for `modules_to_save`.

    Before parameters have memory. Raises ValueError for a name that fits nothing, with the closest ones, where nothing is
    left to train, and for what would be trained whole in part.
    """
    linears = _linears(config, model)
    saved = saved_tensors(adapter, config, model)
    whole = {_module(tensor.name) for tensor in saved}
    names = [
        name for _, tensors in linears for tensor in tensors if (name := _module(tensor.name)) not in whole
    ]
    chosen = _chosen(adapter, names, _others(config, model, names))
    for key, patterns in (("rank_pattern", adapter.rank_pattern), ("alpha_pattern", adapter.alpha_pattern)):
        for pattern in patterns:
            if not any(fits_pattern(pattern, name) for name in chosen):
                raise ValueError(
                    f"[adapter] adapter.{key}: {pattern!r} fits no module that is adapted. {closest(pattern, chosen)}"
                )
    for param in model.params():
        param.tag(trainable=False)
    for tensor in saved:
        tensor.param.tag(trainable=True)
    for linear, tensors in linears:
        targets = [
            Target(name, tensor.rows, adapter.rank_of(name), adapter.scale_of(name))
            for tensor in tensors
            if (name := _module(tensor.name)) in chosen
        ]
        if targets:
            linear.adapters.append(
                (DoRA if adapter.use_dora else LoRA)(linear, targets, adapter.lora_dropout)
            )


def saved_tensors(adapter: AdapterConfig, config: ModelConfig, model: Transformer) -> list[HFTensor]:
    """What of a whole model is trained whole beside the adapter, in the model's order. Raises ValueError as `attach`."""
    if not adapter.modules_to_save:
        return []
    tensors = hf_tensors(config, model.params())
    names = list(dict.fromkeys(_module(tensor.name) for tensor in tensors))
    table = _module(FAMILIES[config.family].tensors.embedding)
    wanted: set[str] = set()
    for end in adapter.modules_to_save:
        found = [name for name in names if name.endswith(end)]
        if config.tied and _module(HEAD).endswith(end):
            found.append(table)
        if not found:
            raise ValueError(
                f"[adapter] adapter.modules_to_save: {end!r} fits no module of the model. {closest(end, names)}"
            )
        if config.tied and table in found and not adapter.ensure_weight_tying:
            raise ValueError(
                f"[adapter] adapter.modules_to_save: {end!r} names {table}, and its weight is the head's too. PEFT trains a "
                "copy of one of the two then, which is not computed here. Set adapter.ensure_weight_tying: true to train "
                "both as the one weight that they are, or leave it out."
            )
        wanted.update(found)
    chosen = [tensor for tensor in tensors if _module(tensor.name) in wanted]
    for param in dict.fromkeys(tensor.param for tensor in chosen):
        left = [t.name for t in tensors if t.param is param and _module(t.name) not in wanted]
        if left:
            raise ValueError(
                f"[adapter] adapter.modules_to_save names a part of {param.name}, and {', '.join(left)} are one matrix with "
                "it here. Name all of them or none."
            )
    return chosen


def loras(model: Transformer) -> list[tuple[Linear, LoRA]]:
    """The adapters of a model, or a stage of it, and what they stand beside."""
    return [
        (module, adapter)
        for module in model.modules()
        if isinstance(module, Linear)
        for adapter in module.adapters
        if isinstance(adapter, LoRA)
    ]


def linear_modules(config: ModelConfig, model: Transformer) -> dict[str, bool]:
    """The linears by Hugging Face's names, and whether their weight is (in, out) there."""
    return {
        _module(tensor.name): tensor.transposed
        for _, tensors in _linears(config, model)
        for tensor in tensors
    }


def in_words(adapter: AdapterConfig, config: ModelConfig, model: Transformer) -> str:
    """What is adapted, for the run's first lines."""
    targets = [rows.target for _, lora in loras(model) for rows in lora.b]
    kinds = dict.fromkeys(target.name.rpartition(".")[2] for target in targets)
    ranks = sorted({target.rank for target in targets})
    scales = sorted({target.scale for target in targets})
    saved = dict.fromkeys(
        _module(tensor.name).rpartition(".")[2] for tensor in saved_tensors(adapter, config, model)
    )
    kind = "dora" if adapter.use_dora else adapter.peft_type
    return (
        f"{kind} of rank {', '.join(map(str, ranks))}, scale {', '.join(f'{s:g}' for s in scales)}, "
        f"beside {len(targets):,} matrices: {', '.join(kinds)}"
        + (f"; trained whole: {', '.join(saved)}" if saved else "")
    )


def _linears(config: ModelConfig, model: Transformer) -> list[tuple[Linear, list[HFTensor]]]:
    """Each linear but the head, and what its weight is to Hugging Face."""
    head = None if model.head is None else model.head.output
    return [
        (module, hf_tensors(config, [module.weight]))
        for module in model.modules()
        if isinstance(module, Linear) and module is not head
    ]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _others(config: ModelConfig, model: Transformer, linears: Iterable[str]) -> list[str]:
    """The modules that are no linears: norms, the embedding, the head."""
    every = dict.fromkeys(_module(t.name) for t in hf_tensors(config, model.params()))
    return [name for name in dict.fromkeys([*every, _module(HEAD)]) if name not in set(linears)]


def _chosen(adapter: AdapterConfig, names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The modules that are adapted, in the model's order."""
    if adapter.target_modules == ALL_LINEAR:
        found = list(names)
    else:
        found = _matching("target_modules", adapter.target_modules, names, others)
    if adapter.exclude_modules:
        excluded = set(_matching("exclude_modules", adapter.exclude_modules, [*names, *others], []))
        found = [name for name in found if name not in excluded]
    if not found:
        raise ValueError(
            "[adapter] adapter.exclude_modules leaves out all that adapter.target_modules names, so nothing is left to "
            "train. Leave some in."
        )
    return found


def _matching(key: str, wanted: str | list[str], names: Sequence[str], others: Sequence[str]) -> list[str]:
    """The names that fit. Raises ValueError for a wanted one that fits none of them."""
    if isinstance(wanted, str):
        found = [name for name in names if re.fullmatch(wanted, name)]
        if not found:
            raise ValueError(
                f"[adapter] adapter.{key}: {wanted!r}, a regular expression, fits no linear's whole name. "
                f"{closest(wanted, names)} A list takes the ends of names."
            )
        return found
    for end in wanted:
        if not any(ends_in(name, end) for name in names):
            if any(ends_in(name, end) for name in others):
                raise ValueError(
                    f"[adapter] adapter.{key}: {end!r} is no linear inside the model that an adapter could stand beside: it "
                    "is a head, an embedding or a norm, or modules_to_save trains it whole. Remove it."
                )
            raise ValueError(
                f"[adapter] adapter.{key}: {end!r} fits no linear of the model. {closest(end, names)}"
            )
    return [name for name in names if any(ends_in(name, end) for end in wanted)]


def ends_in(name: str, end: str) -> bool:
    """Whether a name is this one, or ends in it behind a dot."""
    return name == end or name.endswith(f".{end}")


def closest(wanted: str, names: Sequence[str]) -> str:
    """The closest names in a sentence: last names where no dot is wanted."""
    known = list(dict.fromkeys(name if "." in wanted else name.rpartition(".")[2] for name in names))
    near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.4) or known[:7]
    return f"The closest names are {', '.join(near)}."
