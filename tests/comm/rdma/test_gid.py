"""The GID is chosen by content: the right one out of tables as real cards and soft-RoCE have them."""

import ipaddress
from typing import Any

import pytest

from cktrain.comm.transport.gid import (
    INFINIBAND,
    ROCE_V1,
    ROCE_V2,
    Gid,
    NoUsableGid,
    choose_gid,
    common_families,
    families,
)


def gid(index: int, address: str, kind: str = ROCE_V2, interface: str | None = "eth0") -> Gid:
    return Gid(index, ipaddress.IPv6Address(address).packed, kind, interface)


# Both kinds for each address, as a ConnectX port lists them; a second interface is a VLAN of the same port.
CARD = (
    gid(0, "fe80::ba59:9fff:fe11:1", ROCE_V1),
    gid(1, "fe80::ba59:9fff:fe11:1"),
    gid(2, "::ffff:10.1.2.3", ROCE_V1),
    gid(3, "::ffff:10.1.2.3"),
    gid(4, "2001:db8::3", ROCE_V1),
    gid(5, "2001:db8::3"),
    gid(6, "::ffff:10.99.0.3", ROCE_V1, "eth0.99"),
    gid(7, "::ffff:10.99.0.3", ROCE_V2, "eth0.99"),
)
SOFT = (gid(0, "fe80::e464:81ff:fe24:94b7"), gid(1, "::ffff:10.9.0.1"))
INFINI = (gid(0, "fe80::248a:703:a7:1", INFINIBAND, None),)


def chosen(table: tuple[Gid, ...], **options: Any) -> int:
    return choose_gid(table, device="dev0", **options).index


def test_ipv4_mapped_rocev2_comes_first() -> None:
    assert chosen(CARD) == 3
    assert chosen(SOFT) == 1
    assert chosen(tuple(reversed(CARD))) == 3  # the order of the table does not matter


def test_the_interface_of_the_other_ranks_is_preferred() -> None:
    assert chosen(CARD, interface="eth0.99") == 7
    assert chosen(CARD, interface="eth9") == 3


def test_global_ipv6_where_there_is_no_ipv4() -> None:
    table = tuple(entry for entry in CARD if entry.family != "ipv4")
    assert chosen(table) == 5


def test_all_ranks_take_a_family_that_all_have() -> None:
    six_only = families([gid(0, "2001:db8::4"), gid(1, "fe80::1")])
    assert six_only == ("ipv6",)
    assert common_families([families(CARD), six_only]) == ("ipv6",)
    assert chosen(CARD, allowed=("ipv6",)) == 5
    with pytest.raises(NoUsableGid, match=r"dev0 has no GID of a family that all ranks share \(ipv6\)"):
        choose_gid(SOFT, device="dev0", allowed=("ipv6",))


def test_infiniband_takes_its_own_entry() -> None:
    assert chosen(INFINI) == 0
    assert families(INFINI) == ("infiniband",)


def test_link_local_only_within_a_host() -> None:
    table = SOFT[:1]
    assert chosen(table, one_host=True) == 0
    with pytest.raises(NoUsableGid, match="only a link-local") as none:
        choose_gid(table, device="rxe0")
    assert "ip address add" in none.value.problem.remedy and "dev eth0" in none.value.problem.remedy
    assert families(table) == () and families(table, one_host=True) == ("link-local",)


def test_only_roce_v1() -> None:
    table = tuple(entry for entry in CARD if entry.kind == ROCE_V1)
    with pytest.raises(NoUsableGid, match="no RoCEv2 GID") as none:
        choose_gid(table, device="mlx5_0", one_host=True)
    assert "cma_roce_mode" in none.value.problem.remedy


def test_an_empty_table() -> None:
    with pytest.raises(NoUsableGid, match="the GID table of rxe0 is empty"):
        choose_gid((), device="rxe0")


def test_the_users_index_is_taken_as_it_is() -> None:
    assert chosen(CARD, gid_index=0) == 0  # even RoCE v1
    with pytest.raises(NoUsableGid, match=r"entry 4 of the GID table of rxe0 is empty; in use: 0, 1"):
        choose_gid(SOFT, device="rxe0", gid_index=4)


def test_a_gid_is_shown_as_the_address_that_it_is() -> None:
    assert [str(entry) for entry in (CARD[3], CARD[5])] == ["10.1.2.3", "2001:db8::3"]
