"""What every kind of Group must do, whatever carries its bytes: `run(group)` on each rank of the group.

Checks are plain functions of a group of any size. Inputs come from `contribution(rank, ...)`, so that every
rank can compute what the others gave and hold the result against an oracle: numpy in fp64 for floating point,
within n_ranks·eps·Σ|x| (each of the size-1 additions and the last rounding errs by at most eps/2 of a partial
sum that Σ|x| bounds), exactly for integers, maxima and everything that only moves. The canonical order is
checked to the bit: ranks ascending, one accumulator (fp32 for bf16), one rounding.
"""

from __future__ import annotations

import functools
import hashlib

import ml_dtypes
import numpy as np
import pytest

from cktrain.comm.group import Group, even_counts, offsets_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOATS = [np.dtype(np.float32), BFLOAT16, np.dtype(np.float64)]
INTEGERS = [np.dtype(np.int32), np.dtype(np.int64)]
DTYPES = FLOATS + INTEGERS
EPS = {np.dtype(np.float32): 2.0**-23, BFLOAT16: 2.0**-7, np.dtype(np.float64): 2.0**-52}
# Empty, one, fewer than ranks, a prime, and one beyond any eager limit.
LENGTHS = [0, 1, 2, 1009, 100_003]


SCALES = np.array([0.05, 0.5, 5.0, 50.0, 500.0])
"""A table: powers were most of a check's time where floating point is emulated."""


REMEMBERED = 60_000
"""Longer ones would take memory. Checks ask for the same ones again, with other operations, and where the processor is
emulated to make them was a third of a check's time."""


def contribution(rank: int, length: int, dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """What `rank` gives: values of mixed size and sign, so that another order gives other bits."""
    if length > REMEMBERED:
        return _made(rank, length, dtype, seed)
    return _remembered(rank, length, dtype, seed).copy()


def _made(rank: int, length: int, dtype: np.dtype, seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, rank, length])
    if dtype.kind == "i":
        return generator.integers(-1000, 1000, length).astype(dtype)
    return ((generator.random(length) - 0.5) * SCALES[generator.integers(0, 5, length)]).astype(dtype)


_remembered = functools.lru_cache(maxsize=64)(_made)


NODES: list[list[int]] = []
"""Where a group has two levels, its ranks by node: sums of fp32 and fp64 are first those of each node."""


def in_canonical_order(contributions: list[np.ndarray], op: str) -> np.ndarray:
    """The bits that every rank must hold."""
    if NODES and op == "sum" and contributions[0].dtype != BFLOAT16:
        assert sum(map(len, NODES)) == len(contributions)
        return in_one_order([in_one_order([contributions[r] for r in node], op) for node in NODES], op)
    return in_one_order(contributions, op)


def in_one_order(contributions: list[np.ndarray], op: str) -> np.ndarray:
    """One after the other."""
    dtype = contributions[0].dtype
    acc = contributions[0].astype(np.float32 if dtype == BFLOAT16 else dtype)
    for x in contributions[1:]:
        x = x.astype(acc.dtype)
        acc = {"sum": np.add, "mean": np.add, "max": np.maximum, "min": np.minimum}[op](acc, x)
    if op == "mean":
        acc = acc / acc.dtype.type(len(contributions))
    return acc.astype(dtype)


def assert_near_fp64(result: np.ndarray, contributions: list[np.ndarray], op: str) -> None:
    if op not in ("sum", "mean"):
        return
    if result.dtype.kind == "i":
        assert np.array_equal(result, sum(x.astype(np.int64) for x in contributions))
        return
    exact = np.sum([x.astype(np.float64) for x in contributions], axis=0)
    magnitude = np.sum([np.abs(x.astype(np.float64)) for x in contributions], axis=0)
    scale = len(contributions) if op == "mean" else 1
    bound = len(contributions) * EPS[result.dtype] * magnitude / scale
    assert np.all(np.abs(result.astype(np.float64) - exact / scale) <= bound)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def ops_of(dtype: np.dtype) -> list[str]:
    return ["sum", "max", "min"] if dtype.kind == "i" else ["sum", "mean", "max", "min"]


def check_all_reduce(group: Group) -> None:
    for dtype in DTYPES:
        for op in ops_of(dtype):
            for length in LENGTHS:
                contributions = [contribution(r, length, dtype) for r in range(group.size)]
                array = contributions[group.rank].copy()
                group.all_reduce(array, op)
                assert same_bits(array, in_canonical_order(contributions, op)), (dtype, op, length)
                assert_near_fp64(array, contributions, op)


def check_flat(group: Group) -> None:
    """What the trainer's deterministic mode stands on: the order of ranks, whatever the nodes."""
    contributions = [contribution(r, 100_003, np.dtype(np.float32)) for r in range(group.size)]
    array = contributions[group.rank].copy()
    group.flat.all_reduce(array)
    assert same_bits(array, in_one_order(contributions, "sum"))


def check_large(group: Group) -> None:
    """Long enough that a transport works on several pieces at once."""
    for dtype in (np.dtype(np.float32), BFLOAT16):
        length = 3_000_017
        contributions = [contribution(r, length, dtype) for r in range(group.size)]
        array = contributions[group.rank].copy()
        group.all_reduce(array)
        assert same_bits(array, in_canonical_order(contributions, "sum")), dtype


def check_reduce_scatter(group: Group) -> None:
    for dtype in DTYPES:
        for op in ops_of(dtype):
            for length in LENGTHS:
                total = length * group.size
                contributions = [contribution(r, total, dtype, 1) for r in range(group.size)]
                output = np.zeros(length, dtype)
                group.reduce_scatter(output, contributions[group.rank], op)
                part = slice(group.rank * length, (group.rank + 1) * length)
                assert same_bits(output, in_canonical_order(contributions, op)[part]), (dtype, op, length)


def check_reduce_scatter_counts(group: Group) -> None:
    """Unequal parts, an empty one among them, in place and not; the rest of the input stays."""
    counts = [(r * 9973) % 40_000 for r in range(group.size)]
    offset = offsets_of(counts)[group.rank]
    part = slice(offset, offset + counts[group.rank])
    for dtype in DTYPES:
        contributions = [contribution(r, sum(counts), dtype, 2) for r in range(group.size)]
        expected = in_canonical_order(contributions, "sum")[part]
        mine = contributions[group.rank].copy()
        output = np.zeros(counts[group.rank], dtype)
        group.reduce_scatter(output, mine, counts=counts)
        assert same_bits(output, expected)
        assert same_bits(mine, contributions[group.rank])
        group.reduce_scatter(mine[part], mine, counts=counts)
        assert same_bits(mine[part], expected)
        assert same_bits(mine[: part.start], contributions[group.rank][: part.start])
        assert same_bits(mine[part.stop :], contributions[group.rank][part.stop :])


def check_all_gather(group: Group) -> None:
    for dtype in DTYPES:
        for length in LENGTHS:
            parts = [contribution(r, length, dtype, 3) for r in range(group.size)]
            output = np.zeros(length * group.size, dtype)
            group.all_gather(output, parts[group.rank])
            assert same_bits(output, np.concatenate(parts)), (dtype, length)


def check_all_gather_counts(group: Group) -> None:
    counts = [(r * 9973) % 40_000 for r in range(group.size)]
    offset = offsets_of(counts)[group.rank]
    parts = [contribution(r, counts[r], BFLOAT16, 4) for r in range(group.size)]
    output = np.zeros(sum(counts), BFLOAT16)
    mine = output[offset : offset + counts[group.rank]]
    mine[:] = parts[group.rank]
    group.all_gather(output, mine, counts=counts)
    assert same_bits(output, np.concatenate(parts))


def check_all_reduce_is_reduce_scatter_and_all_gather(group: Group) -> None:
    """Parts and lengths must not change a bit: this is what lets an optimizer be sharded."""
    for length in (5, 1009, 300_007):
        mine = contribution(group.rank, length, np.dtype(np.float32), 5)
        whole = mine.copy()
        group.all_reduce(whole, "mean")
        counts = even_counts(length, group.size)
        part = np.empty(counts[group.rank], np.float32)
        group.reduce_scatter(part, mine, "mean", counts)
        again = np.empty(length, np.float32)
        group.all_gather(again, part, counts)
        assert same_bits(whole, again)


def check_broadcast(group: Group) -> None:
    for dtype in DTYPES:
        for root in range(group.size):
            for length in LENGTHS:
                array = contribution(group.rank, length, dtype, 6)
                if group.rank == root:
                    array.flags.writeable = False
                group.broadcast(array, root)
                assert same_bits(array, contribution(root, length, dtype, 6)), (dtype, root, length)


def check_all_to_all(group: Group) -> None:
    for dtype in DTYPES:
        for length in LENGTHS:
            inputs = [contribution(r, length * group.size, dtype, 7) for r in range(group.size)]
            output = np.zeros(length * group.size, dtype)
            group.all_to_all(output, inputs[group.rank])
            part = slice(group.rank * length, (group.rank + 1) * length)
            assert same_bits(output, np.concatenate([x[part] for x in inputs])), (dtype, length)
            twice = np.zeros_like(output)
            group.all_to_all(twice, output)
            assert same_bits(twice, inputs[group.rank])


def between(size: int, length: int) -> dict[str, np.ndarray]:
    """Elements from rank s to rank r, [s, r], of all_to_alls in which ranks send each other any numbers."""
    rank = np.arange(size)
    uneven = (np.add.outer(7919 * rank, 3 * rank) * length) % (length + 1)
    uneven[0, -1] = 0  # and, of most sizes, others
    one_way = np.zeros((size, size), np.int64)
    one_way[0] = length + rank
    one_long = np.ones((size, size), np.int64)
    one_long[-1, 0] = 2 * length
    return {
        "uneven": uneven,
        "from one": one_way,
        "to one": one_way.T.copy(),
        "one is long": one_long,
        "nothing": np.zeros((size, size), np.int64),
    }


def check_all_to_all_counts(group: Group) -> None:
    """Parts of any length, none too, in memory that the ranks share and not; what lies around the output stays."""
    rank = group.rank
    arena = group.allocate(2 << 20)
    for length in (0, 3, 9973, 40_009):
        for name, counts in between(group.size, length).items():
            for dtype in (
                (np.dtype(np.float32), BFLOAT16, np.dtype(np.int64)) if length < 40_000 else (BFLOAT16,)
            ):
                given = [contribution(s, int(counts[s].sum()), dtype, 31) for s in range(group.size)]
                parts = [np.split(given[s], np.cumsum(counts[s])[:-1])[rank] for s in range(group.size)]
                mine = given[rank]
                if length == 9973 and dtype == BFLOAT16:
                    mine = arena[: mine.nbytes].view(dtype)
                    mine[:] = given[rank]
                whole = np.full(int(counts[:, rank].sum()) + 2, 77, dtype)
                group.all_to_all(whole[1:-1], mine, counts[:, rank], counts[rank], async_=length == 3).wait()
                assert same_bits(whole[1:-1], np.concatenate(parts)), (name, length, dtype)
                assert whole[0] == 77 and whole[-1] == 77
                assert same_bits(mine, given[rank])
    # Who has equal parts need not say so.
    equal = [5] * group.size
    output = np.zeros(5 * group.size, np.int32)
    given = np.repeat(np.arange(group.size, dtype=np.int32), 5)
    group.all_to_all(output, given, *((equal, None) if rank % 2 else (None, equal)))
    assert np.all(output == rank)


def check_send_and_recv(group: Group) -> None:
    """Round the ring, several messages in flight; the longest is beyond any eager limit."""
    if group.size == 1:
        return
    following, previous = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    for dtype in DTYPES:
        sent = [contribution(group.rank, length, dtype, 8) for length in LENGTHS]
        received = [np.zeros(length, dtype) for length in LENGTHS]
        works = [group.recv(x, previous, async_=True) for x in received]
        works += [group.send(x, following, async_=True) for x in sent]
        for work in works:
            work.wait()
        for length, x in zip(LENGTHS, received, strict=True):
            assert same_bits(x, contribution(previous, length, dtype, 8)), (dtype, length)
    token = np.zeros(3, np.int64)
    if group.rank == 0:
        group.send(token + 1, following)
        group.recv(token, previous)
        assert token.tolist() == [group.size] * 3
    else:
        group.recv(token, previous)
        group.send(token + 1, following)


def check_slices(group: Group) -> None:
    """A slice of a larger buffer at any offset, and arrays of any shape; what lies outside stays."""
    for dtype in DTYPES:
        for offset, length in ((1, 7), (3, 1009), (12_345, 100_003)):
            arena = np.full(offset + length + 5, 77, dtype)
            contributions = [contribution(r, length, dtype, 9) for r in range(group.size)]
            arena[offset : offset + length] = contributions[group.rank]
            group.all_reduce(arena[offset : offset + length])
            assert same_bits(arena[offset : offset + length], in_canonical_order(contributions, "sum"))
            assert np.all(arena[:offset] == 77) and np.all(arena[offset + length :] == 77)
    matrix = np.full((3, 4, 5), group.rank, np.float32)
    group.all_reduce(matrix, "max")
    assert np.all(matrix == group.size - 1)
    scalar = np.array(1, np.int64)
    group.all_reduce(scalar)
    assert scalar == group.size


def check_special_values(group: Group) -> None:
    last = group.size - 1
    for dtype in FLOATS:
        array = np.zeros(4, dtype)
        if group.rank == last:
            array[:] = [np.nan, np.inf, -np.inf, -0.0]
        for op in ("sum", "max", "min"):
            result = array.copy()
            group.all_reduce(result, op)
            assert np.isnan(result[0]), (dtype, op)
        result = array.copy()
        group.all_reduce(result)
        assert result[1] == np.inf and result[2] == -np.inf and result[3] == 0
    array = np.array([2**31 - 1, -5], np.int32)
    group.all_reduce(array)
    expected = np.array([(2**31 - 1) * group.size, -5 * group.size], np.int64).astype(np.int32)
    assert np.array_equal(array, expected)


def check_same_bits_on_all_ranks(group: Group) -> None:
    """Compared by what the ranks say of their own arrays, not by an oracle that might share a mistake."""
    for dtype in FLOATS:
        for length in (1, 1009, 100_003):
            digests = []
            for _ in range(2):
                array = contribution(group.rank, length, dtype, 10)
                group.all_reduce(array)
                digests += group.all_gather_bytes(hashlib.sha256(array.tobytes()).digest())
            assert len(set(digests)) == 1, (dtype, length)


def check_bytes(group: Group) -> None:
    data = [bytes([r]) * (r * 1000) for r in range(group.size)]
    assert group.all_gather_bytes(data[group.rank]) == data
    for root in range(group.size):
        assert group.broadcast_bytes(f"from {group.rank}".encode(), root) == f"from {root}".encode()
    assert group.broadcast_bytes(b"") == b""


def check_async(group: Group) -> None:
    """Several operations in flight, waited for in another order on each rank."""
    length = 200_003
    contributions = [contribution(r, length, np.dtype(np.float32), 11) for r in range(group.size)]
    sums = [contributions[group.rank].copy() for _ in range(4)]
    gathered = np.zeros(length * group.size, np.float32)
    works = [group.all_reduce(x, async_=True) for x in sums[:2]]
    works.append(group.all_gather(gathered, contributions[group.rank], async_=True))
    works += [group.all_reduce(x, async_=True) for x in sums[2:]]
    rotation = group.rank % len(works)
    for work in works[rotation:] + works[:rotation]:
        work.wait()
        assert work.done()
    expected = in_canonical_order(contributions, "sum")
    assert all(same_bits(x, expected) for x in sums)
    assert same_bits(gathered, np.concatenate(contributions))
    # The handle alone keeps the array alive, and done() alone carries it to its end.
    work = group.all_reduce(np.ones(length, np.float32), async_=True)
    while not work.done():
        pass
    group.barrier()


def check_split(group: Group) -> None:
    parity = group.split(group.rank % 2)
    members = [r for r in range(group.size) if r % 2 == group.rank % 2]
    assert (parity.rank, parity.size) == (members.index(group.rank), len(members))
    array = np.array([group.rank], np.int32)
    parity.all_reduce(array)
    assert array[0] == sum(members)

    reverse = group.split(0, key=-group.rank)
    assert reverse.rank == group.size - 1 - group.rank
    ranks = np.zeros(group.size, np.int64)
    reverse.all_gather(ranks, np.array([group.rank], np.int64))
    assert ranks.tolist() == list(range(group.size - 1, -1, -1))

    alone = group.split(group.rank)
    assert (alone.rank, alone.size) == (0, 1)
    alone.barrier()

    # Two groups in flight at once, waited for in opposite orders: neither may hold the other up.
    first, second = np.ones(100_003, np.float32), np.ones(100_003, np.float32)
    works = [group.all_reduce(first, async_=True), reverse.all_reduce(second, async_=True)]
    for work in works if group.rank % 2 else reversed(works):
        work.wait()
    assert np.all(first == group.size) and np.all(second == group.size)
    nested = reverse.split(parity.rank)
    nested.barrier()
    for part in (nested, alone, reverse, parity):
        part.close()


def check_many_mixed(group: Group) -> None:
    """200 operations back to back, of random kind, length and dtype: no message may meet another's buffer."""
    generator = np.random.default_rng(12)
    for step in range(200):
        kind = generator.choice(["all_reduce", "reduce_scatter", "all_gather", "broadcast", "barrier"])
        length = int(generator.choice([0, 1, 3, 100, 5000, 40_000]))
        dtype = DTYPES[int(generator.integers(len(DTYPES)))]
        total = length * group.size
        contributions = [contribution(r, total, dtype, 13 + step) for r in range(group.size)]
        mine = contributions[group.rank].copy()
        part = slice(group.rank * length, (group.rank + 1) * length)
        if kind == "all_reduce":
            group.all_reduce(mine)
            assert same_bits(mine, in_canonical_order(contributions, "sum")), step
        elif kind == "reduce_scatter":
            group.reduce_scatter(mine[part], mine)
            assert same_bits(mine[part], in_canonical_order(contributions, "sum")[part]), step
        elif kind == "all_gather":
            group.all_gather(mine, mine[part])
            parts = [x[r * length : (r + 1) * length] for r, x in enumerate(contributions)]
            assert same_bits(mine, np.concatenate(parts)), step
        elif kind == "broadcast":
            root = step % group.size
            group.broadcast(mine, root)
            assert same_bits(mine, contributions[root]), step
        else:
            group.barrier()


def check_bad_arguments(group: Group) -> None:
    """Refused before anything is sent, so the group is as good as before."""
    good = np.zeros(4, np.float32)
    read_only = np.zeros(4, np.float32)
    read_only.flags.writeable = False
    size, whole = group.size, np.zeros(4 * group.size, np.float32)
    own_differs = [[n * (r == group.rank) for r in range(size)] for n in (1, 3)]
    cases = [
        (lambda: group.all_reduce([1.0]), "a list"),
        (lambda: group.all_reduce(np.zeros(4, np.float16)), "float16"),
        (lambda: group.all_reduce(np.zeros(4, ">f4")), ">f4"),
        (lambda: group.all_reduce(np.zeros((4, 4), np.float32)[:, 1]), "C-contiguous"),
        (lambda: group.all_reduce(read_only), "read-only"),
        (lambda: group.all_reduce(good, "product"), "'product'"),
        (lambda: group.all_reduce(np.zeros(4, np.int32), "mean"), "mean of int32"),
        (
            lambda: group.reduce_scatter(good, np.zeros(4 * size + 1, np.float32)),
            f"{4 * size + 1:,} elements",
        ),
        (lambda: group.reduce_scatter(good, whole.astype(np.float64)), "float64"),
        (lambda: group.reduce_scatter(good, whole, counts=[4] * (size + 1)), f"{size + 1} counts"),
        (lambda: group.reduce_scatter(good, whole, counts=[5] * size), "4 elements, but counts give"),
        (lambda: group.all_gather(whole[:-1], good), f"{4 * size - 1:,} elements"),
        (lambda: group.all_to_all(whole, whole), "overlaps"),
        (lambda: group.all_to_all(whole, whole.astype(np.float64), [4] * size, [4] * size), "float64"),
        (lambda: group.all_to_all(whole, whole.copy(), [4] * (size + 1)), f"{size + 1} output_counts"),
        (lambda: group.all_to_all(whole, whole.copy(), None, [5] * size), f"sum to {5 * size:,}"),
        (lambda: group.all_to_all(good, good.copy(), None, [-1] * size), "negative"),
        (lambda: group.all_to_all(good, good.copy(), None, [0.5] * size), "no whole numbers"),
        (
            lambda: group.all_to_all(good[:1], good[1:], *own_differs),
            f"rank {group.rank} has 3 elements for itself",
        ),
        (lambda: group.broadcast(good, size), f"root {size}"),
        (lambda: group.send(good, group.rank), "this rank itself"),
        (lambda: group.recv(good, -1), "source -1"),
        (lambda: group.split(-1), "color -1"),
    ]
    if size > 1:
        cases.append(
            (
                lambda: group.all_to_all(np.zeros(size + 1, np.float32), np.zeros(size + 1, np.float32)),
                "divide",
            )
        )
        wrong = slice(4 * group.rank + 1, 4 * group.rank + 5)
        longer = np.zeros(4 * size + 4, np.float32)
        cases.append((lambda: group.reduce_scatter(longer[wrong], longer[: 4 * size]), "overlap"))
    for call, words in cases:
        with pytest.raises(ValueError) as caught:
            call()
        message = str(caught.value)
        assert words in message, (words, message)
        assert message.startswith(f"[comm.{group.name}] "), message
    group.barrier()


CHECKS = [
    check_all_reduce,
    check_flat,
    check_large,
    check_reduce_scatter,
    check_reduce_scatter_counts,
    check_all_gather,
    check_all_gather_counts,
    check_all_reduce_is_reduce_scatter_and_all_gather,
    check_broadcast,
    check_all_to_all,
    check_all_to_all_counts,
    check_send_and_recv,
    check_slices,
    check_special_values,
    check_same_bits_on_all_ranks,
    check_bytes,
    check_async,
    check_split,
    check_many_mixed,
    check_bad_arguments,
]


def run(group: Group) -> list[str]:
    """Run every check on every rank of `group`; return the names of those that ran."""
    for check in CHECKS:
        check(group)
        group.barrier()
    return [check.__name__ for check in CHECKS]
