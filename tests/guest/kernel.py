"""What QEMU boots, made from an unpacked kernel package once: the kernel's ELF file, and an initramfs.

Distributions pack the kernel with xz. To unpack it takes an emulated processor seconds of each boot, so it is done here, and
QEMU starts the ELF file by its PVH entry.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Modules that the root directory, the output and the random numbers come through.
EARLY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_rng")
XZ, ELF = b"\xfd7zXZ\0", b"\x7fELF"


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package, `folder`/boot and `folder`/lib/modules, and what was made of it."""

    folder: Path
    release: str
    image: Path
    """The kernel itself, as QEMU's -kernel takes it."""
    initramfs: Path


def prepare(folder: Path) -> Kernel:
    """Make what is missing; the folder is the caller's alone meanwhile."""
    release = next((folder / "lib" / "modules").iterdir()).name
    return Kernel(folder, release, _image(folder, release), _initramfs(folder, release))


def _image(folder: Path, release: str) -> Path:
    """The ELF file; the packed kernel where it is not packed with xz, or has no PVH entry."""
    packed, made = folder / "boot" / f"vmlinuz-{release}", folder / f"vmlinux-{release}"
    if made.exists():
        return made
    content = packed.read_bytes()
    start = content.find(XZ)
    if start < 0 or "CONFIG_PVH=y" not in (folder / "boot" / f"config-{release}").read_text().split():
        return packed
    kernel = lzma.LZMADecompressor().decompress(content[start:])
    if not kernel.startswith(ELF):
        return packed
    unfinished = made.with_suffix(".part")
    unfinished.write_bytes(kernel)
    unfinished.rename(made)
    return made


def _initramfs(folder: Path, release: str) -> Path:
    """A static busybox, init.sh and the early modules; made again when init.sh or the list changes."""
    recipe = (HERE / "init.sh").read_bytes() + " ".join(EARLY_MODULES).encode()
    made = folder / f"initramfs-{hashlib.sha256(recipe).hexdigest()[:16]}"
    if made.exists():
        return made
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary)
        for name in ("bin", "modules", "proc", "sys", "dev", "below", "above", "new"):
            (tree / name).mkdir()
        shutil.copy(shutil.which("busybox") or "/bin/busybox", tree / "bin" / "busybox")
        shutil.copy(HERE / "init.sh", tree / "init")
        (tree / "init").chmod(0o755)
        names = []
        for path in _modules_in_order(folder, release):
            content = path.read_bytes()
            if path.suffix == ".xz":
                content = lzma.decompress(content)
            names.append(path.name.removesuffix(".xz"))
            (tree / "modules" / names[-1]).write_bytes(content)
        (tree / "modules" / "list").write_text("".join(f"{name}\n" for name in names))
        listing = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        pack = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
        archive = subprocess.run(pack, cwd=tree, input=listing.encode(), stdout=subprocess.PIPE, check=True)
    unfinished = made.with_suffix(".part")
    unfinished.write_bytes(gzip.compress(archive.stdout, 1))
    unfinished.rename(made)
    return made


def _modules_in_order(folder: Path, release: str) -> list[Path]:
    """The early modules and what they depend on, each after its dependencies."""
    found: dict[Path, None] = {}
    for module in EARLY_MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(folder), "-S", release, "--show-depends", module],
            capture_output=True,
            text=True,
            check=True,
        )
        for line in shown.stdout.splitlines():
            if line.startswith("insmod "):
                found.setdefault(Path(line.split()[1]))
    return list(found)
