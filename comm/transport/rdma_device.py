"""What RDMA this machine has, read from /sys and /dev without any library, and what is wrong with it.

`describe_system` reads; `problems` judges. The judge is a pure function over the description, so that it can be
tried on machines made up of a few files. Its findings are the reasons that a rank gives for not using RDMA, and
what `cktrain doctor` prints: each with the command that mends it.
"""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cktrain.comm.transport.gid import INFINIBAND, Gid, NoUsableGid, choose_gid
from cktrain.comm.transport.verbs_problems import Problem

_EMPTY_GID = bytes(16)
_CAP_IPC_LOCK = 14
# A GID table may have 1024 places, filled from the start; this many empty ones in a row end the search.
_EMPTY_RUN = 32


@dataclass(frozen=True)
class PortDescription:
    """A port as /sys shows it."""

    number: int
    state: str
    """"ACTIVE", "DOWN", "INIT" or "ARMED"."""
    link_layer: str
    """"Ethernet" or "InfiniBand"."""
    gids: tuple[Gid, ...]
    """The entries of its GID table that are not empty."""

    @property
    def interfaces(self) -> tuple[str, ...]:
        """The network interfaces that its GIDs belong to."""
        return tuple(dict.fromkeys(gid.interface for gid in self.gids if gid.interface))


@dataclass(frozen=True)
class DeviceDescription:
    """A device as /sys and /dev show it."""

    name: str
    node: Path | None
    """Its /dev/infiniband/uverbsN, or None where there is none."""
    allowed: bool
    """Whether this user may read and write `node`."""
    ports: tuple[PortDescription, ...]

    @property
    def soft(self) -> bool:
        """Whether it is soft-RoCE."""
        return self.name.startswith("rxe")


@dataclass(frozen=True)
class SystemDescription:
    """This machine's RDMA."""

    kernel: str
    subsystem: bool
    """Whether the kernel has its RDMA part loaded (/sys/class/infiniband)."""
    devices: tuple[DeviceDescription, ...]
    memlock_bytes: int | None
    """How much this process may lock, None: without limit."""


def describe_system(sysfs: Path = Path("/sys"), dev: Path = Path("/dev")) -> SystemDescription:
    """Read what there is."""
    folder = sysfs / "class" / "infiniband"
    devices = tuple(_device(path, sysfs, dev) for path in sorted(folder.iterdir())) if folder.is_dir() else ()
    return SystemDescription(platform.release(), folder.is_dir(), devices, _memlock())


def read_gid_table(port: Path) -> tuple[Gid, ...]:
    """Return the entries in use of a port's GID table; `port` is .../infiniband/DEVICE/ports/N."""
    gids: list[Gid] = []
    ethernet = _text(port / "link_layer") != "InfiniBand"
    empty = index = 0
    while empty < _EMPTY_RUN and (text := _text(port / "gids" / str(index))) is not None:
        address = bytes.fromhex(text.replace(":", ""))
        if address == _EMPTY_GID:
            empty += 1
        else:
            empty = 0
            kind = _text(port / "gid_attrs" / "types" / str(index)) or "" if ethernet else INFINIBAND
            gids.append(Gid(index, address, kind, _text(port / "gid_attrs" / "ndevs" / str(index))))
        index += 1
    return tuple(gids)


def read_counters(device: str, port: int = 1, sysfs: Path = Path("/sys")) -> dict[str, int]:
    """Return a port's counters, those of the driver (hw_counters) and the standard ones.

    The bytes that RDMA moved never pass the network interface's own counters on hardware; these prove them.
    """
    counters = {}
    for group in ("counters", "hw_counters"):
        folder = sysfs / "class" / "infiniband" / device / "ports" / str(port) / group
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            text = _text(path)
            if text is not None and text.isdigit():
                counters[path.name] = int(text)
    return counters


def problems(
    system: SystemDescription,
    *,
    device: str | None = None,
    port: int = 1,
    gid_index: int | None = None,
    one_host: bool = False,
    register_bytes: int = 0,
) -> list[Problem]:
    """Return what keeps this machine from using RDMA, the deepest cause first; empty when nothing does.

    Args:
        system: what `describe_system` returned.
        device: the device to use (`comm.device`); None: any that works.
        port: its port.
        gid_index: the user's choice of GID.
        one_host: whether all ranks are on this host.
        register_bytes: how much memory this process will register.
    """
    if not system.subsystem:
        return [
            Problem(
                f"the kernel ({system.kernel}) has no RDMA loaded (/sys/class/infiniband is missing)",
                "Load the driver of your card; without a card: sudo examples/soft_roce_up.sh",
            )
        ]
    if not system.devices:
        return [
            Problem(
                "there is no RDMA device (/sys/class/infiniband is empty)",
                "Load the driver of your card; without a card: sudo examples/soft_roce_up.sh",
            )
        ]
    chosen = [d for d in system.devices if device is None or d.name == device]
    if not chosen:
        names = ", ".join(d.name for d in system.devices)
        return [
            Problem(f"there is no RDMA device {device}; there is {names}", "Give comm.device one of these")
        ]
    # The first device that works does; if none does, the findings of all of them.
    found: list[Problem] = []
    for each in chosen:
        own = list(_device_problems(each, port, gid_index, one_host))
        if not own:
            found = []
            break
        found += own
    return found + list(_memlock_problems(system, register_bytes))


def usable_devices(
    system: SystemDescription, *, port: int = 1, gid_index: int | None = None, one_host: bool = False
) -> list[str]:
    """Return the names of the devices that have no problem; hardware before soft-RoCE."""
    good = [d for d in system.devices if not list(_device_problems(d, port, gid_index, one_host))]
    return [d.name for d in sorted(good, key=lambda d: (d.soft, d.name))]


def _device_problems(
    device: DeviceDescription, port: int, gid_index: int | None, one_host: bool
) -> Iterator[Problem]:
    if device.node is None:
        yield Problem(f"{device.name} has no /dev/infiniband/uverbs device", "sudo modprobe ib_uverbs")
    elif not device.allowed:
        yield Problem(
            f"this user may not open {device.node} of {device.name}",
            f"Install rdma-core, whose udev rules open it to all, or: sudo chmod a+rw {device.node}",
        )
    here = next((p for p in device.ports if p.number == port), None)
    if here is None:
        yield Problem(
            f"{device.name} has no port {port}; it has {', '.join(str(p.number) for p in device.ports) or 'none'}",
            "Give one of these",
        )
        return
    if here.state != "ACTIVE":
        interface = here.interfaces[0] if here.interfaces else "INTERFACE"
        remedy = (
            f"sudo ip link set {interface} up (rdma link show names the interface), and look at the cable"
            if here.link_layer == "Ethernet"
            else "Look at the cable, and that a subnet manager (opensm) runs: ibstat"
        )
        yield Problem(f"port {port} of {device.name} is {here.state}, not ACTIVE", remedy)
        return  # the addresses come with the link
    try:
        choose_gid(here.gids, device=device.name, gid_index=gid_index, one_host=one_host)
    except NoUsableGid as none:
        yield none.problem


def _memlock_problems(system: SystemDescription, register_bytes: int) -> Iterator[Problem]:
    limit = system.memlock_bytes
    if limit is not None and register_bytes > limit:
        yield Problem(
            f"this process may lock {limit:,} bytes of memory, and {register_bytes:,} are to be registered",
            "ulimit -l unlimited before the start; for good: `* - memlock unlimited` in /etc/security/limits.conf "
            "(under Slurm: PropagateResourceLimitsExcept=MEMLOCK; in a systemd unit: LimitMEMLOCK=infinity)",
        )


def mtu_problem(mtus: Sequence[int], hosts: Sequence[str]) -> Problem | None:
    """Return why the ranks' path MTUs (bytes) are worth a look, or None; the smallest is used by all."""
    smallest, largest = min(mtus), max(mtus)
    if smallest == largest:
        return None
    low, high = hosts[mtus.index(smallest)], hosts[mtus.index(largest)]
    return Problem(
        f"path MTUs differ: {smallest} on {low}, {largest} on {high}; all use {smallest}",
        f"On {low}: sudo ip link set INTERFACE mtu 9000 (4096 bytes of payload need 4176)",
    )


def _device(path: Path, sysfs: Path, dev: Path) -> DeviceDescription:
    node = None
    for uverbs in sorted((sysfs / "class" / "infiniband_verbs").glob("uverbs*")):
        if _text(uverbs / "ibdev") == path.name:
            node = dev / "infiniband" / uverbs.name
    if node is not None and not node.exists():
        node = None
    ports = (path / "ports").iterdir() if (path / "ports").is_dir() else ()
    return DeviceDescription(
        path.name,
        node,
        node is not None and os.access(node, os.R_OK | os.W_OK),
        tuple(_port(p) for p in sorted(ports, key=lambda p: int(p.name))),
    )


def _port(path: Path) -> PortDescription:
    state = (_text(path / "state") or "").rpartition(": ")[2] or "UNKNOWN"  # "4: ACTIVE"
    return PortDescription(int(path.name), state, _text(path / "link_layer") or "", read_gid_table(path))


def _memlock() -> int | None:
    """RLIMIT_MEMLOCK, or None where there is no limit or the process may exceed it (CAP_IPC_LOCK)."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY:
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:") and int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1:
            return None
    return soft


def _text(path: Path) -> str | None:
    """A file's text without the newline; None where it is missing or cannot be read (an empty GID's type)."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
