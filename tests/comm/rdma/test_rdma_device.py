"""What a machine has is read from a made-up /sys, and each thing in the way is named with its remedy."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cktrain.comm.transport.rdma_device import (
    describe_system,
    mtu_problem,
    problems,
    read_counters,
    read_gid_table,
    usable_devices,
)

FE80 = "fe80:0000:0000:0000:e464:81ff:fe24:94b7"
IPV4 = "0000:0000:0000:0000:0000:ffff:0a09:0001"
EMPTY = "0000:0000:0000:0000:0000:0000:0000:0000"


class Machine:
    """A /sys and a /dev in a folder."""

    def __init__(self, folder: Path):
        self.sysfs, self.dev = folder / "sys", folder / "dev"

    def write(self, path: str, text: str) -> None:
        file = self.sysfs / "class" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def add(
        self,
        name: str,
        *,
        number: int = 0,
        state: str = "4: ACTIVE",
        link: str = "Ethernet",
        gids: tuple[str, ...] = (FE80, IPV4),
        kind: str = "RoCE v2",
        node: bool = True,
    ) -> None:
        port = f"infiniband/{name}/ports/1"
        self.write(f"{port}/state", state)
        self.write(f"{port}/link_layer", link)
        for index, gid in enumerate([*gids, *[EMPTY] * 40]):
            self.write(f"{port}/gids/{index}", gid)
            if gid != EMPTY:
                self.write(f"{port}/gid_attrs/types/{index}", kind)
                if link == "Ethernet":
                    self.write(f"{port}/gid_attrs/ndevs/{index}", "eth0")
        self.write(f"{port}/hw_counters/sent_pkts", "123")
        self.write(f"{port}/counters/port_xmit_data", "7")
        if node:
            self.write(f"infiniband_verbs/uverbs{number}/ibdev", name)
            file = self.dev / "infiniband" / f"uverbs{number}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    def describe(self) -> Any:
        return describe_system(self.sysfs, self.dev)

    def reasons(self, **options: Any) -> list[str]:
        return [problem.reason for problem in problems(self.describe(), **options)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_good_device_has_no_problem(machine: Machine) -> None:
    machine.add("rxe0")
    (device,) = machine.describe().devices
    assert (device.name, device.soft, device.allowed) == ("rxe0", True, True)
    assert device.node == machine.dev / "infiniband" / "uverbs0"
    (port,) = device.ports
    assert (port.state, port.link_layer, port.interfaces) == ("ACTIVE", "Ethernet", ("eth0",))
    assert [str(gid) for gid in port.gids] == ["fe80::e464:81ff:fe24:94b7", "10.9.0.1"]
    assert machine.reasons() == []


def test_no_subsystem(machine: Machine) -> None:
    (problem,) = problems(machine.describe())
    assert "has no RDMA loaded (/sys/class/infiniband is missing)" in problem.reason
    assert "examples/soft_roce_up.sh" in problem.remedy


def test_no_device(machine: Machine) -> None:
    (machine.sysfs / "class" / "infiniband").mkdir(parents=True)
    assert machine.reasons() == ["there is no RDMA device (/sys/class/infiniband is empty)"]


def test_another_device_than_the_one_named(machine: Machine) -> None:
    machine.add("mlx5_0")
    machine.add("mlx5_1", number=1)
    assert machine.reasons(device="rxe0") == ["there is no RDMA device rxe0; there is mlx5_0, mlx5_1"]


@pytest.mark.parametrize(
    ("state", "link", "remedy"),
    [("1: DOWN", "Ethernet", "ip link set eth0 up"), ("2: INIT", "InfiniBand", "subnet manager")],
)
def test_a_port_that_is_not_active(machine: Machine, state: str, link: str, remedy: str) -> None:
    machine.add("mlx5_0", state=state, link=link)
    (problem,) = problems(machine.describe())
    assert problem.reason == f"port 1 of mlx5_0 is {state[3:]}, not ACTIVE"
    assert remedy in problem.remedy


def test_no_uverbs_node(machine: Machine) -> None:
    machine.add("mlx5_0", node=False)
    (problem,) = problems(machine.describe())
    assert "has no /dev/infiniband/uverbs device" in problem.reason and "modprobe ib_uverbs" in problem.remedy


def test_no_permission(machine: Machine) -> None:
    machine.add("mlx5_0")
    system = machine.describe()
    closed = replace(system, devices=(replace(system.devices[0], allowed=False),))
    (problem,) = problems(closed)
    assert "this user may not open" in problem.reason and "chmod a+rw" in problem.remedy


def test_no_gid_for_other_hosts(machine: Machine) -> None:
    machine.add("rxe0", gids=(FE80,))
    assert machine.reasons() == [
        "rxe0 has only a link-local RoCEv2 GID (fe80::), which no other host reaches"
    ]
    assert machine.reasons(one_host=True) == []


def test_only_roce_v1(machine: Machine) -> None:
    machine.add("mlx4_0", kind="IB/RoCE v1")
    assert "no RoCEv2 GID" in machine.reasons()[0]


def test_infiniband_needs_no_ip_address(machine: Machine) -> None:
    machine.add("mlx5_0", link="InfiniBand", gids=(FE80,), kind="IB/RoCE v1")
    assert machine.reasons() == []
    assert machine.describe().devices[0].ports[0].gids[0].family == "infiniband"


def test_a_good_device_among_bad_ones_is_enough(machine: Machine) -> None:
    machine.add("mlx5_0", state="1: DOWN")
    machine.add("rxe0", number=1)
    machine.add("mlx5_9", number=2)
    assert machine.reasons() == []
    assert usable_devices(machine.describe()) == ["mlx5_9", "rxe0"]  # hardware first
    assert machine.reasons(device="mlx5_0") == ["port 1 of mlx5_0 is DOWN, not ACTIVE"]


def test_a_port_that_does_not_exist(machine: Machine) -> None:
    machine.add("mlx5_0")
    assert machine.reasons(port=2) == ["mlx5_0 has no port 2; it has 1"]


def test_locked_memory(machine: Machine) -> None:
    machine.add("rxe0")
    system = replace(machine.describe(), memlock_bytes=8 << 20)
    assert problems(system, register_bytes=8 << 20) == []
    (problem,) = problems(system, register_bytes=(8 << 20) + 1)
    assert "may lock 8,388,608 bytes" in problem.reason and "8,388,609" in problem.reason
    assert "ulimit -l unlimited" in problem.remedy
    assert problems(replace(system, memlock_bytes=None), register_bytes=1 << 40) == []


def test_mtus_that_differ() -> None:
    assert mtu_problem([4096, 4096], ["a", "b"]) is None
    problem = mtu_problem([4096, 1024, 4096], ["a", "b", "c"])
    assert problem is not None
    assert problem.reason == "path MTUs differ: 1024 on b, 4096 on a; all use 1024"
    assert "On b: sudo ip link set" in problem.remedy


def test_holes_in_a_gid_table(machine: Machine) -> None:
    machine.add("mlx5_0", gids=(FE80, EMPTY, EMPTY, IPV4))
    table = read_gid_table(machine.sysfs / "class/infiniband/mlx5_0/ports/1")
    assert [gid.index for gid in table] == [0, 3]


def test_counters(machine: Machine) -> None:
    machine.add("rxe0")
    assert read_counters("rxe0", sysfs=machine.sysfs) == {"sent_pkts": 123, "port_xmit_data": 7}
    assert read_counters("none", sysfs=machine.sysfs) == {}


def test_this_machine_can_be_described() -> None:
    for problem in problems(describe_system()):
        assert problem.reason and problem.remedy
