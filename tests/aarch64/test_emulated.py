"""The kernels of AArch64: what the cross compiler made of them, and op cases under QEMU's user emulation.

What runs there are tests of tests/cython_kernels, which judge each instruction set of their CPU, with the same inputs and
tolerances as here. This file runs a selection; all of them run by hand:

    python tests/aarch64/emulated.py run -m pytest -q tests/cython_kernels/test_compiled.py -k neon
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import emulated
import pytest

if reason := emulated.not_ready():
    pytest.skip(reason, allow_module_level=True)

OBJDUMP = "aarch64-linux-gnu-objdump"
SETS = ("neon", "neonbf16")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the modules, which one worker makes while the others wait."""
    with emulated.locked():
        emulated.build()
    return emulated.LIB / "cktrain" / "cython_kernels"


@pytest.mark.parametrize("isa", SETS)
def test_the_tiles_are_of_vectors_and_spill_nothing(built: Path, isa: str) -> None:
    (path,) = built.glob(f"_isa_{isa}.*.so")
    command = [OBJDUMP, "--disassemble", "--no-show-raw-insn", path]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in ("bfdot", "bfcvtn"):
        assert (f"\t{name}\t" in text) == (isa == "neonbf16")
    bodies = re.findall(r"<((?:tile_packed|tile_scores|gemm_tile)_[^>]*)>:\n(.*?)\n\n", text, re.DOTALL)
    assert len(bodies) >= 40
    for name, body in bodies:
        lines = body.splitlines()
        used = [i for i, line in enumerate(lines) if re.search(r"\t(fmla|bfdot)\tv", line)]
        assert used, name
        assert not [line for line in lines[used[0] : used[-1]] if "[sp" in line], name


@pytest.mark.parametrize(
    ("file", "chosen", "least"),
    [
        # Every example of every op in fp32, beside PyTorch's stored results.
        ("test_goldens.py", "neon", 130),
        # The same examples in bf16, beside the reference.
        ("test_compiled.py", "test_examples and bf16 and neon", 40),
    ],
    ids=["goldens", "bf16"],
)
def test_op_cases_under_emulation(built: Path, file: str, chosen: str, least: int) -> None:
    """Both sets: QEMU's processor has bf16."""
    there = ["-m", "pytest", "-q", "-x", f"tests/cython_kernels/{file}", "-k", chosen]
    shown = emulated.start(there, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr[-2000:]
    found = re.search(r"(\d+) passed", shown.stdout)
    assert found is not None and int(found[1]) >= least, shown.stdout[-300:]
    assert "skipped" not in shown.stdout.splitlines()[-1]
