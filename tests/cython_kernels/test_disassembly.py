"""What the compiler made of each instruction set's module: none uses an instruction that its CPUs lack."""

import importlib.util
import re
import shutil
import subprocess

import pytest

from cktrain.cython_kernels import _runtime
from cktrain.cython_kernels.ops import OPS

pytestmark = pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump (binutils) is not installed")

# Any VEX or EVEX instruction: its mnemonic begins with v (verr and verw are older), or a register is wide.
VEX = re.compile(r"\tv(?!err|erw)[a-z0-9]+|%[yz]mm")
ZMM = re.compile(r"%zmm|%k[0-7]")
BF16 = re.compile(r"\tv(dpbf16|cvtne)")
TILES = re.compile(r"%tmm|\ttilerelease")


def instructions(module: str) -> str:
    spec = importlib.util.find_spec(f"cktrain.cython_kernels.{module}")
    assert spec is not None and spec.origin is not None
    command = ["objdump", "--disassemble", "--no-show-raw-insn", spec.origin]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_generic_modules_hold_no_avx() -> None:
    for module in ("_isa_generic", "_runtime", *sorted({op.theme for op in OPS.values()})):
        text = instructions(module)
        assert len(text) > 1000
        assert not VEX.search(text), module


@pytest.mark.skipif("avx2" not in _runtime.built(), reason="the compiler did not know AVX2")
def test_avx2_holds_fma_and_no_avx512() -> None:
    text = instructions("_isa_avx2")
    assert "vfmadd231ps" in text and "%ymm" in text
    assert not ZMM.search(text)


@pytest.mark.skipif("avx512" not in _runtime.built(), reason="the compiler did not know AVX-512")
def test_avx512_holds_zmm_and_no_bf16() -> None:
    text = instructions("_isa_avx512")
    assert re.search(r"vfmadd\w+ .*%zmm", text)
    assert not BF16.search(text)


@pytest.mark.skipif("avx512bf16" not in _runtime.built(), reason="the compiler did not know AVX512_BF16")
def test_avx512bf16_holds_no_tiles() -> None:
    text = instructions("_isa_avx512bf16")
    assert "vdpbf16ps" in text and not TILES.search(text)


@pytest.mark.skipif("amx" not in _runtime.built(), reason="the compiler did not know AMX")
def test_amx_holds_tile_products() -> None:
    """The products' own functions: four sums from two tiles of each operand, loaded for every step along k."""
    text = instructions("_isa_amx")
    bodies = re.findall(r"<gemm_tile_amx_11[^>]*>:\n(.*?)\n\n", text, re.DOTALL) or [text]
    for name in ("tdpbf16ps", "tileloadd", "tilestored"):
        assert bodies[0].count(name) >= 4, name
    assert "ldtilecfg" in text and "tilerelease" in text


def test_emulated_amx_runs_anywhere() -> None:
    text = instructions("_isa_amx_emulated")
    assert not VEX.search(text) and not TILES.search(text)


@pytest.mark.parametrize("isa", _runtime.built())
def test_the_register_tile_spills_nothing(isa: str) -> None:
    """The tiles of matmul and attention keep their sums in registers: no inner loop touches the stack."""
    text = instructions(f"_isa_{isa}")
    multiply = r"mulps" if isa == "generic" else r"vfmadd\d+ps|dpbf16ps"
    bodies = re.findall(r"<((?:tile_packed|tile_scores|gemm_tile)_[^>]*)>:\n(.*?)\n\n", text, re.DOTALL)
    if not bodies:
        pytest.skip("the module is stripped of its symbols")
    for _, body in bodies:
        lines = body.splitlines()
        used = [i for i, line in enumerate(lines) if re.search(multiply, line)]
        assert used
        assert not [line for line in lines[used[0] : used[-1]] if "%rsp" in line]
