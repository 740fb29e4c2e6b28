"""libibverbs is opened when it is wanted: what was not there before is found, and our declarations are its header's."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
CSRC = ROOT / "comm" / "csrc"
HEADER = Path("/usr/include/infiniband/verbs.h")

# The library's name is looked for in the folder first, whatever the system has.
TRY = """
import pathlib, sys
from cktrain.comm.transport import verbs
there = pathlib.Path(sys.argv[1])
for state in ("broken", "old", "whole"):
    (there / state).rename(there / "libibverbs.so.1")
    try:
        print(verbs.load_provider("native").device_names())
    except verbs.ProviderError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("there is no C compiler")
    return found


def make_library(compiler: str, to: Path, functions: list[str]) -> None:
    """A library whose functions do nothing and return 0."""
    source = "".join(f"void *ibv_{name}(void) {{ return 0; }}\n" for name in functions)
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(to)]
    subprocess.run(command, input=source, text=True, check=True)


def test_a_library_that_comes_later_is_found(compiler: str, tmp_path: Path) -> None:
    """One process, and three states of the system: no library that loads, a strange one, and a good one."""
    functions = re.findall(r"X\([^,]*, (\w+),", (CSRC / "libibverbs.h").read_text())
    assert len(functions) == 23
    (tmp_path / "broken").touch()
    make_library(compiler, tmp_path / "old", [name for name in functions if name != "query_qp"])
    make_library(compiler, tmp_path / "whole", functions)
    command = ["env", f"LD_LIBRARY_PATH={tmp_path}", sys.executable, "-c", TRY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    broken, old, whole = done.stdout.splitlines()
    assert "the system's libibverbs does not load" in broken and "file too short" in broken
    assert "libibverbs.so.1 has no function ibv_query_qp" in old
    assert whole == "[]"


@pytest.mark.parametrize(
    ("ours", "wrong"),
    [
        ("", ""),
        ("uint32_t length, lkey;", "uint32_t lkey, length;"),
        ("void *unused_too[12];", "void *unused_too[11];"),
        ("CKV_QP_RQ_PSN = 1 << 12", "CKV_QP_RQ_PSN = 1 << 14"),
    ],
)
def test_the_build_holds_our_declarations_against_the_header(
    compiler: str, tmp_path: Path, ours: str, wrong: str
) -> None:
    if not HEADER.exists():
        pytest.skip("libibverbs' header is not installed (apt-get install libibverbs-dev)")
    declared = (CSRC / "libibverbs.h").read_text()
    assert not ours or declared.count(ours) == 1
    (tmp_path / "libibverbs.h").write_text(declared.replace(ours, wrong) if ours else declared)
    shutil.copy(CSRC / "libibverbs_layout.c", tmp_path)
    done = subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", "libibverbs_layout.c"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (ours == ""), done.stderr
    assert ours == "" or "static assertion failed" in done.stderr
