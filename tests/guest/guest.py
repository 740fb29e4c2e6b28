"""Run a command as root under a stock kernel in a QEMU guest whose files are this machine's.

    python tests/guest/guest.py setup
    python tests/guest/guest.py run [--cpus 2] [--memory 2G] [--numa 2] [--share DIR] -- COMMAND ARG...
    python tests/guest/guest.py run --joined -- COMMAND ARG...

A machine whose own kernel has no rdma_rxe (a container, a cloud kernel) gets real RDMA verbs this way. The kernel
is the one that Debian's linux-image-amd64 names today, unpacked into a cache. The guest's root directory is the
host's, read-only under a tmpfs: every path of the host is valid in the guest, and nothing that the guest writes
stays, except under --share DIR. The command starts in this directory; its output comes back as it appears.

With --joined there are two guests with a wire between them (virtio-net, MTU 9000). Both run the command, one with
GUEST_ROLE=A, the other with GUEST_ROLE=B, and their lines are marked A and B. `tests/guest/join.sh`, sourced in
both, gives them addresses and an RDMA device; `tests/guest/ssh.sh` after it lets each reach the other by ssh.

Exit status: the command's own (of two, A's unless it is 0); 123 this machine cannot boot a guest, and the message
says what to install; 124 the time limit passed, and the last line that was printed is shown; 125 the guest ended
without the command's status (it panicked, or QEMU failed), and the end of its console is shown.

Time limits count from the end of the boot, and are stretched where the boot was slow (time_limit.py).

The hardware's virtualization (KVM) is used where a trial boot with it works, else emulation (TCG), under which
Python is about twenty times slower: measure ratios there, not seconds.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel import Kernel, prepare
from time_limit import TimeLimit

CANNOT_BOOT, TIME_LIMIT, GUEST_DIED = 123, 124, 125

# What the guest's start needs, and what the RDMA tests in it use.
PACKAGES = (
    *("qemu-system-x86", "busybox-static", "cpio", "kmod", "iproute2", "procps"),
    *("rdma-core", "ibverbs-providers", "ibverbs-utils", "perftest", "libibverbs-dev"),
    *("python3-pyverbs", "python3-venv", "pkg-config", "numactl"),
    *("openssh-client", "libwrap0"),
)
# Unpacked for the guests and not installed: an installed one would serve on the host too.
SSH_SERVER = "openssh-server"
KVM_TRIAL_S = 15


class CannotBoot(Exception):
    """This machine lacks something that a guest needs; the text says what to do."""


@dataclass(frozen=True)
class Machine:
    """The shape of a guest."""

    cpus: int = 2
    memory_mib: int = 2048
    numa_nodes: int = 1
    role: str = ""
    """"A" or "B" of two joined guests."""
    link: int | None = None
    """File descriptor of a unix stream socket: the wire to the other guest."""


# --------------------------------------------------------------------------------------------- what must be here


def missing() -> str | None:
    """Why no guest can boot here and `setup` could not help, or None."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"the guest is made for Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    if shutil.which("apt-get") is None or shutil.which("dpkg-query") is None:
        return "the guest is made of Debian's packages, and this system has no apt-get"
    absent = _absent_packages()
    if absent and os.geteuid() != 0:
        return f"packages are missing (sudo apt-get install --no-install-recommends {' '.join(absent)})"
    if not _cached_kernels() and not _newest_kernel_package():
        return "apt knows no package linux-image-amd64 (is this Debian? else run: sudo apt-get update)"
    return None


def not_ready() -> str | None:
    """Why no guest can boot here now, and what to run, or None."""
    reason = missing()
    if reason is None and (_absent_packages() or not _cached_kernels() or not _is_complete(_ssh_server())):
        reason = "the guest is not set up (as root: python3 tests/guest/guest.py setup)"
    return reason


def setup() -> Kernel:
    """Install the missing packages (as root), fetch and unpack the kernel, make the initramfs; each once.

    Raises:
        CannotBoot: something is missing that this user cannot install.
    """
    absent = _absent_packages() if shutil.which("dpkg-query") else []
    if absent and os.geteuid() == 0 and shutil.which("apt-get"):
        print(f"[guest] installing {' '.join(absent)}", flush=True)
        _run("apt-get", "update", "-qq", check=False)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *absent, env=quiet)
    reason = missing()
    if reason:
        raise CannotBoot(reason)
    with locked(_cache() / "lock"):
        folder = _unpacked_kernel()
        if not _is_complete(_ssh_server()):
            _download(SSH_SERVER, _ssh_server())
            _mark_complete(_ssh_server())
        return prepare(folder)


def _absent_packages() -> list[str]:
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *PACKAGES],
        capture_output=True,
        text=True,
        check=False,
    )
    present = {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("installed ")}
    return [package for package in PACKAGES if package not in present]


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "cktrain" / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cached_kernels() -> list[Path]:
    return sorted(_cache().glob("linux-image-*/complete"), key=lambda mark: mark.stat().st_mtime)


def _newest_kernel_package() -> str | None:
    shown = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=False
    )
    words = shown.stdout.split()
    return next(
        (word for word in words if word.startswith("linux-image-") and word != "linux-image-amd64"), None
    )


def _unpacked_kernel() -> Path:
    """The folder of the kernel that was unpacked last; if there is none, of today's, downloaded."""
    kept = _cached_kernels()
    if kept:
        return kept[-1].parent
    package = _newest_kernel_package()
    assert package is not None, "missing() looks for it"
    folder = _cache() / package
    _download(package, folder)
    if (folder / "usr" / "lib" / "modules").is_dir() and not (folder / "lib").exists():
        (folder / "lib").symlink_to("usr/lib")
    _run("depmod", "-b", str(folder), next((folder / "lib" / "modules").iterdir()).name)
    _mark_complete(folder)
    return folder


def _ssh_server() -> Path:
    """Where the ssh server's package is unpacked."""
    return _cache() / SSH_SERVER


def _download(package: str, folder: Path) -> None:
    """Unpack a package as it is in the archive today, without installing it."""
    print(f"[guest] fetching {package}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Into a folder that apt's own unprivileged downloader may write.
    with tempfile.TemporaryDirectory() as download:
        os.chmod(download, 0o777)
        _run("apt-get", "download", "-qq", package, cwd=download)
        archive = next(Path(download).glob("*.deb"))
        _run("dpkg-deb", "-x", str(archive), str(folder))


def _is_complete(folder: Path) -> bool:
    return (folder / "complete").exists()


def _mark_complete(folder: Path) -> None:
    (folder / "complete").touch()


def _run(*command: str, check: bool = True, **options: object) -> None:
    """Run a preparation step; its output is shown only when it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if check and done.returncode != 0:
        end = "\n".join(done.stdout.splitlines()[-15:])
        raise CannotBoot(f"`{shlex.join(command)}` failed with status {done.returncode}:\n{end}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two runs do not prepare the same folder at once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ----------------------------------------------------------------------------------------- virtual or emulated?


def accelerator(kernel: Kernel) -> str:
    """Return "kvm" where a guest boots with it within seconds, else "tcg"; tried once per boot of the host.

    /dev/kvm alone says little: inside a virtual machine it may exist and refuse registers that QEMU sets, or
    run the kernel's start slower than emulation does.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = _cache() / "accelerator"
    if note.exists() and note.read_text().startswith(boot):
        return note.read_text().split()[1]
    command = [
        *("qemu-system-x86_64", "-M", "q35", *_processor("kvm"), "-m", "512", "-nodefaults", "-no-reboot"),
        *("-display", "none", "-serial", "stdio"),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 guest.probe"),
    ]
    try:
        shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_TRIAL_S)
        chosen = "kvm" if b"guest: booted" in shown.stdout else "tcg"
    except subprocess.TimeoutExpired:
        chosen = "tcg"
    note.write_text(f"{boot} {chosen}\n")
    return chosen


def _processor(chosen: str) -> tuple[str, ...]:
    if chosen == "kvm":
        return ("-accel", "kvm", "-cpu", "host")
    # Emulated, `rep movsb` moves a byte at a time. A processor that does not say that it is fast (ERMS) has the kernel and
    # glibc copy and clear memory by whole registers, in a quarter of the time.
    return ("-accel", "tcg,thread=multi", "-cpu", "max,-erms")


# ---------------------------------------------------------------------------------------------------- one guest


def qemu_command(
    machine: Machine, kernel: Kernel, accelerator: str, run: Path, share: Path | None
) -> list[str]:
    """The command line of QEMU for this guest; `run` is the folder behind /run/guest."""
    append = ["console=ttyS0", "quiet", "loglevel=3", "panic=-1", f"guest.kernel={kernel.folder}"]
    if accelerator == "tcg":
        # Emulated carry-less multiplication is slower than the kernel's table-driven CRC, which rxe then uses.
        append += ["modprobe.blacklist=crc32_pclmul", "mitigations=off"]
    # For a guest that can never have a second processor QEMU before 8.1 translates memory barriers to nothing (tcg), though
    # its own threads, the devices, look at that memory: a virtio queue's notification is lost, and the wire stands still.
    processors = f"{machine.cpus},maxcpus={max(2, machine.cpus)}"
    command = [
        *("qemu-system-x86_64", "-M", "q35", *_processor(accelerator)),
        *("-smp", processors, "-m", f"{machine.memory_mib}M"),
        *("-nodefaults", "-no-reboot", "-display", "none", "-serial", f"file:{run / 'console'}"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *(
            "-chardev",
            "file,id=output,path=/dev/stdout",
            "-device",
            "virtserialport,chardev=output,name=output",
        ),
    ]
    folders = [("root", Path("/"), ",readonly=on,multidevs=remap"), ("run", run, "")]
    if share is not None:
        folders.append(("share", share, ""))
        append.append(f"guest.share={share}")
    for tag, path, options in folders:
        command += ["-fsdev", f"local,id={tag},path={path},security_model=none{options}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    if machine.numa_nodes > 1:
        command += _numa_options(machine)
    if machine.link is not None:
        mac = f"52:54:00:00:00:0{'AB'.index(machine.role) + 1}"
        command += ["-netdev", f"stream,id=wire,addr.type=fd,addr.str={machine.link}"]
        command += ["-device", f"virtio-net-pci,netdev=wire,mac={mac},host_mtu=9000"]
    return [
        *command,
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs), "-append", " ".join(append)),
    ]


def _numa_options(machine: Machine) -> list[str]:
    """Equal NUMA nodes, each with its memory and its processors, 21 apart (10 is a node's distance to itself)."""
    nodes = machine.numa_nodes
    if machine.cpus % nodes or machine.memory_mib % nodes:
        raise CannotBoot(f"{machine.cpus} CPUs and {machine.memory_mib} MiB do not divide into {nodes} nodes")
    per_node = machine.cpus // nodes
    options = []
    for node in range(nodes):
        options += ["-object", f"memory-backend-ram,id=memory{node},size={machine.memory_mib // nodes}M"]
        cpus = f"{node * per_node}-{(node + 1) * per_node - 1}"
        options += ["-numa", f"node,nodeid={node},cpus={cpus},memdev=memory{node}"]
    for a in range(nodes):
        for b in range(a + 1, nodes):
            options += ["-numa", f"dist,src={a},dst={b},val=21"]
    return options


def _start_script(command: Sequence[str], variables: dict[str, str]) -> str:
    """What the guest's first process runs: the command, its status into a file, power off."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    return f"""\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
{exports}touch /run/guest/booted
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" != output ] || output=/dev/$(basename "$port")
done
ulimit -l unlimited
cd {shlex.quote(os.getcwd())}
{shlex.join(command)} </dev/null >"$output" 2>&1
echo $? >/run/guest/status
sync
echo o >/proc/sysrq-trigger
while :; do sleep 1; done
"""


def _die_with_parent() -> None:
    """In the child: a guest must not outlive whoever started it, even one that is killed."""
    pr_set_pdeathsig = 1  # of linux/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Guest:
    """A running guest: started by the constructor, ended by `wait` or `stop`."""

    def __init__(
        self,
        machine: Machine,
        kernel: Kernel,
        accelerator: str,
        command: Sequence[str],
        variables: dict[str, str],
        share: Path | None,
    ):
        self.machine = machine
        self._folder = tempfile.TemporaryDirectory(prefix="guest-")
        self._run = Path(self._folder.name)
        variables = {"GUEST_SSH_SERVER": str(_ssh_server()), **variables}
        if machine.role:
            variables["GUEST_ROLE"] = machine.role
        if share is not None:
            variables["GUEST_SHARE"] = str(share)
        (self._run / "start.sh").write_text(_start_script(command, variables))
        self._process = subprocess.Popen(
            qemu_command(machine, kernel, accelerator, self._run, share),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self._run / "qemu.log").open("wb"),
            pass_fds=() if machine.link is None else (machine.link,),
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        self.last_line = ""
        """What the command printed last."""
        self._relay = threading.Thread(target=self._relay_output, daemon=True)
        self._relay.start()

    def _relay_output(self) -> None:
        mark = f"{self.machine.role} " if self.machine.role else ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = line.decode(errors="replace")
            self.last_line = text.strip() or self.last_line
            sys.stdout.write(mark + text)
            sys.stdout.flush()

    def has_booted(self) -> bool:
        """Whether the command has begun."""
        return (self._run / "booted").exists()

    def ended(self) -> bool:
        """Whether the guest is over."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End the guest as if its power were cut."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self, stopped: str = "") -> int:
        """Wait for the end, clean up, and return the exit status; `stopped` says why it was ended from outside."""
        self._process.wait()
        self._relay.join()
        name = f"guest {self.machine.role}" if self.machine.role else "the guest"
        status = self._run / "status"
        try:
            text = status.read_text().strip() if status.exists() else ""
            if text:
                return int(text)
            said = [
                line
                for log in ("console", "qemu.log")
                if (self._run / log).exists()
                for line in (self._run / log).read_text(errors="replace").splitlines()
            ]
            panic = "panicked" if any("Kernel panic" in line for line in said) else "ended"
            problem = stopped or f"{panic} before the command was over"
            last = f" The last line that it printed: {self.last_line}." if self.last_line else ""
            print(f"[guest] {name} {problem}.{last} The end of its console:", file=sys.stderr)
            print("\n".join(f"    {line}" for line in said[-25:]), file=sys.stderr)
            return TIME_LIMIT if stopped else GUEST_DIED
        finally:
            self._folder.cleanup()


def run(
    command: Sequence[str],
    machine: Machine,
    *,
    joined: bool = False,
    time_limit_s: float = 300.0,
    variables: dict[str, str] | None = None,
    share: Path | None = None,
) -> int:
    """Run `command` in one guest, or in two joined ones, and return the exit status (see the module).

    `time_limit_s` is the host's of time_limit.py.

    Raises:
        CannotBoot: this machine lacks something.
    """
    kernel = setup()
    chosen = accelerator(kernel)
    began, used = time.monotonic(), _child_cpu_s()
    machines = [machine]
    ends: tuple[socket.socket, ...] = ()
    if joined:
        ends = socket.socketpair()
        machines = [
            replace(machine, role=role, link=end.fileno()) for role, end in zip("AB", ends, strict=True)
        ]
    guests: list[Guest] = []
    limit = TimeLimit(time_limit_s)
    try:
        for each in machines:
            guests.append(Guest(each, kernel, chosen, command, variables or {}, share))
        for end in ends:
            end.close()
        running: list[Guest] = []
        while not all(guest.ended() for guest in guests):
            time.sleep(0.05)
            if all(guest.has_booted() for guest in guests):
                limit.booted()
            if limit.is_over() and not running:
                running = [guest for guest in guests if not guest.ended()]
                for guest in running:
                    guest.stop()
        statuses = [guest.finish(f"was stopped: {limit}" if guest in running else "") for guest in guests]
    finally:
        for guest in guests:
            guest.stop()
    took = f"{time.monotonic() - began:.1f} s, {_child_cpu_s() - used:.0f} s of CPU"
    print(f"[guest] {chosen}, {took}, exit status {' '.join(map(str, statuses))}", file=sys.stderr)
    return next((status for status in statuses if status), 0)


def _child_cpu_s() -> float:
    """CPU time of the processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _mebibytes(text: str) -> int:
    factors = {"M": 1, "G": 1024}
    try:
        return int(float(text[:-1]) * factors[text[-1].upper()])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 512M or 2G") from None


def main() -> int:
    """The command line."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("setup", help="install packages, fetch the kernel, make the initramfs")
    actions.add_parser("missing", help="exit 1 and say why, if no guest can boot here")
    runs = actions.add_parser("run", help="run a command in a guest")
    runs.add_argument("--cpus", type=int, default=2)
    runs.add_argument("--memory", type=_mebibytes, default=2048, metavar="SIZE", help="such as 2G")
    runs.add_argument("--numa", type=int, default=1, metavar="NODES")
    runs.add_argument("--joined", action="store_true", help="two guests with a wire between them")
    runs.add_argument("--time-limit", type=float, default=300.0, metavar="SECONDS")
    runs.add_argument("--share", type=Path, metavar="DIR", help="a folder that the guest may write")
    runs.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    runs.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    options = parser.parse_args()
    try:
        if options.action == "setup":
            kernel = setup()
            print(f"[guest] {kernel.release}, {accelerator(kernel)}")
            return 0
        if options.action == "missing":
            reason = missing()
            print(reason or "nothing is missing")
            return 1 if reason else 0
        command = options.command[1:] if options.command[:1] == ["--"] else options.command
        if not command:
            parser.error("give a command to run, after --")
        return run(
            command,
            Machine(options.cpus, options.memory, options.numa),
            joined=options.joined,
            time_limit_s=options.time_limit,
            variables=dict(pair.split("=", 1) for pair in options.env),
            share=options.share.resolve() if options.share else None,
        )
    except CannotBoot as reason:
        print(f"[guest] no guest can boot here: {reason}.", file=sys.stderr)
        return CANNOT_BOOT


if __name__ == "__main__":
    sys.exit(main())
