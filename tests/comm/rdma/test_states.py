"""A queue pair goes RESET -> INIT -> RTR -> RTS and nowhere else, and a wrong step has a name."""

import errno
from dataclasses import replace
from typing import Any

import pytest

from cktrain.comm.transport import verbs
from cktrain.comm.transport.queue_pair import Settings, connect
from cktrain.comm.transport.verbs import VerbsError

pytestmark = pytest.mark.rdma


def test_the_states(provider: Any, device: str) -> None:
    from ends import End

    a, b = End(provider, device), End(provider, device)
    assert a.pair.state == "RESET"
    with pytest.raises(VerbsError) as refused:
        a.pair.to_rts(psn=0, timeout=17, retry_count=6, rnr_retry=6, max_reads=1)
    assert refused.value.code == errno.EINVAL
    assert a.pair.state == "RESET"
    a.pair.to_init(1, 0, verbs.ACCESS_ALL)
    assert a.pair.state == "INIT"
    b.pair.to_init(1, 0, verbs.ACCESS_ALL)
    for end, peer in ((a, b), (b, a)):
        end.pair.post_receive(end.region, 0, 0)  # allowed from INIT on
        end.pair.to_rtr(
            peer_number=peer.pair.number,
            peer_psn=peer.address.psn,
            mtu=1024,
            port=1,
            peer_lid=0,
            peer_gid=peer.gid.address,
            gid_index=end.gid.index,
            traffic_class=0,
            hop_limit=64,
            service_level=0,
            max_reads=4,
            min_rnr_timer=12,
        )
        assert end.pair.state == "RTR"
    for end in (a, b):
        end.pair.to_rts(psn=end.address.psn, timeout=17, retry_count=6, rnr_retry=6, max_reads=4)
        assert end.pair.state == "RTS"
    a.peer = b.remote
    a.write(0, 5000, imm_data=8)
    assert b.received()[0].imm_data == 8
    a.finished()
    a.pair.to_error()
    assert a.pair.state == "ERR"
    assert [verbs.status_name(c.status) for c in a.received(good=False)] == ["WR_FLUSH_ERR"]
    a.close()
    b.close()


def test_posting_before_the_connection_is_refused(provider: Any, device: str) -> None:
    from ends import End

    a = End(provider, device)
    with pytest.raises(VerbsError) as refused:
        a.pair.post_send(a.region, 0, 8)
    assert refused.value.call == "ibv_post_send" and refused.value.code == errno.EINVAL
    a.close()


def test_a_full_send_queue_says_so(connected: Any) -> None:
    a, b = connected(entries=8)
    b.pair.close()  # so that nobody answers, and nothing leaves the queue
    with pytest.raises(VerbsError, match="Poll completions before posting more") as full:
        for _ in range(10_000):
            a.write(0, 8, signaled=False)
    assert full.value.code == errno.ENOMEM


def test_ends_with_different_mtus_take_the_smaller(provider: Any, device: str) -> None:
    """A path MTU above the peer's port would lose every full packet."""
    from ends import End, counters

    a, b = End(provider, device), End(provider, device)
    small = replace(b.address, mtu=1024)
    connect(a.pair, a.address, small, a.gid, a.settings)
    connect(b.pair, small, a.address, b.gid, b.settings)
    a.peer = b.remote
    before = counters(device)["sent_pkts"]
    a.write(0, 64 << 10)
    a.finished()
    assert counters(device)["sent_pkts"] - before >= 64  # packets of 1024, not of 4096
    a.close()
    b.close()


def test_settings_reach_the_packets(connected: Any) -> None:
    """A traffic class is accepted by the device, and the connection carries data."""
    a, b = connected(settings=Settings(traffic_class=106, hop_limit=7))
    a.memory[:8] = 9
    a.write(0, 8)
    a.finished()
    assert b.memory[:8].tolist() == [9] * 8


def test_a_device_that_is_not_there(provider: Any) -> None:
    with pytest.raises(VerbsError, match=r"ibv_open_device on nothing0 failed: .*ENODEV") as missing:
        provider.open_device("nothing0")
    assert missing.value.code == errno.ENODEV


def test_a_queue_that_is_too_long(provider: Any, device: str) -> None:
    context = provider.open_device(device)
    with pytest.raises(VerbsError, match="Ask for fewer entries"):
        context.create_completion_queue(10_000_000)
    with pytest.raises(VerbsError, match="ibv_query_port on port 9"):
        context.query_port(9)
    context.close()
