"""Connecting is checked on a queue pair that only writes down what it is told."""

from typing import Any

import pytest

from cktrain.comm.transport.gid import INFINIBAND, ROCE_V2, Gid
from cktrain.comm.transport.queue_pair import (
    PACKED_BYTES,
    Address,
    RemoteRegion,
    Settings,
    connect,
    local_address,
)
from cktrain.comm.transport.verbs import DeviceLimits, Port

GID = Gid(3, bytes(10) + b"\xff\xff\x0a\x01\x02\x03", ROCE_V2, "eth0")
OWN = Address(number=17, psn=5, mtu=4096, lid=0, max_reads=16, gid=GID.address, port=1, ethernet=True)
PEER = Address(
    number=0xFFFFFF, psn=0xABCDEF, mtu=1024, lid=0, max_reads=4, gid=bytes(range(16)), port=2, ethernet=True
)


class Recorder:
    """A queue pair that keeps the steps."""

    number = 17

    def __init__(self, state: str = "RESET"):
        self.state = state
        self.steps: list[tuple[str, Any]] = []

    def to_init(self, *what: int) -> None:
        self.steps.append(("INIT", what))

    def to_rtr(self, **what: Any) -> None:
        self.steps.append(("RTR", what))

    def to_rts(self, **what: Any) -> None:
        self.steps.append(("RTS", what))


def test_the_steps_and_what_they_carry() -> None:
    pair = Recorder()
    connect(pair, OWN, PEER, GID, Settings(traffic_class=106))  # type: ignore[arg-type]
    assert [name for name, _ in pair.steps] == ["INIT", "RTR", "RTS"]
    rtr, rts = pair.steps[1][1], pair.steps[2][1]
    assert rtr == {
        "peer_number": 0xFFFFFF,
        "peer_psn": 0xABCDEF,
        "mtu": 1024,  # the smaller
        "port": 1,  # the own one
        "peer_lid": 0,
        "peer_gid": PEER.gid,
        "gid_index": 3,
        "traffic_class": 106,
        "hop_limit": 64,
        "service_level": 0,
        "max_reads": 4,  # the smaller
        "min_rnr_timer": 12,
    }
    assert rts == {"psn": 5, "timeout": 17, "retry_count": 6, "rnr_retry": 6, "max_reads": 4}


def test_a_pair_that_has_receives_posted_is_in_init_already() -> None:
    pair = Recorder("INIT")
    connect(pair, OWN, PEER, GID)  # type: ignore[arg-type]
    assert [name for name, _ in pair.steps] == ["RTR", "RTS"]


def test_infiniband_goes_by_lid_within_a_subnet_and_by_gid_across() -> None:
    prefix = b"\xfe\x80" + bytes(6)
    own = Address(1, 0, 4096, 7, 16, prefix + b"A" * 8, 1, False)
    gid = Gid(0, own.gid, INFINIBAND)
    for peer_prefix, by_gid in ((prefix, False), (b"\xfe\xc0" + bytes(6), True)):
        pair = Recorder()
        peer = Address(2, 0, 4096, 9, 16, peer_prefix + b"B" * 8, 1, False)
        connect(pair, own, peer, gid)  # type: ignore[arg-type]
        rtr = pair.steps[1][1]
        assert rtr["peer_lid"] == 9
        assert rtr["peer_gid"] == (peer.gid if by_gid else None)


def test_ethernet_and_infiniband_do_not_meet() -> None:
    peer = Address(2, 0, 4096, 9, 16, bytes(16), 1, False)
    with pytest.raises(ValueError, match="one rank is on Ethernet and the other on InfiniBand"):
        connect(Recorder(), OWN, peer, GID)  # type: ignore[arg-type]


def test_addresses_travel_as_bytes() -> None:
    packed = PEER.pack()
    assert len(packed) == PACKED_BYTES == 32
    assert Address.unpack(packed) == PEER
    with pytest.raises(ValueError, match="an address of 31 bytes, not 32"):
        Address.unpack(packed[:-1])
    region = RemoteRegion(0x7FFF_1234_5678, 1 << 40, 0xDEADBEEF)
    assert RemoteRegion.unpack(region.pack()) == region


def test_the_local_address_is_the_devices() -> None:
    class Device:
        def query_port(self, port: int) -> Port:
            return Port(True, 2048, 3, True, 1 << 23)

        def query_device(self) -> DeviceLimits:
            return DeviceLimits(1000, 1000, 1 << 40, 4, True)

    made = [local_address(Device(), Recorder(), GID, Settings()) for _ in range(8)]  # type: ignore[arg-type]
    first = made[0]
    assert (first.number, first.mtu, first.lid, first.max_reads, first.gid) == (17, 2048, 3, 4, GID.address)
    assert len({address.psn for address in made}) > 4 and all(address.psn < 1 << 24 for address in made)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retry_count", 7),
        ("rnr_retry", 7),
        ("timeout", 0),
        ("timeout", 32),
        ("traffic_class", 256),
        ("hop_limit", 0),
    ],
)
def test_settings_out_of_range(name: str, value: int) -> None:
    """7 retries mean "for ever" to soft-RoCE: a dead peer would never be noticed."""
    with pytest.raises(ValueError, match=f"{name} {value} is out of range"):
        Settings(**{name: value})


def test_the_time_to_failure() -> None:
    assert Settings().failure_s == pytest.approx(3.758, abs=1e-3)
    assert Settings(timeout=14).failure_s == pytest.approx(0.470, abs=1e-3)
