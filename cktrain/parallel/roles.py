"""What follows for a parameter from its role: over which ranks its gradient is summed, and which optimizer may take it.

A family's table of styles says how tensor ranks divide each of its modules, by role (the name without the layer's
number). The style decides the rest:

| style | module | weight's gradient on a tensor rank | bias's |
|---|---|---|---|
| column | matrix, output features divided | complete, of its shard | complete, of its shard |
| row | matrix, input features divided | complete, of its shard | partial: tensor rank 0 alone adds it |
| vocabulary | table, words divided | complete, of its shard | - |
| sequence | table, whole on every rank, looked up for the rank's rows | partial: of its rows | - |
| width | norm over all heads, heads divided | complete, of its shard | - |
| replicated | norm, whole on every rank | partial: of its rows or heads | partial |

Beside a linear an adapter's parts follow it (`nn/adapters/lora.py`, `nn/adapters/dora.py`):

| linear | lora_A | lora_B, lora_magnitude_vector |
|---|---|---|
| column | partial: of the rank's outputs | complete, of its outputs |
| row | complete, of its inputs | partial: of the rank's inputs |

A partial gradient is summed over the tensor group too (`partial_gradients.py`). A parameter that no row of the table
names is an error: a silent default would sum a gradient over ranks that all have it complete, or not sum it at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cktrain.memory.param import Param

_COMPLETE = frozenset({"data"})
_PARTIAL = frozenset({"data", "tensor"})
_REDUCE_AXES = {
    "column": {"weight": _COMPLETE, "bias": _COMPLETE},
    "row": {"weight": _COMPLETE, "bias": _PARTIAL},
    "vocabulary": {"weight": _COMPLETE},
    "sequence": {"weight": _PARTIAL},
    "width": {"weight": _COMPLETE},
    "replicated": {"weight": _PARTIAL, "bias": _PARTIAL},
}
_ADAPTER_AXES = {
    "column": {"A": _PARTIAL, "B": _COMPLETE, "magnitude_vector": _COMPLETE},
    "row": {"A": _COMPLETE, "B": _PARTIAL, "magnitude_vector": _PARTIAL},
}
_MATRICES = ("column", "row")
"""Styles whose weights map features to features, which is what an optimizer of whole matrices is made for."""


def tag_by_role(params: Iterable[Param], styles: Mapping[str, str]) -> None:
    """Tag each parameter with its `reduce_axes` and `optimizer`. Raises ValueError for a role that is not listed."""
    for param in params:
        module, _, kind = param.spec.role.rpartition(".")
        axes_of = _REDUCE_AXES
        if param.spec.adapter:
            module, _, part = module.partition(".lora_")
            kind, axes_of = part.partition(".")[0], _ADAPTER_AXES
        style = styles.get(module, "")
        axes = axes_of.get(style, {}).get(kind)
        if axes is None:
            what = f"its style {style!r} has no {kind}" if style else f"no style is given for {module}"
            raise ValueError(
                f"[parallel] {param.name}: {what}, so it is not known over which ranks its gradient is summed. "
                "Name it in the family's STYLES (parallel/roles.py lists the styles)."
            )
        matrix = style in _MATRICES and kind == "weight"  # an adapter's are thin: they are no case for Muon
        param.tag(reduce_axes=axes, optimizer="matrix" if matrix else "elementwise")
