"""Any operation, dtype, length, offset and number of ranks: hypothesis draws calls, numpy says what they must give.

The ranks are threads that live through all examples (crew.py). Sums in canonical order are checked to the bit, and
against fp64 within the bound of conformance.py; what lies around the arrays must stay as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import conformance
import numpy as np
import pytest
from crew import crew_of, dismiss
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cktrain.comm.errors import CollectiveMismatchError
from cktrain.comm.group import Group, offsets_of

GUARD = 77
KINDS = ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "message")


@pytest.fixture(scope="module", autouse=True)
def crews() -> Iterator[None]:
    yield
    dismiss()


@dataclass(frozen=True)
class Call:
    """One call, as all ranks make it."""

    kind: str
    dtype: np.dtype
    length: int
    """Of the array, or of each rank's part."""
    offset: int
    """Of the array in a larger one, elements."""
    op: str
    arena: bool
    """The arrays lie in the group's shared memory."""
    async_: bool
    in_place: bool
    """The output is the own part of the other array."""
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}({self.dtype}[{self.length}] at {self.offset}, {self.op}, {self.seed})"


@st.composite
def calls(draw: st.DrawFn) -> Call:
    dtype = draw(st.sampled_from(conformance.DTYPES))
    # Short ones; those around the border between slots and stages (64 KiB); and some of several chunks.
    border = (64 << 10) // dtype.itemsize
    length = draw(
        st.one_of(st.integers(0, 40), st.integers(border - 20, border + 20), st.integers(100_000, 160_000))
    )
    return Call(
        kind=draw(st.sampled_from(KINDS)),
        dtype=dtype,
        length=length,
        offset=draw(st.integers(0, 70)),
        op=draw(st.sampled_from(conformance.ops_of(dtype))),
        arena=draw(st.booleans()),
        async_=draw(st.booleans()),
        in_place=draw(st.booleans()),
        seed=draw(st.integers(0, 1 << 30)),
    )


ARENAS: dict[int, np.ndarray] = {}
ARENA_BYTES = 16 << 20


def have_an_arena(group: Group) -> None:
    if id(group) not in ARENAS:
        ARENAS[id(group)] = group.allocate(ARENA_BYTES)


def room(group: Group, call: Call, length: int, place: int) -> np.ndarray:
    """An array with guards around it: in half `place` of the shared memory, or alone."""
    nbytes = (call.offset + length + 8) * call.dtype.itemsize
    if call.arena and nbytes <= ARENA_BYTES // 2:
        have_an_arena(group)
        begin = place * (ARENA_BYTES // 2)
        whole = ARENAS[id(group)][begin : begin + nbytes].view(call.dtype)
    else:
        whole = np.empty(call.offset + length + 8, call.dtype)
    whole[:] = GUARD
    return whole


def perform(group: Group, call: Call) -> Callable[[], None]:
    """Start the call; what is returned waits for it and checks what came."""
    n, size, rank = call.length, group.size, group.rank
    total = n * size if call.kind in ("reduce_scatter", "all_gather", "all_to_all") else n
    given = [conformance.contribution(r, total, call.dtype, call.seed) for r in range(size)]
    first = room(group, call, total, 0)
    array = first[call.offset : call.offset + total]
    part = slice(rank * n, (rank + 1) * n)
    guarded = [(first, total)]
    other = np.empty(0, call.dtype)
    if call.kind in ("reduce_scatter", "all_gather", "all_to_all"):
        if call.in_place and call.kind != "all_to_all":
            other = array[part]
        else:
            length = total if call.kind == "all_to_all" else n
            second = room(group, call, length, 1)
            other = second[call.offset : call.offset + length]
            guarded.append((second, length))
    array[:] = given[rank]
    wanted: np.ndarray
    result = array
    match call.kind:
        case "all_reduce":
            work = group.all_reduce(array, call.op, async_=call.async_)
            wanted = conformance.in_canonical_order(given, call.op)
        case "reduce_scatter":
            work = group.reduce_scatter(other, array, call.op, async_=call.async_)
            wanted, result = conformance.in_canonical_order(given, call.op)[part], other
        case "all_gather":
            other[:] = given[rank][:n]
            work = group.all_gather(array, other, async_=call.async_)
            wanted = np.concatenate([x[:n] for x in given])
        case "broadcast":
            work = group.broadcast(array, call.seed % size, async_=call.async_)
            wanted = given[call.seed % size]
        case "all_to_all":
            work = group.all_to_all(other, array, async_=call.async_)
            wanted, result = np.concatenate([x[part] for x in given]), other
        case _:
            sent = given[rank].copy()
            work = group.recv(array, (rank - 1) % size, async_=True)
            group.send(sent, (rank + 1) % size, async_=call.async_).wait()
            wanted = given[(rank - 1) % size]

    def check() -> None:
        work.wait()
        assert conformance.same_bits(result, wanted), f"rank {rank} of {size}: {call}"
        if call.kind == "all_reduce":
            conformance.assert_near_fp64(result, given, call.op)
        for whole, length in guarded:
            outside = [whole[: call.offset], whole[call.offset + length :]]
            assert all(np.all(each == GUARD) for each in outside), f"rank {rank} of {size}: {call}, outside"

    return check


def one_call(group: Group, call: Call) -> bytes:
    perform(group, call)()
    return b""


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(call=calls(), size=st.integers(2, 5))
def test_any_call(transport, call, size):
    crew_of(transport, size).do(lambda group: one_call(group, call))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(some=st.lists(calls(), min_size=2, max_size=5), size=st.integers(2, 4), seed=st.integers(0, 1 << 20))
def test_calls_in_flight_together(transport, some, size, seed):
    """Each rank waits for them in an order of its own."""
    some = [Call(**(vars(call) | {"async_": True, "arena": False})) for call in some]

    def together(group: Group) -> None:
        checks = [perform(group, call) for call in some if call.kind != "message"]
        for which in np.random.default_rng([seed, group.rank]).permutation(len(checks)):
            checks[which]()

    crew_of(transport, size).do(together)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.one_of(st.integers(0, 30), st.integers(0, 30_000)), min_size=2, max_size=4),
    dtype=st.sampled_from(conformance.DTYPES),
    seed=st.integers(0, 1 << 30),
)
def test_unequal_parts(transport, counts, dtype, seed):
    """reduce_scatter and all_gather by counts are inverse to each other's place, and all ranks hold the same bits."""

    def both(group: Group) -> bytes:
        given = [conformance.contribution(r, sum(counts), dtype, seed) for r in range(group.size)]
        part = np.empty(counts[group.rank], dtype)
        group.reduce_scatter(part, given[group.rank], counts=counts)
        begin = offsets_of(counts)[group.rank]
        wanted = conformance.in_canonical_order(given, "sum")
        assert conformance.same_bits(part, wanted[begin : begin + part.size])
        whole = np.empty(sum(counts), dtype)
        group.all_gather(whole, part, counts=counts)
        assert conformance.same_bits(whole, wanted)
        return hashlib.sha256(whole.tobytes()).digest()

    assert len(set(crew_of(transport, len(counts)).do(both))) == 1


@st.composite
def exchanges(draw: st.DrawFn) -> np.ndarray:
    """Elements from each rank to each, [s, r]: few or many, none, and none at all from or to some rank."""
    size = draw(st.integers(2, 4))
    n = st.one_of(st.just(0), st.integers(0, 30), st.integers(0, 30_000))
    counts = np.array([[draw(n) for _ in range(size)] for _ in range(size)], np.int64)
    for axis in draw(st.lists(st.sampled_from(["sends nothing", "gets nothing"]), max_size=2)):
        rank = draw(st.integers(0, size - 1))
        counts[(rank, slice(None)) if axis == "sends nothing" else (slice(None), rank)] = 0
    return counts


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=exchanges(),
    dtype=st.sampled_from(conformance.DTYPES),
    arenas=st.lists(st.booleans(), min_size=4, max_size=4),
    async_=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_all_to_all_of_any_lengths(transport, counts, dtype, arenas, async_, seed):
    """Some ranks' arrays in the group's memory; what comes is what went, and a second one there and back gives it again."""

    def exchange(group: Group) -> None:
        rank = group.rank
        given = [conformance.contribution(s, int(counts[s].sum()), dtype, seed) for s in range(group.size)]
        wanted = np.concatenate([np.split(x, np.cumsum(counts[s])[:-1])[rank] for s, x in enumerate(given)])
        shape = Call("all_to_all", dtype, 0, 3, "", arenas[rank], async_, False, seed)
        first, second = (room(group, shape, x.size, place) for place, x in enumerate((given[rank], wanted)))
        mine, output = first[3:-8], second[3:-8]
        mine[:] = given[rank]
        group.all_to_all(output, mine, counts[:, rank], counts[rank], async_=async_).wait()
        assert conformance.same_bits(output, wanted)
        mine[:] = 0
        group.all_to_all(mine, output, counts[rank], counts[:, rank], async_=async_).wait()
        assert conformance.same_bits(mine, given[rank])
        for whole in (first, second):
            assert np.all(whole[:3] == GUARD) and np.all(whole[-8:] == GUARD)

    crew = crew_of(transport, len(counts))
    crew.do(have_an_arena)
    crew.do(exchange)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=exchanges(),
    pair=st.tuples(st.integers(0, 3), st.integers(1, 3)),
    more=st.sampled_from([1, 3, 40_000]),
)
def test_a_count_that_differs_is_seen_by_all(transport, counts, pair, more):
    """One rank sends another more than that one expects; all raise, the two with both counts, and nothing was written."""
    size = len(counts)
    source = pair[0] % size
    to = (source + 1 + pair[1] % (size - 1)) % size

    def differ(group: Group) -> str:
        sent, received = counts[group.rank].copy(), counts[:, group.rank].copy()
        sent[to] += more * (group.rank == source)
        output = np.full(int(received.sum()), 7, np.float32)
        with pytest.raises(CollectiveMismatchError) as caught:
            group.all_to_all(output, np.zeros(int(sent.sum()), np.float32), received, sent)
        assert np.all(output == 7)
        return str(caught.value)

    crew = crew_of(transport, size)
    crew.broken = True
    words = crew.do(differ)
    crew.close()
    there, back = int(counts[source, to]), int(counts[to, source])
    mine = f"all_to_all(float32, {there + more:,} to and {back:,} from rank {to})"
    theirs = f"all_to_all(float32, {back:,} to and {there:,} from rank {source})"
    for rank in range(size):
        one, other = (mine, theirs) if rank == source else (theirs, mine)
        if rank in (source, to):
            assert (
                f"rank {rank} called {one}, but rank " in words[rank] and f" called {other}. " in words[rank]
            ), words
        else:
            assert (
                f"rank {source} called {mine}" in words[rank] and f"rank {to} called {theirs}" in words[rank]
            ), words


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    "difference, mine, theirs",
    [
        ("shape", "all_reduce(float32[10], sum)", "all_reduce(float32[11], sum)"),
        ("dtype", "all_reduce(float32[10], sum)", "all_reduce(float64[10], sum)"),
        ("op", "all_reduce(float32[10], sum)", "all_reduce(float32[10], max)"),
        ("operation", "all_reduce(float32[10], sum)", "barrier"),
    ],
)
def test_a_difference_is_seen_by_all_of_many_ranks(transport, difference, mine, theirs):
    """18 ranks, most of which exchange no payload with the odd one; none of them takes any."""
    odd = 11

    def differ(group: Group) -> None:
        array = np.full(
            11, group.rank, np.float64 if difference == "dtype" and group.rank == odd else np.float32
        )
        call = array[: 11 if difference == "shape" and group.rank == odd else 10]
        try:
            if difference == "operation" and group.rank == odd:
                group.barrier()
            else:
                group.all_reduce(call, "max" if difference == "op" and group.rank == odd else "sum")
        except CollectiveMismatchError as error:
            assert np.all(array == group.rank)
            words = str(error)
            called = theirs if group.rank == odd else mine
            assert f"rank {group.rank} called {called}, but " in words, words
            assert f"called {mine if group.rank == odd else theirs}" in words, words
            return
        raise AssertionError("the difference was not seen")

    crew = crew_of(transport, 18)
    crew.broken = True  # no group goes on after a mismatch
    crew.do(differ)
