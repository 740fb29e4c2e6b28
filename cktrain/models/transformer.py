"""A decoder-only transformer: embedding, pre-norm blocks, final norm, fused head and loss.

Shapes: tokens, targets (B, T) int32; the residual stream x (N, C) with N = B·T. Each block adds its attention and its
MLP to the stream:

    h = x + attention(norm(x))        y = h + mlp(norm(h))

so in the backward pass the stream's gradient is one array, to which each branch adds its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from cktrain.memory.slot import Slot, SlotPlan, plan_slot
from cktrain.nn.attention import Attention
from cktrain.nn.embedding import Embedding
from cktrain.nn.head import CrossEntropyHead
from cktrain.nn.mlp import FeedForward
from cktrain.nn.module import Module
from cktrain.nn.norm import Norm
from cktrain.nn.numerics import Numerics


class Block(Module):
    """Norm, attention, norm, MLP, each branch added to the stream."""

    def __init__(
        self,
        name: str,
        numerics: Numerics,
        input_norm: Norm,
        attention: Attention,
        mlp_norm: Norm,
        mlp: FeedForward,
    ) -> None:
        super().__init__(name, numerics)
        self.input_norm = input_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp

    def forward(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        """(N, C) -> (N, C); the output stays in the slot, since it is the next block's input. x may lie where h will."""
        h = self._attend(x, slot)
        y = slot.kept(self, "y", x.shape, self.num.real)
        with slot.phase("mlp"):
            return self.mlp.forward_into(y, self.mlp_norm.forward(h, slot), h, slot)

    def recompute(self, x: np.ndarray, slot: Slot) -> None:
        """What `forward` saved besides its output, again."""
        h = self._attend(x, slot)
        with slot.phase("mlp"):
            self.mlp.expand(self.mlp_norm.forward(h, slot), slot)

    def backward_from(
        self, dy: np.ndarray, x: np.ndarray, slot: Slot, restore: Callable[[], Any] | None = None
    ) -> np.ndarray:
        """Turns dy (N, C), in place, into dx for the x that `forward` got.

        An x that lies in the place of h is written there again by `restore`, when nobody needs h any more.
        """
        h = self.h(slot, x.shape)
        with slot.phase("mlp"):
            dbranch = self.mlp.backward_from(dy, self.mlp_norm.recompute(h, slot), slot)
            self.mlp_norm.backward_into(dy, dbranch, h, slot)
        if restore is not None:
            restore()
        with slot.phase("attention"):
            dqkv = self.attention.backward_heads(dy, slot)
            with slot.phase("input"):
                dbranch = self.attention.backward_input(dqkv, self.input_norm.recompute(x, slot), slot)
                return self.input_norm.backward_into(dy, dbranch, x, slot)

    def _attend(self, x: np.ndarray, slot: Slot) -> np.ndarray:
        h = self.h(slot, x.shape)
        with slot.phase("attention"), slot.phase("input"):
            return self.attention.forward_into(h, self.input_norm.forward(x, slot), x, slot)

    def h(self, slot: Slot, shape: tuple[int, ...]) -> np.ndarray:
        """The stream after attention."""
        return slot.saved(self, "h", shape, self.num.real)


class TokenEmbedding(Module):
    """Rows of the token table, plus rows of a position table where the model learns positions (GPT-2)."""

    def __init__(
        self, name: str, numerics: Numerics, tokens: Embedding, positions: Embedding | None = None
    ) -> None:
        super().__init__(name, numerics)
        self.tokens = tokens
        self.positions = positions

    def embed(self, x: np.ndarray, ids: np.ndarray, slot: Slot) -> np.ndarray:
        """Writes the rows of ids (N,) to x (N, C)."""
        self.tokens.look_up(x, ids, slot)
        if self.positions is not None:
            offset = slot.shared(self, "offset", x.shape, self.num.real)
            self.positions.look_up(offset, slot.positions, slot)
            self.num.kernels.add(x, x, offset)
        return x

    def backward_ids(self, dx: np.ndarray, ids: np.ndarray, slot: Slot) -> None:
        """Adds dx (N, C) to the gradients of the tables."""
        self.tokens.backward_ids(dx, ids, slot)
        if self.positions is not None:
            self.positions.backward_ids(dx, slot.positions, slot)


class Transformer(Module):
    """A whole model, or a stage of it.

    A stage has some of the blocks; only the first one has the embedding, only the last one norm and head. What a
    stage gets from the one before stands in `stream_input`, the gradient from the one after in `stream_gradient`.
    `checkpointing` keeps only each block's output and computes the rest again.
    """

    def __init__(
        self,
        numerics: Numerics,
        embedding: TokenEmbedding,
        blocks: list[Block],
        norm: Norm,
        head: CrossEntropyHead,
        checkpointing: bool = False,
    ) -> None:
        super().__init__("model", numerics)
        self.hidden_size = embedding.tokens.size
        self.embedding: TokenEmbedding | None = embedding
        self.blocks = blocks
        self.norm: Norm | None = norm
        self.head: CrossEntropyHead | None = head
        self.checkpointing = checkpointing
        self.row_shares = 1
        """Tensor ranks that divide the rows of the stream among them (sequence parallelism)."""

    def forward_loss(
        self, tokens: np.ndarray, targets: np.ndarray, slot: Slot, train: bool = True
    ) -> tuple[float, int]:
        """(sum of the losses over valid targets, their number). With `train`, `backward_loss` must follow."""
        return self.loss(self.hidden(tokens, slot), targets, slot, train)

    def hidden(self, tokens: np.ndarray, slot: Slot) -> np.ndarray:
        """The stream (N, C) after this stage's last block; `tokens` are read where the embedding is."""
        for number, block in enumerate(self.blocks):
            with slot.phase("block"), self._saving(slot):
                if number == 0:
                    x = self.stream_input(slot)
                    self._embed(x, tokens, slot)
                x = block.forward(x, slot)
        return x

    def _embed(self, x: np.ndarray, tokens: np.ndarray, slot: Slot) -> None:
        if self.embedding is not None:
            self.embedding.embed(x, tokens.reshape(-1), slot)

    def loss(self, x: np.ndarray, targets: np.ndarray, slot: Slot, train: bool) -> tuple[float, int]:
        """(loss sum, valid targets) for the stream x after the last block.

        With `train` the gradient of x is left in `stream_gradient`.
        """
        assert self.norm is not None and self.head is not None
        dx = self.stream_gradient(slot) if train else None
        with slot.phase("head"):
            return self.head.loss(x, dx, self.norm, targets.reshape(-1), slot)

    def backward_loss(self, tokens: np.ndarray, slot: Slot) -> None:
        """Accumulates the gradients of the loss sum of the last `forward_loss` on this slot.

        On a stage without the head, of the sum whose gradient stands in `stream_gradient`; the gradient of
        `stream_input` is left there.
        """
        dy = self.stream_gradient(slot)
        for number in reversed(range(len(self.blocks))):
            block, restore = self.blocks[number], None
            with slot.phase("block"), self._saving(slot):
                if number > 0:
                    x = slot.kept(self.blocks[number - 1], "y", dy.shape, self.num.real)
                else:
                    x = self.stream_input(slot)
                    if self._embeds_again:
                        restore = partial(self._embed, x, tokens, slot)
                if self.checkpointing:
                    if restore is not None:
                        restore()
                    block.recompute(x, slot)
                block.backward_from(dy, x, slot, restore)
        if self.embedding is not None:
            self.embedding.backward_ids(dy, tokens.reshape(-1), slot)

    def _saving(self, slot: Slot) -> AbstractContextManager[None]:
        """How a block's arrays are saved: for each block, or with checkpointing once for all."""
        return slot.recomputing() if self.checkpointing else nullcontext()

    @property
    def _embeds_again(self) -> bool:
        """Whether the first block's input is looked up twice instead of saved: where no rank has to be asked."""
        return self.embedding is not None and self.row_shares == 1

    def stream_input(self, slot: Slot) -> np.ndarray:
        """The slot's stream (N, C) that enters this stage's first block; (N / row_shares, C) where ranks divide it.

        Where the embedding is, to be asked within the first block: it may lie in the place of that block's h.
        """
        shape = slot.rows // self.row_shares, self.hidden_size
        return (
            self.blocks[0].h(slot, shape)
            if self._embeds_again
            else slot.kept(self, "x", shape, self.num.real)
        )

    def stream_gradient(self, slot: Slot) -> np.ndarray:
        """The gradient of the stream, of the shape of `stream_input`, changed in place by the backward pass.

        In a whole model it replaces the stream after the last block. Of a stage each slot has one of its own, which may
        be on its way to or from another rank while the next forward runs.
        """
        shape = slot.rows // self.row_shares, self.hidden_size
        if self.embedding is not None and self.head is not None:
            return slot.kept(self.blocks[-1], "y", shape, self.num.real)
        return slot.kept(self, "dx", shape, self.num.real)

    def plan(self, batch_size: int, sequence_length: int, train: bool = True) -> SlotPlan:
        """What a slot for a micro-batch of this shape holds, found by a dry run."""

        def run(slot: Slot) -> None:
            ids = np.zeros((batch_size, sequence_length), np.int32)
            x = self.hidden(ids, slot)
            if self.head is not None:
                self.loss(x, ids, slot, train)
            if train:
                self.backward_loss(ids, slot)

        with self.num.dry():
            return plan_slot(batch_size, sequence_length, run)

    def flops_per_token(self, sequence_length: int) -> int:
        """Training FLOPs per token: 6 per matrix parameter used, and causal attention counted half.

        6·(parameters - input embeddings) + 6·layers·H·D·T; a tied embedding counts, since the head multiplies by it.
        To be asked of a whole model, before ranks divide it.
        """
        assert self.embedding is not None and self.head is not None
        looked_up = {self.embedding.tokens.weight}
        if self.embedding.positions is not None:
            looked_up.add(self.embedding.positions.weight)
        looked_up.discard(self.head.weight)
        used = sum(param.size for param in self.params() if param not in looked_up)
        heads = sum(b.attention.shape.heads * b.attention.shape.head_dim for b in self.blocks)
        return 6 * used + 6 * heads * sequence_length
