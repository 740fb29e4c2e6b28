"""A decoder-only transformer: a list of layers, the embedding first, then blocks, and the head.

Shapes: tokens, targets (B, T) int32; the residual stream x (N, C) with N = B·T. The stream between two layers stays in
the slot. A block adds its branches to the stream (`nn/branch.py`), so in the backward pass the stream's gradient is one
array, to which each branch adds its own.

What walks a model, walks this list: pipeline stages keep a run of it, costs and floating-point operations are those
of its entries, block checkpointing computes an entry again. None of them knows what a block is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import numpy as np

from cktrain.memory.arena import Shape
from cktrain.memory.slot import Slot, SlotPlan, Stream, plan_slot
from cktrain.nn.embedding import TokenEmbedding
from cktrain.nn.head import Head
from cktrain.nn.module import Module
from cktrain.nn.numerics import Numerics

PlanLoss = Callable[["Transformer", np.ndarray, np.ndarray, Slot, bool], object]
"""Asks a slot for what an objective's loss does: (model, x, labels, slot, train)."""


class Transformer(Module):
    """A whole model, or a stage of it.

    A stage has some of the layers; only the first one has the embedding, only the last one the head. What a stage gets
    from the one before stands in `stage_inputs`, the gradients from the one after in `stage_gradients`.
    `checkpointing` keeps only each layer's output and computes the rest again.
    """

    def __init__(
        self,
        numerics: Numerics,
        layers: list[Module],
        hidden_size: int,
        checkpointing: bool = False,
        streams: Mapping[str, Callable[[Slot], Shape]] = MappingProxyType({}),
    ) -> None:
        """`streams` are the named streams of the slot, beside the residual stream, and their shapes."""
        super().__init__("model", numerics)
        self.streams = streams
        self.layers = layers
        self.hidden_size = hidden_size
        self.checkpointing = checkpointing
        self.trains_below = False
        """Whether a stage before this one trains anything, and so needs the gradient of this stage's input."""
        self._untrained: int | None = None
        self.row_shares = 1
        """Tensor ranks that divide the rows of the stream among them (sequence parallelism)."""

    @property
    def embedding(self) -> TokenEmbedding | None:
        """The first layer, where it is on this stage."""
        first = self.layers[0]
        return first if isinstance(first, TokenEmbedding) else None

    @property
    def head(self) -> Head | None:
        """The last layer, where it is on this stage."""
        last = self.layers[-1]
        return last if isinstance(last, Head) else None

    @property
    def blocks(self) -> list[Module]:
        """The layers between embedding and head, of which pipeline stages are made."""
        return self.layers[self.embedding is not None : len(self.layers) - (self.head is not None)]

    def keep_blocks(self, kept: list[Module], embedding: bool = True, head: bool = True) -> None:
        """Leave only these blocks in the model, and embedding and head if they are there and wanted."""
        before = self.layers[: self.layers.index(kept[0])]
        dropped = [layer for layer in before if not (embedding and layer is self.embedding)]
        self.trains_below = self.trains_below or any(map(_trains, dropped))
        self._untrained = None
        ends = [
            [layer] if layer and wanted else []
            for layer, wanted in ((self.embedding, embedding), (self.head, head))
        ]
        self.layers = [*ends[0], *kept, *ends[1]]

    def forward_loss(
        self, tokens: np.ndarray, targets: np.ndarray, slot: Slot, train: bool = True
    ) -> tuple[float, int]:
        """(sum of the losses over valid targets, their number). With `train`, `backward_loss` must follow."""
        return self.loss(self.hidden(tokens, slot), targets, slot, train)

    def hidden(self, tokens: np.ndarray, slot: Slot, part: slice = slice(None)) -> np.ndarray:
        """The stream (N, C) after this stage's last block; `tokens` are read where the embedding is.

        Of the layers but the head only the `part`; those before it have been run on this slot.
        """
        self._open_streams(slot)
        for layer, x, out in self._trunk(tokens, slot)[part]:
            with slot.phase(layer.role), self._saving(slot):
                layer.forward(out, x, slot)
        return out

    def loss(self, x: np.ndarray, targets: np.ndarray, slot: Slot, train: bool) -> tuple[float, int]:
        """(loss sum, valid targets) for the stream x after the last block.

        With `train` the gradient of x is left in `stream_gradient`.
        """
        head = self.head
        assert head is not None
        dx = self.stream_gradient(slot) if train else None
        with slot.phase(head.role):
            return head.loss(x, dx, targets.reshape(-1), slot)

    def backward_loss(self, tokens: np.ndarray, slot: Slot) -> None:
        """Accumulates the gradients of the loss sum of the last `forward_loss` on this slot.

        On a stage without the head, of the sum whose gradients stand in `stage_gradients`; those of `stage_inputs` are
        left there, if a stage before needs them. Below the lowest layer that trains nothing is computed.
        """
        dy = self.stream_gradient(slot)
        if self.head is not None:
            for stream in slot.streams.values():
                stream.gradient.fill(0)
        for layer, x, _ in reversed(self._trunk(tokens, slot)[self.untrained_layers :]):
            with slot.phase(layer.role), self._saving(slot):
                if self.checkpointing:
                    layer.recompute(x, slot)
                layer.backward(dy, dy, x, slot)

    @property
    def untrained_layers(self) -> int:
        """How many of the layers, from the first on, need no backward: neither they nor what is below them trains."""
        if self._untrained is None:
            count = 0 if self.trains_below else len(self.layers)
            self._untrained = next((i for i in range(count) if _trains(self.layers[i])), count)
        return self._untrained

    @property
    def needs_backward(self) -> bool:
        """Whether this stage or one before it trains anything."""
        return self.untrained_layers < len(self.layers)

    def _trunk(self, tokens: np.ndarray, slot: Slot) -> list[tuple[Module, np.ndarray, np.ndarray]]:
        """(layer, its input, its output) of all layers but the head."""
        x = tokens.reshape(-1) if self.embedding is not None else self.stream_input(slot)
        found = []
        for layer in self.layers[:-1] if self.head is not None else self.layers:
            out = slot.kept(layer, "y", self._shape(slot), self.num.compute_dtype)
            found.append((layer, x, out))
            x = out
        return found

    def _saving(self, slot: Slot) -> AbstractContextManager[None]:
        """How a layer's arrays are saved: for each one, or with checkpointing once for all of a role."""
        return slot.recomputing() if self.checkpointing else nullcontext()

    def _shape(self, slot: Slot) -> tuple[int, int]:
        """Of the stream: (N, C), or (N / row_shares, C) where ranks divide its rows."""
        return slot.rows // self.row_shares, self.hidden_size

    def stream_input(self, slot: Slot) -> np.ndarray:
        """The slot's stream that enters the first block of a stage that has no embedding."""
        return slot.kept(self, "x", self._shape(slot), self.num.compute_dtype)

    def stream_gradient(self, slot: Slot) -> np.ndarray:
        """The gradient of the stream, changed in place by the backward pass.

        In a whole model it replaces the stream after the last block. Of a stage each slot has one of its own, which may
        be on its way to or from another rank while the next forward runs.
        """
        if self.embedding is not None and self.head is not None:
            return slot.kept(self.layers[-2], "y", self._shape(slot), self.num.compute_dtype)
        return slot.kept(self, "dx", self._shape(slot), self.num.compute_dtype)

    def stage_inputs(self, slot: Slot) -> list[np.ndarray]:
        """What a stage without embedding gets from the one before: the stream, and the named streams."""
        return [self.stream_input(slot), *(stream.value for stream in self._open_streams(slot))]

    def stage_outputs(self, x: np.ndarray, slot: Slot) -> list[np.ndarray]:
        """What a stage without head gives the next one, for its `hidden` x."""
        return [x, *(stream.value for stream in self._open_streams(slot))]

    def stage_gradients(self, slot: Slot) -> list[np.ndarray]:
        """The gradients of `stage_outputs` before `backward_loss`, of `stage_inputs` after it."""
        return [self.stream_gradient(slot), *(stream.gradient for stream in self._open_streams(slot))]

    def _open_streams(self, slot: Slot) -> Iterable[Stream]:
        if not slot.streams:
            for name, shape in self.streams.items():
                value, gradient = (
                    slot.kept(self, f"{name} {what}", shape(slot), self.num.compute_dtype)
                    for what in ("value", "gradient")
                )
                slot.streams[name] = Stream(value, gradient)
        return slot.streams.values()

    def plan(
        self, batch_size: int, sequence_length: int, train: bool = True, loss: PlanLoss | None = None
    ) -> SlotPlan:
        """What a slot for a micro-batch of this shape holds, found by a dry run; with another `loss` than the model's."""

        def run(slot: Slot) -> None:
            ids = np.zeros((batch_size, sequence_length), np.int32)
            x = self.hidden(ids, slot)
            if self.head is not None:
                (Transformer.loss if loss is None else loss)(self, x, ids, slot, train)
            if train:
                self.backward_loss(ids, slot)

        with self.num.dry():
            return plan_slot(batch_size, sequence_length, run)

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs per token of sequences of this length: the sum over the layers.

        6·(elements of matrices that are multiplied by) + 6·layers·H·D·T, a window counting its width; a tied embedding
        counts, since the head multiplies by it. To be asked of a whole model, before ranks divide it.
        """
        return self.flops(1, sequence_length)


def _trains(layer: Module) -> bool:
    return any(param.trainable for param in layer.params())
