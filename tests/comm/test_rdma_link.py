"""The rdma link's ring, grants and credit, on two ends in one process over a device that this file plays.

The device delivers what was posted when the test lets it, each direction in order, as a reliable connection does, and
it complains of what a real one would: a write outside of registered memory, a full send queue, an arrival that finds no
receive posted.
"""

from __future__ import annotations

import ctypes
import random

import numpy as np
import pytest

from cktrain.comm import _engine

RING, DIRECT = 64 << 10, 32 << 10


class Device:
    """A wire between two ports of a postroom, and the memory that may be written."""

    def __init__(self) -> None:
        self.room = _engine.Postroom()
        self.memory: list[np.ndarray] = []
        self.under_way: list[list[tuple]] = [[], []]
        self.receives = [0, 0]

    def collect(self) -> None:
        for number, receives, writes in self.room.take():
            self.receives[number] += receives
            self.under_way[number] += writes

    def deliver(self, number: int) -> bool:
        """The oldest write of a port arrives."""
        self.collect()
        if not self.under_way[number]:
            return False
        local, nbytes, lkey, remote, rkey, id_, imm, signaled, _ = self.under_way[number].pop(0)
        assert lkey and rkey and self.contains(local, nbytes) and self.contains(remote, nbytes)
        ctypes.memmove(remote, local, nbytes)
        if imm is not None:
            self.receives[1 - number] -= 1
            assert self.receives[1 - number] >= 0, "receiver not ready"
            self.room.arrived(1 - number, imm)
        if signaled:
            self.room.ended(number, id_, 0)
        return True

    def contains(self, address: int, nbytes: int) -> bool:
        return any(
            m.ctypes.data <= address and address + nbytes <= m.ctypes.data + m.nbytes for m in self.memory
        )


class End:
    """A link, its rings, and its registered memory."""

    def __init__(self, device: Device):
        self.device, self.regions = device, _engine.Regions()
        self.rings = np.zeros(_engine.RdmaLink.bytes_needed(RING), np.uint8)
        device.memory.append(self.rings)
        self.number, port = device.room.add()
        self.link = _engine.RdmaLink(
            port,
            self.regions,
            self.rings.ctypes.data,
            7,
            RING,
            chunk_bytes=RING // 4,
            direct_bytes=DIRECT,
            inline_bytes=128,
        )
        self.link.open()

    def registered(self, nbytes: int) -> np.ndarray:
        memory = np.zeros(nbytes, np.uint8)
        self.device.memory.append(memory)
        assert self.regions.add(memory.ctypes.data, nbytes, 8, 9, memory)
        return memory


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture(params=["completions", "notes"])
def ends(device: Device, request: pytest.FixtureRequest) -> tuple[End, End]:
    """Both hear of what is short by completions, or both look for it."""
    return joined(device, request.param == "notes", request.param == "notes")


def joined(device: Device, a_looks: bool, b_looks: bool) -> tuple[End, End]:
    a, b = End(device), End(device)
    a.link.connect(b.rings.ctypes.data, 7, b_looks)
    b.link.connect(a.rings.ctypes.data, 7, a_looks)
    return a, b


def some_bytes(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)


class Sending:
    """One direction's buffers, pushed and pulled one after another as a wire does."""

    def __init__(self, source: End, to: End, given: list[np.ndarray], into: list[np.ndarray]):
        self.source, self.to, self.given, self.into = source, to, given, into
        self.pushed = self.pulled = self.out = self.come = 0

    def push(self) -> None:
        if self.out == len(self.given):
            return
        buffer = self.given[self.out]
        n = self.source.link.push(buffer[self.pushed :])
        assert n >= 0
        self.pushed += n
        # A buffer may only be used again once it was flushed; the test does so at once.
        if self.pushed == buffer.size and self.source.link.flushed:
            buffer[:] = 0
            self.out, self.pushed = self.out + 1, 0

    def pull(self) -> None:
        if self.come == len(self.into):
            return
        buffer = self.into[self.come]
        n = self.to.link.pull(buffer[self.pulled :])
        assert n >= 0
        self.pulled += n
        if self.pulled == buffer.size:
            self.come, self.pulled = self.come + 1, 0

    @property
    def complete(self) -> bool:
        return self.come == len(self.into) and self.out == len(self.given)


def run(device: Device, flows: list[Sending], seed: int, limit: int = 200_000) -> None:
    """Any order of pushes, pulls and arrivals, the likelier ones chosen anew now and then."""
    choose = random.Random(seed)
    acts = [act for flow in flows for act in (flow.push, flow.pull)]
    acts += [lambda: device.deliver(0), lambda: device.deliver(1)]
    weights = [1.0] * len(acts)
    for step in range(limit):
        if step % 200 == 0:
            weights = [choose.choice([0.02, 0.2, 1.0]) for _ in acts]
        choose.choices(acts, weights)[0]()
        device.collect()
        assert max(len(x) for x in device.under_way) <= _engine.RDMA_SENDS
        if all(flow.complete for flow in flows):
            return
    raise AssertionError(f"stuck: {[(f.out, f.pushed, f.come, f.pulled) for f in flows]}")


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("registered", ["neither", "both", "sender", "receiver"])
def test_bytes_arrive_whole_and_in_order(device, ends, seed, registered):
    choose = random.Random(seed)
    flows, wanted = [], []
    for source, to in (ends, ends[::-1]):
        sizes = [choose.choice([1, 48, 49, 1000, 30_000, DIRECT, RING, RING + 1, 300_000]) for _ in range(40)]
        contents = [some_bytes(seed * 100 + i, size) for i, size in enumerate(sizes)]
        given, into = [], []
        for content in contents:
            given.append(source.registered(content.size) if registered in ("both", "sender") else content)
            given[-1][:] = content
            array = np.zeros(content.size, np.uint8)
            into.append(to.registered(content.size) if registered in ("both", "receiver") else array)
        wanted.append([content.copy() for content in contents])
        flows.append(Sending(source, to, given, into))
    run(device, flows, seed)
    for flow, contents in zip(flows, wanted, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(flow.into, contents, strict=True))
        _, direct, ring = flow.source.link.counts
        assert direct + ring == sum(x.size for x in contents)
        assert registered == "both" or direct == 0
    if registered == "both":
        assert sum(flow.source.link.counts[1] for flow in flows) > 0


def test_a_buffer_that_is_waited_for_is_written_in_place(device, ends):
    a, b = ends
    given, into = a.registered(1 << 20), b.registered(1 << 20)
    given[:] = some_bytes(1, given.size)
    assert b.link.pull(into) == 0  # the grant goes out
    device.deliver(b.number)
    assert a.link.push(given) == given.size
    assert a.link.counts[1:] == (given.size, 0)
    assert not a.link.flushed
    while device.deliver(a.number):
        pass
    assert a.link.flushed
    assert b.link.pull(into) == into.size
    assert np.array_equal(given, into)


def test_a_grant_that_comes_late_is_for_the_rest(device, ends):
    """What went through the ring before is copied, the rest is not, and both stand where they belong."""
    a, b = ends
    given, into = a.registered(1 << 20), b.registered(1 << 20)
    given[:] = some_bytes(2, given.size)
    pushed = a.link.push(given)
    assert 0 < pushed <= RING
    got = b.link.pull(into)
    assert got == 0
    device.deliver(b.number)
    pushed += a.link.push(given[pushed:])
    assert pushed == given.size
    while device.deliver(a.number):
        pass
    while got < into.size:
        n = b.link.pull(into[got:])
        assert n > 0
        got += n
    assert np.array_equal(given, into)
    assert a.link.counts[1] >= given.size - RING


def test_what_is_short_goes_through_the_ring(device, ends):
    a, b = ends
    given, into = a.registered(DIRECT - 1), b.registered(DIRECT - 1)
    assert b.link.pull(into) == 0
    assert not device.deliver(b.number)  # no grant
    assert a.link.push(given) == given.size
    assert a.link.counts[1] == 0


def test_a_sender_whose_peer_takes_nothing_stops_at_the_ring_and_at_the_receives(device, ends):
    a, b = ends
    assert a.link.push(np.zeros(2 * RING, np.uint8)) == RING
    assert a.link.push(np.zeros(200, np.uint8)) == 0
    messages = 0
    while b.link.push(np.zeros(1, np.uint8)) == 1:
        messages += 1
        device.deliver(b.number)
    assert 16 < messages < _engine.RDMA_RECEIVES


@pytest.mark.parametrize("looks", [(True, False), (False, True)])
def test_one_that_looks_and_one_that_does_not(device, looks):
    ends = joined(device, *looks)
    for i in range(100):
        for source, to in (ends, ends[::-1]):
            content, into = some_bytes(i, 1 + 3 * i), np.zeros(1 + 3 * i, np.uint8)
            assert source.link.push(content) == content.size
            while device.deliver(source.number):
                pass
            assert to.link.pull(into) == into.size
            assert np.array_equal(content, into)
            while device.deliver(to.number):  # credit
                pass


@pytest.mark.parametrize("nbytes", [1, 8, 48, 111, 112])
def test_a_note_is_taken_when_all_of_it_is_there(device, nbytes):
    """Its words become visible in any order, and the slot still has those of the message before."""
    a, b = joined(device, True, True)
    choose, into = random.Random(nbytes), np.zeros(nbytes, np.uint8)
    for turn in range(100):
        content = some_bytes(turn, nbytes)
        assert a.link.push(content) == nbytes
        device.collect()
        (local, length, _, remote, _, id_, imm, signaled, inlined) = device.under_way[a.number].pop(0)
        assert imm is None and inlined and length % 8 == 0
        words = list(range(0, length, 8))
        choose.shuffle(words)
        for at in words:
            if ctypes.string_at(local + at, 8) != ctypes.string_at(remote + at, 8):
                assert b.link.pull(into) == 0
                ctypes.memmove(remote + at, local + at, 8)
        assert b.link.pull(into) == nbytes
        assert np.array_equal(content, into)
        if signaled:
            device.room.ended(a.number, id_, 0)
        while device.deliver(b.number):  # credit
            pass


def test_what_is_short_takes_no_receive(device):
    a, b = joined(device, True, True)
    before = list(device.receives)
    for _ in range(5):
        a.link.push(some_bytes(5, 100))
        device.deliver(a.number)
        assert b.link.pull(np.zeros(100, np.uint8)) == 100
    device.collect()
    assert device.receives[b.number] - before[b.number] == _engine.RDMA_RECEIVES


@pytest.mark.parametrize("status, words", [(12, "RETRY_EXC_ERR"), (5, "WR_FLUSH_ERR"), (99, "broke")])
def test_a_broken_queue_pair_is_the_end_of_the_link(device, ends, status, words):
    a, b = ends
    a.link.push(some_bytes(3, 100))
    device.deliver(a.number)
    device.room.ended(b.number, 0, status)
    into = np.zeros(100, np.uint8)
    assert b.link.pull(into) == 100  # what had come before is not lost
    assert b.link.pull(into) < 0 and b.link.push(into) < 0
    assert words in b.link.broken
    assert a.link.broken is None


def test_the_end_comes_when_each_side_has_what_the_other_sent(device, ends):
    a, b = ends
    a.link.push(some_bytes(4, 100))
    assert not a.link.end() and not b.link.end()
    device.deliver(a.number)
    device.deliver(b.number)  # a knows that b will send no more, but not that b has everything
    assert not a.link.end()
    device.deliver(a.number)
    assert a.link.end() and b.link.end()


def test_the_end_does_not_wait_for_a_peer_that_is_gone(device, ends):
    a, _ = ends
    assert not a.link.end()
    device.room.ended(a.number, 0, 12)
    assert a.link.end()


def test_memory_of_a_link_follows_its_ring():
    assert _engine.RdmaLink.bytes_needed(RING) - _engine.RdmaLink.bytes_needed(RING // 2) == RING
