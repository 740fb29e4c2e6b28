"""Group over several nodes with several ranks each: shared memory inside a node, a network between them.

Legend: n ranks on N nodes with p ranks each, S bytes of the array. A rank is the l-th of its node; its *rail* is the
ranks that are the l-th of theirs.

| operation | way | bytes sent per rank between nodes |
|---|---|---|
| all_reduce | reduce-scatter in the node, all-reduce of the part on the rail, all-gather in the node | 2·S/p·(N - 1)/N |
| all_reduce up to 8 KiB | all-reduce in the node, all-reduce on the rail | as the rail's, of S |
| reduce_scatter | a reduce-scatter in the node per node's block; one of the partial sums on the rail | S/p·(N - 1)/N |
| all_gather | all-gather on the rail; one in the node per node's block | S/n·(N - 1) |
| broadcast | from the root in its node, a part on each rail, all-gather in the other nodes | as the rail's, of S/p |
| broadcast up to 64 KiB | on the root's rail, then in each node | as the rail's, of S |
| barrier | in the node, then on the rail | log2 N messages |

**Order of adding.** Ranks of a node ascending, then nodes ascending by their first rank: for 2 nodes of 2 it is
(x0 + x1) + (x2 + x3). It is the same for all lengths, operations and networks, so all ranks hold the same bits and the
next run does. `mean` and sums of bf16, whose partial sums would be rounded once more, go flat over the network instead,
in the order of ranks; so do all_to_all and messages.

**Differing calls.** Every operation first arrives in the node with the call that the user made, and takes it along on
the rail. Ranks of a node that see a difference tell their rails of it before they fail, so that all ranks of the group
raise with the differing calls, and no array of the user's has changed: what is summed in the node goes to the group's
own memory, from where the rail takes it.

Groups whose nodes have unequal numbers of ranks, or whose ranks do not follow each other by node, go flat
(`cktrain.comm.layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NoReturn

import numpy as np

from cktrain.comm.algorithms import even_parts
from cktrain.comm.call import DTYPE, KIND, OP, Call, checksum
from cktrain.comm.chain import ChainWork, FlyingWork, Phase, PolledWork
from cktrain.comm.engine_group import EngineGroup, EngineWork
from cktrain.comm.errors import CommError
from cktrain.comm.group import Group, offsets_of
from cktrain.comm.layout import nodes_of, why_flat
from cktrain.comm.node import Node
from cktrain.comm.reduction import BFLOAT16
from cktrain.comm.shm_group import ShmGroup
from cktrain.comm.solo_group import SoloGroup
from cktrain.comm.tcp_group import TcpGroup
from cktrain.comm.work import Work

SMALL_ALL_REDUCE_BYTES = 8 << 10
SMALL_BROADCAST_BYTES = 64 << 10
_PIECES = 3
_BYTE = np.dtype(np.uint8)


class TwoLevelGroup(Group):
    """A group whose bytes stay in the node where they can."""

    def __init__(
        self,
        flat: Group,
        node: Node,
        seats: Sequence[int],
        names: Sequence[str],
        *,
        ancestors: Sequence[int] = (0,),
        at_close: Callable[[], None] | None = None,
    ):
        """Make the group; all its ranks call it.

        Args:
            flat: the group of the same ranks in the same order over the network; belongs to this group.
            node: the ranks of this node, with the world's ranks as seats.
            seats: the members' world ranks.
            names: of the node of each world rank.
            ancestors: of the groups in the node.
            at_close: what ends with the group; None: nothing.
        """
        super().__init__(flat.rank, flat.size, flat.name, flat.timeout_s)
        self._network = flat
        self._peers, self._seats, self._names = node, list(seats), list(names)
        self._at_close = at_close
        self._ancestors = list(ancestors)
        self._failure: CommError | None = None
        self._closed = False
        self._pieces: list[tuple[np.ndarray, FlyingWork | None]] = [(np.empty(0, np.uint8), None)] * _PIECES
        self._turn = 0
        self.flying: list[PolledWork] = []
        """Begun, not complete, where the caller moves the network's operations; oldest first."""
        nodes = nodes_of([names[seat] for seat in seats])
        self.why_flat = why_flat(nodes)
        """Why operations go flat; None where they go in two levels."""
        self.layout = f"{len(nodes)} nodes with {len(nodes[0])} ranks each, shm inside"
        """The same in words."""
        if self.why_flat is not None:
            self.layout = f"flat: {self.why_flat}"
        self.rail: Group = flat
        """The ranks that are the l-th of their nodes, as this one is."""
        self._parts: list[Group] = [flat]
        if self.why_flat is None:
            self._set_up(nodes)

    def _set_up(self, nodes: list[list[int]]) -> None:
        self._nodes = nodes
        self._k = next(k for k, node in enumerate(nodes) if self.rank in node)
        self._l = nodes[self._k].index(self.rank)
        here = [self._seats[rank] for rank in nodes[self._k]]
        # Operations are handed on from one lane to the next, so that the next operation can already use the first.
        self._first = ShmGroup(self._peers, here, self.name, self.timeout_s, ancestors=self._ancestors)
        self._second = ShmGroup(
            self._peers, here, f"{self.name}, second", self.timeout_s, ancestors=self._first._lineage
        )
        self._second.name = self.name
        self.rail = self.flat.split(self._l, self._k)
        self.rail.name = self.name
        self._parts = [self._first, self._second, self.rail, self.flat]
        mates = {k: [self._seats[rank] for rank in node] for k, node in enumerate(nodes)}
        for part in self._parts[:3]:
            if isinstance(part, EngineGroup):
                part.belong_to(self._seats, mates if part is self.rail else {}, self.flat)
        self._chained = isinstance(self.flat, TcpGroup) and not self.flat.moved_by_caller

    @property
    def flat(self) -> Group:
        """All its ranks, over the network alone."""
        return self._network

    # Memory, membership and lifetime.

    def allocate(self, nbytes: int) -> np.ndarray:
        """Memory that the ranks of the node share."""
        self._check_usable("allocate")
        if self.why_flat is not None:
            return self.flat.allocate(nbytes)
        memory = self._first.allocate(nbytes)
        if isinstance(self.flat, TcpGroup):
            self.flat.prepare(memory)
        return memory

    def use_reduction(self, capsule: object) -> None:
        """Reduce with this function, in the nodes and between them."""
        for part in self._parts:
            part.use_reduction(capsule)

    def split(self, color: int, key: int = 0) -> Group:
        """Return the group of the ranks that gave the same `color`: in two levels, in shared memory, or flat."""
        self._check_color(color)
        answers = [
            (int(c), int(k), rank)
            for rank, text in enumerate(self.all_gather_bytes(f"{color} {key}".encode()))
            for c, k in [text.split()]
        ]
        members = [rank for _, rank in sorted((k, rank) for c, k, rank in answers if c == color)]
        name, seats = f"{self.name}.{color}", [self._seats[rank] for rank in members]
        nodes = nodes_of([self._names[seat] for seat in seats])
        # Ranks that need no network between them still take part in the split, each on its own.
        alone = len(nodes) == 1
        flat = self.flat.split(2 * self.rank + 1 if alone else 2 * color, key)
        flat.name = name
        lineage = self._first._lineage if self.why_flat is None else self._ancestors
        if len(members) == 1:
            return SoloGroup(name, self.timeout_s)
        if alone:
            return ShmGroup(self._peers, seats, name, self.timeout_s, ancestors=lineage)
        if len(nodes) == len(members):
            return flat
        return TwoLevelGroup(flat, self._peers, seats, self._names, ancestors=lineage)

    def close(self) -> None:
        """End the use of this group; the world's close also ends what joins the ranks."""
        if self._closed:
            return
        for work in [*self.flying, *(w for w in self._peers.live if getattr(w, "group", None) is self)]:
            work.wait()
        for part in self._parts:
            part.close()
        self._closed = True
        if self._at_close is not None:
            self._at_close()

    def abort(self, code: int) -> NoReturn:
        """End this process, and what the network's group ends with it."""
        self.flat.abort(code)

    def _check_usable(self, call: str) -> None:
        if self._closed:
            raise ValueError(f"[comm.{self.name}] {call}: the group is closed. Call it before close().")
        if self._failure is not None:
            raise self._failure

    def broken(self, error: CommError | None) -> None:
        """An operation failed, or was broken off: no thread touches the arrays of any again."""
        self._failure = self._failure or error
        for part in self._parts:
            if isinstance(part, EngineGroup):
                part._break_off(error)

    # Control data and messages.

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every rank's `data`, in the order of ranks."""
        self._catch_up("all_gather_bytes")
        return self.flat.all_gather_bytes(data)

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """Return rank `root`'s `data` on every rank."""
        self._catch_up("broadcast_bytes")
        return self.flat.broadcast_bytes(data, root)

    def _send(self, array: np.ndarray, to: int) -> Work:
        self._check_usable("send")
        return self.flat._send(array, to)

    def _recv(self, array: np.ndarray, source: int) -> Work:
        self._check_usable("recv")
        return self.flat._recv(array, source)

    def _catch_up(self, call: str) -> None:
        """Before something that must not pass by operations in flight."""
        self._check_usable(call)
        for work in list(self.flying):
            work.wait()

    # Collectives, as phases. `sums` and `parts` are the group's own memory, given when the operation begins.

    def _all_reduce(self, array: np.ndarray, op: str) -> Work:
        call = (KIND["all_reduce"], DTYPE[array.dtype], OP[op], -1, array.size, 0)
        if self._goes_flat(array, op):
            return self._flatly("all_reduce", call, lambda: self.flat._all_reduce(array, op), array, op=op)
        if array.nbytes <= SMALL_ALL_REDUCE_BYTES:
            return self._work(
                lambda sums: [
                    self._phase(self._first, "all_reduce", array.size, sums, array, op=op),
                    self._phase(self.rail, "all_reduce", array.size, array, sums, op=op),
                ],
                call,
                (array.size, array.dtype),
            )
        begins = even_parts(array.size, len(self._nodes[0]), array.itemsize)
        part = array[begins[self._l] : begins[self._l + 1]]
        return self._work(
            lambda sums: [
                self._announce(call),
                self._phase(self._first, "reduce_scatter", array.size, sums, array, begins, op=op),
                self._phase(self.rail, "all_reduce", part.size, part, sums, op=op, call=call),
                self._phase(self._second, "all_gather", array.size, array, part, begins),
            ],
            call,
            (part.size, array.dtype),
        )

    def _reduce_scatter(self, output: np.ndarray, input: np.ndarray, op: str, counts: list[int]) -> Work:
        call = (KIND["reduce_scatter"], DTYPE[input.dtype], OP[op], -1, input.size, checksum(counts))
        if self._goes_flat(input, op):
            begins = [*offsets_of(counts), input.size]
            start = partial(self.flat._reduce_scatter, output, input, op, counts)
            return self._flatly("reduce_scatter", call, start, input, output, begins, op)
        rail, blocks = self._blocks(counts)

        def phases(sums: np.ndarray) -> list[Phase]:
            found = [self._announce(call)]
            for m, (begin, end, begins) in enumerate(blocks):
                out = sums[rail[m] : rail[m + 1]]
                found.append(
                    self._phase(
                        self._first, "reduce_scatter", end - begin, out, input[begin:end], begins, op=op
                    )
                )
            last = self._phase(self.rail, "reduce_scatter", rail[-1], output, sums, rail, op=op, call=call)
            return [*found, last]

        return self._work(phases, call, (rail[-1], input.dtype))

    def _all_gather(self, output: np.ndarray, input: np.ndarray, counts: list[int]) -> Work:
        call = (KIND["all_gather"], DTYPE[input.dtype], OP["sum"], -1, output.size, checksum(counts))
        if self.why_flat is not None:
            return self._flatly(
                "all_gather", call, lambda: self.flat._all_gather(output, input, counts), input
            )
        rail, blocks = self._blocks(counts)

        def phases(parts: np.ndarray) -> list[Phase]:
            found = [
                self._announce(call),
                self._phase(self.rail, "all_gather", rail[-1], parts, input, rail, call=call),
            ]
            for m, (begin, end, begins) in enumerate(blocks):
                part = input if m == self._k else parts[rail[m] : rail[m + 1]]
                found.append(
                    self._phase(self._second, "all_gather", end - begin, output[begin:end], part, begins)
                )
            return found

        return self._work(phases, call, (rail[-1], input.dtype))

    def _broadcast(self, array: np.ndarray, root: int) -> Work:
        call = (KIND["broadcast"], DTYPE[array.dtype], OP["sum"], root, array.size, 0)
        if self.why_flat is not None:
            return self._flatly("broadcast", call, lambda: self.flat._broadcast(array, root), array)
        k = next(k for k, node in enumerate(self._nodes) if root in node)
        place = self._nodes[k].index(root)
        phases = [self._announce(call)]
        if array.nbytes <= SMALL_BROADCAST_BYTES:
            if self._l == place:
                phases.append(
                    self._phase(self.rail, "broadcast", array.size, array, array, root=k, call=call)
                )
            else:
                phases.append(self._announce(call, self.rail))
            phases.append(self._phase(self._second, "broadcast", array.size, array, array, root=place))
            return self._work(lambda _: phases, call)
        begins = even_parts(array.size, len(self._nodes[0]), array.itemsize)
        part = array[begins[self._l] : begins[self._l + 1]]
        phases.append(self._announce(call, self.rail))
        if self._k == k:
            phases.append(self._phase(self._first, "broadcast", array.size, array, array, root=place))
        phases.append(self._phase(self.rail, "broadcast", part.size, part, part, root=k))
        if self._k != k:
            phases.append(self._phase(self._second, "all_gather", array.size, array, part, begins))
        return self._work(lambda _: phases, call)

    def _all_to_all(
        self, output: np.ndarray, input: np.ndarray, output_counts: list[int], input_counts: list[int]
    ) -> Work:
        # Lengths are each pair's own: what all ranks compare has none, and the flat group compares them by pairs.
        call = (KIND["all_to_all"], DTYPE[input.dtype], OP["sum"], -1, -1, 0)
        start = partial(self.flat._all_to_all, output, input, output_counts, input_counts)
        made = None
        if isinstance(self.flat, EngineGroup):
            made = self.flat.all_to_all_call(output, input, output_counts, input_counts)
        return self._flatly("all_to_all", call, start, input, made=made)

    def _barrier(self) -> Work:
        nothing = np.empty(0, np.uint8)
        call = (KIND["barrier"], DTYPE[nothing.dtype], OP["sum"], -1, 0, 0)
        if self.why_flat is not None:
            return self._flatly("barrier", call, self.flat._barrier, nothing)
        return self._work(lambda _: [self._announce(call), self._announce(call, self.rail)], call)

    # Phases.

    def _goes_flat(self, array: np.ndarray, op: str) -> bool:
        return self.why_flat is not None or op == "mean" or (op == "sum" and array.dtype == BFLOAT16)

    def _blocks(self, counts: list[int]) -> tuple[list[int], list[tuple[int, int, list[int]]]]:
        """Where each part of the rail begins among the rail's parts; and of each node, where its block begins and ends
        in the array and where its parts begin in the block."""
        begins = [*offsets_of(counts), sum(counts)]
        rail = [counts[node[self._l]] for node in self._nodes]
        blocks = []
        for node in self._nodes:
            begin, end = begins[node[0]], begins[node[-1] + 1]
            blocks.append((begin, end, [begins[rank] - begin for rank in node] + [end - begin]))
        return [*offsets_of(rail), sum(rail)], blocks

    def _phase(
        self,
        on: Group,
        kind: str,
        count: int,
        output: np.ndarray,
        input: np.ndarray,
        begins: Sequence[int] | None = None,
        *,
        op: str = "sum",
        root: int = -1,
        call: tuple[int, ...] | None = None,
    ) -> Phase:
        if isinstance(on, EngineGroup):
            make = on._make(Call(kind, count, output, input, begins, op, root, input.nbytes))
            return Phase(on, lambda: EngineWork(on, make), make, call)
        sizes = None if begins is None else [b - a for a, b in pairwise(begins)]
        starts: dict[str, Callable[[], Work]] = {
            "all_reduce": lambda: on._all_reduce(_copied(output, input), op),
            "reduce_scatter": lambda: on._reduce_scatter(output, input, op, sizes or []),
            "all_gather": lambda: on._all_gather(output, input, sizes or []),
            "broadcast": lambda: on._broadcast(input, root),
            "barrier": on._barrier,
        }
        return Phase(on, starts[kind])

    def _announce(self, call: tuple[int, ...], on: Group | None = None) -> Phase:
        """All ranks of the node, or of the rail, come together and compare what they call."""
        nothing = np.empty(0, np.uint8)
        return self._phase(on or self._first, "barrier", 0, nothing, nothing, call=call)

    def _flatly(
        self,
        kind: str,
        call: tuple[int, ...],
        start: Callable[[], Work],
        input: np.ndarray,
        output: np.ndarray | None = None,
        begins: Sequence[int] | None = None,
        op: str = "sum",
        made: Call | None = None,
    ) -> Work:
        self._check_usable(kind)
        if self.why_flat is not None:
            return start()
        flat = self.flat
        if isinstance(flat, EngineGroup):
            out = input if output is None else output
            made = made or Call(kind, input.size, out, input, begins, op, -1, input.nbytes, call[-1])
            make = flat._make(made)
            phase = Phase(flat, lambda: EngineWork(flat, make), make)
        else:
            phase = Phase(flat, start)
        return self._work(lambda _: [self._announce(call), self._announce(call, self.rail), phase], call)

    def _work(
        self,
        phases: Callable[[np.ndarray], list[Phase]],
        call: tuple[int, ...],
        memory: tuple[int, np.dtype] = (0, _BYTE),
    ) -> Work:
        self._check_usable("an operation")
        return (ChainWork if self._chained else PolledWork)(self, phases, call, memory)

    def lend(
        self, count: int, dtype: np.dtype, work: FlyingWork | None
    ) -> tuple[np.ndarray, FlyingWork | None]:
        """Memory for the phases of an operation, and the asynchronous operation that must have ended before they begin.

        Operations in flight take turns with two pieces, so that their memory does not grow with their number; a
        synchronous one (`work` None) has a third piece. Pieces grow to what was needed once.
        """
        if count == 0:
            return np.empty(0, dtype), None
        number = _PIECES - 1 if work is None else self._turn
        if work is not None:
            self._turn = (self._turn + 1) % (_PIECES - 1)
        piece, before = self._pieces[number]
        nbytes = count * dtype.itemsize
        if piece.size < nbytes:  # the operation that has the old one keeps it alive
            large = nbytes > SMALL_ALL_REDUCE_BYTES
            piece, before = (self.flat.allocate(nbytes) if large else np.empty(nbytes, np.uint8)), None
        self._pieces[number] = (piece, work)
        return piece[:nbytes].view(dtype), before if before is not None and not before.ended() else None

    # What the works need.

    @property
    def peers(self) -> Node:
        """The ranks of this node."""
        return self._peers

    def poll(self) -> None:
        """Move what is in flight, of all groups of the process: a rank may be waited for in any of them."""
        if self.flying and self not in self._peers.polled:
            self._peers.polled.append(self)
        for group in self._peers.polled:
            group.start_phases()
        self._peers.polled = [group for group in self._peers.polled if group.flying]

    def start_phases(self) -> None:
        """Start phases that may start: an operation's on a group when all operations before it have started theirs."""
        for number, work in enumerate(self.flying):
            earlier = self.flying[:number]
            work.advance(partial(_none_will_use, earlier))
        self.flying = [work for work in self.flying if not work.ended()]


def _none_will_use(works: Sequence[PolledWork], on: Group) -> bool:
    return not any(work.will_use(on) for work in works)


def _copied(output: np.ndarray, input: np.ndarray) -> np.ndarray:
    output[:] = input
    return output
