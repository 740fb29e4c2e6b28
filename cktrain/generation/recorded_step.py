"""One token of each of B sequences through a model: recorded once, and then replayed without Python.

A step of a small model is some hundred calls of kernels, and Python takes longer for a call than many a kernel. All that
differs from one token to the next is read from memory: the stream that the embedding writes, the positions, the lengths and
rows of the cache. So the calls of a step are recorded with their arguments (cython_kernels/_recording.pxi) and made
again by one call.

That this is the whole step is not taken on trust. The recording refuses calls that read what no call wrote, and those that
return numbers. Then everything that the calls write is overwritten and the step replayed: its logits must be bit for
bit those that it has just computed unrecorded, which what numpy does in between would change. A step of which this does not
hold is never replayed (`problem` says why) and runs as it always did. What Python itself decides, it decides by shapes and
configuration alone, in every module: a branch on a position would be replayed as it was recorded.

Shapes: ids (B,) int32, logits (B, V).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cktrain.generation.cache import KeyValueCache
from cktrain.memory.slot import Slot
from cktrain.models.transformer import Transformer

EMBEDDING, REST = slice(0, 1), slice(1, None)
"""Of a model's layers: what is run for each token, and what is recorded."""


class RecordedStep:
    """The step of one slot. `problem` says why it is not replayed; "" where it is, or was not recorded yet."""

    def __init__(self, model: Transformer, slot: Slot, cache: KeyValueCache) -> None:
        assert model.head is not None and model.embedding is not None, "a whole model"
        self.model = model
        self.head = model.head
        self.slot = slot
        self.cache = cache
        self.problem = ""
        self.is_replayed = False
        self._steps = 0
        self._positions = min([cache.capacity, *map(len, model.tables())])
        self._ids = np.zeros((slot.batch_size, 1), np.int32)
        self._logits = np.empty(0)
        self._recording: Any = None
        slot.describe(cache.lengths, None)  # the position of a token is the number of those before it

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """The logits after these tokens, one of each sequence, whose keys and values are put into the cache."""
        self._ids[:, 0] = ids
        self._steps += 1
        with self.slot.recomputing():
            stream = self.model.hidden(self._ids, self.slot, EMBEDDING)
            if (
                self.is_replayed and self.cache.lengths.max() < self._positions
            ):  # else a door says what is wrong
                self._recording.replay()
                return self._logits.copy()
            if self._steps == 2:  # the first one has given the cache its memory
                return self._record(stream)
            return self._run()

    def _run(self) -> np.ndarray:
        return self.head.logits(self.model.hidden(self._ids, self.slot, REST))

    def _record(self, stream: np.ndarray) -> np.ndarray:
        make = getattr(self.model.num.kernels, "recording", None)
        if make is None:
            self.problem = f"the kernels of {self.model.num.kernels.isa} are not recorded"
            return self._run()
        weights = [param.value for param in self.model.params()]
        given = [stream, self.cache.lengths, *self.cache.memory]
        recording = make([*weights, *self.model.tables(), *given])
        with recording:
            logits = self._run()
        self.problem = recording.problem
        if self.problem:
            return logits
        wanted = logits.copy()
        recording.scramble()
        recording.replay()
        if logits.tobytes() != wanted.tobytes():
            self.problem = "replayed, it gives other logits"
            return self._run()  # the cache has what the replay wrote
        self._recording, self._logits, self.is_replayed = recording, logits, True
        return wanted
