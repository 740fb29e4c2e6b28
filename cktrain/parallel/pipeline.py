"""Executes a schedule on one stage: receive, compute, send, straight from and to the arrays of the slots.

    stage s-1  --- stream (N, C), forward --->  stage s  --- stream --->  stage s+1
               <-- its gradient, backward ----           <-- gradient ---

The slot's named streams and their gradients travel with the stream. A slot holds one micro-batch from its forward to
its backward. Messages are only started where they are sent; before a slot's array is written again its message is waited
for. The receive of the next action is posted before the present one computes, where its array is free, so that a message
can arrive meanwhile. One stage alone never sends: its schedule is plain accumulation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.comm.group import Group
from cktrain.comm.work import Work
from cktrain.data.loader import Batch
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer
from cktrain.parallel.comm_timer import CommTimer
from cktrain.parallel.schedules import Action
from cktrain.training.objective import NOTHING, LossSums, NextToken, Objective

NEXT_TOKEN = NextToken()


@dataclass
class Clock:
    """Seconds that a stage computed forwards and backwards, without waiting, and from start to end of its schedules."""

    forward: float = 0.0
    backward: float = 0.0
    total: float = 0.0
    micro_batches: int = 0


class Stage:
    """One rank's stage of the model, its slots and its neighbours in the pipeline group."""

    def __init__(
        self, model: Transformer, group: Group, slots: Sequence[Slot], comm_timer: CommTimer
    ) -> None:
        self.model = model
        self.group = group
        self.slots = slots
        self.comm_timer = comm_timer
        self.clock = Clock()
        self._first = group.rank == 0
        self._last = group.rank == group.size - 1
        self._sent: dict[tuple[str, int], list[Work]] = {}
        self._posted: dict[Action, list[Work]] = {}
        self._held: set[int] = set()

    def train(
        self,
        batches: Sequence[Batch],
        actions: Sequence[Action],
        after_backward: Callable[[], None] = lambda: None,
        objective: Objective = NEXT_TOKEN,
    ) -> list[LossSums]:
        """Every forward and backward of these micro-batches, in the schedule's order.

        Returns the sums of each micro-batch; `NOTHING` where the head is not.
        """
        sums = [NOTHING] * len(batches)
        started = time.perf_counter()
        for action, following in zip(actions, [*actions[1:], None], strict=True):
            batch, number = batches[action.micro_batch], action.micro_batch % len(self.slots)
            slot = self.slots[number]
            self._receive(action)
            if action.kind == "forward":
                self._held.add(number)
            if following is not None and self._is_free(following):
                self._post(following)
            waited, began = self.comm_timer.seconds, time.perf_counter()
            if action.kind == "forward":
                sums[action.micro_batch] = self._forward(batch, slot, number, objective, train=True)
            else:
                self.model.backward_loss(batch.ids, slot)
                if self.model.trains_below:
                    self._send(("backward", number), self.model.stage_gradients(slot), self.group.rank - 1)
                self._held.discard(number)
                after_backward()
            seconds = time.perf_counter() - began - (self.comm_timer.seconds - waited)
            if action.kind == "forward":
                self.clock.forward += seconds
            else:
                self.clock.backward += seconds
        self._wait_for_sends()
        self.clock.total += time.perf_counter() - started
        self.clock.micro_batches += len(batches)
        return sums

    def evaluate(self, batch: Batch, objective: Objective = NEXT_TOKEN) -> LossSums:
        """The sums of one micro-batch without gradients; `NOTHING` where the head is not."""
        self._receive(Action("forward", 0))
        result = self._forward(batch, self.slots[0], 0, objective, train=False)
        self._wait_for_sends()
        return result

    def _forward(self, batch: Batch, slot: Slot, number: int, objective: Objective, train: bool) -> LossSums:
        slot.describe(batch.positions, batch.first, batch.keys if train else None)
        x = self.model.hidden(batch.ids, slot)
        if self._last:
            self._wait_for_send("backward", number)  # the loss leaves its gradient where that one lies
            return objective.loss(self.model, x, batch, slot, train)
        self._send(("forward", number), self.model.stage_outputs(x, slot), self.group.rank + 1)
        return NOTHING

    def _source(self, action: Action) -> int | None:
        """The stage that this action's input comes from, or None."""
        if action.kind == "forward":
            return None if self._first else self.group.rank - 1
        return None if self._last or not self.model.needs_backward else self.group.rank + 1

    def _is_free(self, action: Action) -> bool:
        """Whether an action's input may be received already, while another action computes."""
        return action.kind == "backward" or action.micro_batch % len(self.slots) not in self._held

    def _post(self, action: Action) -> None:
        source = self._source(action)
        if source is None or action in self._posted:
            return
        number = action.micro_batch % len(self.slots)
        slot = self.slots[number]
        if action.kind == "forward":
            arrays = self.model.stage_inputs(slot)
        else:
            arrays = self.model.stage_gradients(slot)
            self._wait_for_send("backward", number)
        self._posted[action] = [self.group.recv(array, source, async_=True) for array in arrays]

    def _receive(self, action: Action) -> None:
        if action.kind == "forward":  # the slot's stream is about to be written
            self._wait_for_send("forward", action.micro_batch % len(self.slots))
        self._post(action)
        self._wait(self._posted.pop(action, []))

    def _wait_for_send(self, kind: str, number: int) -> None:
        self._wait(self._sent.pop((kind, number), []))

    def _send(self, key: tuple[str, int], arrays: Sequence[np.ndarray], to: int) -> None:
        """Start sending a slot's arrays, in order; a stage has nothing else for this neighbour between them."""
        self._sent[key] = [self.group.send(array, to, async_=True) for array in arrays]

    def _wait(self, works: Sequence[Work]) -> None:
        if works:
            with self.comm_timer:
                for work in works:
                    work.wait()

    def _wait_for_sends(self) -> None:
        for kind, number in list(self._sent):
            self._wait_for_send(kind, number)
