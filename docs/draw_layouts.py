"""Draws docs/layouts.svg: who holds what of a model of four layers under five layouts, as the code divides it.

    python docs/draw_layouts.py

A column is a rank, a row a layer. The upper bar of a cell is the rank's share of the layer's weights and gradients, the
lower one that of its optimizer's state; where bars of several ranks add up to one width, they divide the layer.
"""

from __future__ import annotations

from pathlib import Path

from cktrain import cython_kernels
from cktrain.config import Config
from cktrain.memory.arena import planning
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.parallel.buckets import overlap
from cktrain.parallel.fake_group import fake_rank
from cktrain.parallel.mesh import Mesh
from cktrain.parallel.model_shard import ModelShard

LAYERS = ("head", "layer 3", "layer 2", "layer 1", "layer 0", "embedding")
LAYOUTS = {
    "one rank": Mesh(1, 1, 1),
    "data 2": Mesh(2, 1, 1),
    "tensor 2": Mesh(1, 1, 2),
    "pipeline 2": Mesh(1, 2, 1),
    "data 2 × pipeline 2 × tensor 2": Mesh(2, 2, 2),
}
CELL, HEIGHT, GAP = 46, 26, 22


def shares(mesh: Mesh, rank: int) -> dict[str, tuple[float, float]]:
    """Layer -> (share of the weights, share of the optimizer's state) that a rank holds."""
    config = Config.model_validate(
        {
            "run": {"dir": "unused", "steps": 1},
            "model": {
                "hidden_size": 512,
                "num_hidden_layers": 4,
                "num_attention_heads": 8,
                "intermediate_size": 2048,
                "vocab_size": 2048,
            },
            "data": {"path": "unused", "sequence_length": 128},
            "batch": {"micro_batch_size": 1, "global_batch_size": 8},
        }
    )
    ranks = fake_rank(mesh, mesh.coordinates(rank), kv_heads=8)
    stages = mesh.pipeline
    cuts = [(4 * i // stages, 4 * (i + 1) // stages) for i in range(stages)]
    with planning():
        model = build_model(config.model, Numerics(cython_kernels.load("reference"), "fp32"), 128)
        whole: dict[str, int] = {}
        for param in model.params():
            whole[layer_of(param.name)] = whole.get(layer_of(param.name), 0) + param.size
        part = ModelShard(config, model, ranks, cuts)
    found = {layer: (0.0, 0.0) for layer in LAYERS}
    for param in part.params.trainable:
        layer = layer_of(param.name)
        updated = overlap(sorted(part.data.update_spans), [(param.start, param.start + param.size)])
        weights, state = found[layer]
        found[layer] = (
            weights + param.size / whole[layer],
            state + sum(stop - start for start, stop in updated) / whole[layer],
        )
    return found


def layer_of(name: str) -> str:
    """The row of a parameter; the final norm stands with the head."""
    if "embed" in name:
        return "embedding"
    return f"layer {name.split('.')[2]}" if ".layers." in name else "head"


def draw() -> str:
    """The picture as SVG."""
    parts, x = [], 80
    top = 44
    for row, layer in enumerate(LAYERS):
        parts.append(f'<text x="72" y="{top + row * HEIGHT + 17}" text-anchor="end">{layer}</text>')
    for title, mesh in LAYOUTS.items():
        parts.append(f'<text x="{x}" y="16" font-weight="bold">{title}</text>')
        for rank in range(mesh.world):
            parts.append(f'<text x="{x + CELL / 2}" y="36" text-anchor="middle">{rank}</text>')
            for row, (weights, state) in enumerate(shares(mesh, rank).values()):
                y = top + row * HEIGHT
                full = CELL - 6
                parts.append(f'<rect class="none" x="{x}" y="{y}" width="{full}" height="{HEIGHT - 6}"/>')
                parts.append(f'<rect class="w" x="{x}" y="{y}" width="{full * weights:.1f}" height="11"/>')
                parts.append(f'<rect class="o" x="{x}" y="{y + 12}" width="{full * state:.1f}" height="8"/>')
            x += CELL
        x += GAP
    bottom = top + len(LAYERS) * HEIGHT + 10
    parts.append(f'<rect class="w" x="80" y="{bottom}" width="20" height="11"/>')
    parts.append(f'<text x="106" y="{bottom + 10}">weights and gradients</text>')
    parts.append(f'<rect class="o" x="260" y="{bottom}" width="20" height="8"/>')
    parts.append(f'<text x="286" y="{bottom + 10}">optimizer\'s state (zero: 1)</text>')
    style = (
        "text{font:12px sans-serif;fill:#333}.none{fill:#f4f4f4;stroke:#ccc}.w{fill:#4878a8}.o{fill:#d98e3b}"
        "svg{background:#fff}"
    )
    size = f'width="{x}" height="{bottom + 24}" viewBox="0 0 {x} {bottom + 24}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n{body}\n</svg>\n'


if __name__ == "__main__":
    Path(__file__).with_name("layouts.svg").write_text(draw())
