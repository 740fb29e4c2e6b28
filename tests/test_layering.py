"""The arrows between the four rooms go one way. This test reads every import and cimport to keep them so.

A rule is a function of one file: (path, source) -> complaints. Each rule proves itself first on made-up
sources that break it, then must find nothing in the tree.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# folder: (import name, rooms it may import, third-party packages it may import)
CHOSEN = {"numpy", "yaml", "pydantic", "ml_dtypes", "safetensors", "tokenizers", "rich"}
ROOMS = {
    "cython_kernels": ("cktrain.cython_kernels", set(), {"numpy", "ml_dtypes", "cython"}),
    "comm": ("cktrain.comm", set(), {"numpy", "ml_dtypes", "cython", "mpi4py", "pyverbs"}),
    "cktrain": (
        "cktrain",
        {"cktrain.cython_kernels", "cktrain.comm"},
        CHOSEN
        | {
            "torch",
            "jinja2",
            "pyarrow",
            "zstandard",
            "gguf",
            "matplotlib",
            "rouge_score",
            "tensorboardX",
            "wandb",
            "huggingface_hub",
            "lm_eval",
        },
    ),
    "launch": ("cktrain.launch", {"cktrain", "cktrain.cython_kernels", "cktrain.comm"}, CHOSEN),
}
BARE = set(ROOMS) - {"cktrain"}
# A package that only these files may name.
ONLY_IN = {
    "torch": {
        "cktrain/bench/baselines.py",
        "cktrain/bench/gemm.py",
        "cktrain/bench/op_cases.py",
    },  # to be measured beside, where it is installed
    "gguf": {"cktrain/hf/gguf_file/reader.py"},
    "huggingface_hub": {"cktrain/hf/hub.py"},
    "lm_eval": {"cktrain/evaluation/harness.py"},
    "jinja2": {"cktrain/data/chat/template.py"},
    "rouge_score": {"cktrain/evaluation/metrics.py"},
    "tensorboardX": {"cktrain/training/tensorboard_events.py"},
    "wandb": {"cktrain/training/wandb_run.py"},
    "pyarrow": {"cktrain/data/tables.py"},
    "zstandard": {"cktrain/data/zstd_file.py"},
    "pyverbs": {"comm/transport/verbs_pyverbs.py"},
    "mpi4py": {"comm/mpi_group.py", "comm/bootstrap.py"},
}
# Files that may read environment variables: what a process was told from outside enters through these doors.
ENVIRONMENT = re.compile(
    r"launch/.*|cktrain/host/.*|comm/(bootstrap|environment)\.py|cython_kernels/__init__\.py"
)
READS_ENVIRONMENT = re.compile(r"\bos\.(environb?|getenv)\b|from os import .*\b(environ|getenv)\b|\bgetenv\(")
# What walks a model's list of layers, and what it must not know.
LAYER_WALKERS = re.compile(
    r"cktrain/(plan/\w+|models/transformer|generation/decoder|parallel/(costs|cuts|stages|pipeline|schedules|model_shard))\.py"
)
BODIES = re.compile(r"cktrain\.nn\.(attention|mlp|branch|experts)\b")
# Headers that the C core must not see: it knows no MPI and no network, and Python only where the glue is.
NETWORK_HEADERS = re.compile(r'#\s*include\s*[<"](mpi\.h|infiniband/|rdma/|sys/socket\.h)')
PYTHON_HEADERS = re.compile(r'#\s*include\s*[<"](Python\.h|numpy/)')
GLUE = {f"cython_kernels/csrc/{name}" for name in ("door.c", "door_functions.h", "isa_module.h", "runtime.h")}


# -------------------------------------------------------------------------------------- reading the imports


@dataclass(frozen=True)
class Import:
    """One imported module by its absolute name; `top` when importing the file imports it."""

    module: str
    line: int
    top: bool = True


def module_name(path: str) -> str:
    """The import name of a file: comm/group.py is cktrain.comm.group; a package is named by its folder."""
    folder, *rest = Path(path).with_suffix("").parts
    if folder not in ROOMS:
        return ".".join([folder, *rest])
    return ".".join([ROOMS[folder][0], *(part for part in rest if part != "__init__")])


def absolute(path: str, level: int, module: str) -> str:
    """What `from ..module import` means in that file."""
    if level == 0:
        return module
    package = module_name(path).split(".")
    if Path(path).stem != "__init__":
        package = package[:-1]
    kept = package[: len(package) - level + 1]
    return ".".join([*kept, *([module] if module else [])])


def from_import(path: str, level: int, module: str, names: list[str]) -> Iterator[str]:
    """`from cktrain import comm` imports cktrain.comm, not only cktrain."""
    base = absolute(path, level, module)
    rooms = {name for name, _, _ in ROOMS.values()}
    submodules = [f"{base}.{name}" for name in names if f"{base}.{name}" in rooms]
    yield from submodules
    if len(submodules) < len(names):
        yield base


def python_imports(path: str, source: str) -> Iterator[Import]:
    """Every import of a Python file, those inside functions and by importlib included."""

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name, node.lineno, top)
            case ast.ImportFrom(module=module, level=level, names=names):
                for name in from_import(path, level, module or "", [alias.name for alias in names]):
                    yield Import(name, node.lineno, top)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                if ast.unparse(func) in ("importlib.import_module", "import_module", "__import__"):
                    yield Import(name, node.lineno, top)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside |= isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from visit(child, top and not inside)

    return visit(ast.parse(source), True)


STRING_BLOCK = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)
CYTHON_FROM = re.compile(r"^\s*from\s+(\.*)([\w.]*)\s+c?import\s+(\([^)]*\)|[^\n#]*)", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+([^\n#]+)", re.MULTILINE)


def cython_imports(path: str, source: str) -> Iterator[Import]:
    """Every import and cimport of a .pyx or .pxd file, by its lines; strings are blanked out first."""
    source = STRING_BLOCK.sub(lambda match: "\n" * match.group().count("\n"), source)
    for match in CYTHON_FROM.finditer(source):
        line = source.count("\n", 0, match.start()) + 1
        names = [name.split()[0] for name in match[3].strip("()").split(",") if name.strip()]
        for name in from_import(path, len(match[1]), match[2], names):
            yield Import(name, line)
    for match in CYTHON_IMPORT.finditer(source):
        for name in match[1].split(","):
            yield Import(name.split()[0], source.count("\n", 0, match.start()) + 1)


@cache
def imports(path: str, source: str) -> tuple[Import, ...]:
    """Every import of a file of either language."""
    return tuple((python_imports if path.endswith(".py") else cython_imports)(path, source))


# ------------------------------------------------------------------------------------------------ the rules


def room_of(module: str) -> str | None:
    """The room that a module belongs to; None for what is not ours."""
    names = sorted((name for name, _, _ in ROOMS.values()), key=len, reverse=True)
    return next((name for name in names if module == name or module.startswith(name + ".")), None)


def arrows(path: str, source: str) -> Iterator[str]:
    """A room imports itself and the rooms below it."""
    folder = Path(path).parts[0]
    if folder not in ROOMS or path == "cktrain/__main__.py":  # `python -m cktrain` is the command itself
        return
    own, below, _ = ROOMS[folder]
    for found in imports(path, source):
        room = room_of(found.module)
        if room is not None and room != own and room not in below:
            yield f"{path}:{found.line}: {folder} must not import {found.module}"


def bare_names(path: str, source: str) -> Iterator[str]:
    """The folders' bare names are other projects' packages."""
    for found in imports(path, source):
        if found.module.split(".")[0] in BARE:
            yield f"{path}:{found.line}: write cktrain.{found.module}, not {found.module}"


def third_parties(path: str, source: str) -> Iterator[str]:
    """Only the chosen packages, and each only in its files."""
    folder = Path(path).parts[0]
    for found in imports(path, source):
        package = found.module.split(".")[0]
        if package in ("cktrain", "libc", "cpython", "posix", "") or package in sys.stdlib_module_names:
            continue
        if folder in ROOMS and package not in ROOMS[folder][2] and package not in BARE:
            yield f"{path}:{found.line}: {folder} must not import {package}"
        if folder in ROOMS and path not in ONLY_IN.get(package, {path}):
            yield f"{path}:{found.line}: only {', '.join(sorted(ONLY_IN[package]))} may import {package}"


def light_package(path: str, source: str) -> Iterator[str]:
    """`import cktrain` comes before the process is bound to its cores: it may load the standard library."""
    if path != "cktrain/__init__.py":
        return
    for found in imports(path, source):
        if found.top and found.module.split(".")[0] not in sys.stdlib_module_names:
            yield f"{path}:{found.line}: cktrain/__init__.py must not import {found.module}"


def layer_walkers(path: str, source: str) -> Iterator[str]:
    """What plans, cuts, times and runs a model walks its list of layers, and knows none of what a block is made of."""
    if not LAYER_WALKERS.fullmatch(path):
        return
    for found in imports(path, source):
        if BODIES.match(found.module):
            yield f"{path}:{found.line}: ask the layer (nn/module.py), do not import {found.module}"


def environment(path: str, source: str) -> Iterator[str]:
    """Environment variables enter through named files."""
    if Path(path).parts[0] not in ROOMS or ENVIRONMENT.fullmatch(path):
        return
    for number, line in enumerate(source.splitlines(), 1):
        if READS_ENVIRONMENT.search(line):
            yield f"{path}:{number}: environment variables are read in launch/, cktrain/host/ and comm's bootstrap, not here"


def c_core(path: str, source: str) -> Iterator[str]:
    """The C core includes nothing of MPI or the network, and a kernel nothing of Python."""
    for number, line in enumerate(source.splitlines(), 1):
        if NETWORK_HEADERS.search(line) or (path not in GLUE and PYTHON_HEADERS.search(line)):
            yield f"{path}:{number}: the C core must not include this: {line.strip()}"


def complaints(path: str, source: str) -> list[str]:
    """What all rules say about one file."""
    if path.startswith("cython_kernels/csrc/"):
        return [*c_core(path, source), *environment(path, source)]
    rules = (arrows, bare_names, third_parties, light_package, layer_walkers, environment)
    return [complaint for rule in rules for complaint in rule(path, source)]


# ------------------------------------------------------------------------------------------------ the tests

VIOLATIONS = [
    ("cktrain/parallel/costs.py", "from cktrain.nn.attention import Attention", "ask the layer"),
    ("cython_kernels/ops.py", "import cktrain.comm", "cython_kernels must not import cktrain.comm"),
    (
        "cython_kernels/gemm.pyx",
        "cimport numpy\nfrom ..comm.ring cimport Ring",
        "not import cktrain.comm.ring",
    ),
    ("cython_kernels/gemm.pyx", "from cktrain.config import (\n    Config,\n)", "import cktrain.config"),
    ("comm/group.py", "from .. import cython_kernels", "comm must not import cktrain.cython_kernels"),
    (
        "comm/group.py",
        "def f():\n    from cktrain.training.trainer import Trainer",
        "not import cktrain.training.trainer",
    ),
    ("comm/transport/tcp.py", "from ...launch import spawn", "comm must not import cktrain.launch"),
    ("cktrain/compose.py", "from .launch.job import Job", "cktrain must not import cktrain.launch.job"),
    ("cktrain/data/loader.py", "from cktrain import config, launch", "not import cktrain.launch"),
    ("cktrain/nn/layers.py", "import importlib\nimportlib.import_module('cktrain.launch')", "cktrain.launch"),
    ("cktrain/training/trainer.py", "import comm", "write cktrain.comm, not comm"),
    ("tests/test_x.py", "from launch.cli import main", "write cktrain.launch.cli, not launch.cli"),
    ("examples/train.py", "import cython_kernels.reference as ops", "write cktrain.cython_kernels.reference"),
    (
        "comm/transport/rdma.py",
        "import pyverbs.device",
        "only comm/transport/verbs_pyverbs.py may import pyverbs",
    ),
    ("comm/transport/rdma.pyx", "from pyverbs.qp cimport QP", "verbs_pyverbs.py may import pyverbs"),
    ("comm/group.py", "try:\n    from mpi4py import MPI\nexcept ImportError:\n    pass", "may import mpi4py"),
    ("launch/cli.py", "from mpi4py import MPI", "launch must not import mpi4py"),
    ("cktrain/nn/linear.py", "import torch", "may import torch"),
    ("comm/ring.py", "import yaml", "comm must not import yaml"),
    ("cktrain/__init__.py", "import numpy as np", "cktrain/__init__.py must not import numpy"),
    ("cktrain/__init__.py", "from .config import Config", "not import cktrain.config"),
    ("cktrain/config.py", "import os\nrank = os.environ['RANK']", "environment variables are read in"),
    ("comm/group.py", "from os import getenv", "environment variables are read in"),
    ("cython_kernels/threads.pyx", "import os\nos.getenv('OMP_NUM_THREADS')", "variables are read in"),
    ("cython_kernels/csrc/gemm.h", "#include <Python.h>", "the C core must not include this"),
    ("cython_kernels/csrc/door.c", "#include <mpi.h>", "the C core must not include this"),
    ("cython_kernels/csrc/pool.c", 'char *n = getenv("THREADS");', "environment variables are read in"),
]

LAWFUL = [
    ("cython_kernels/ops.py", "import numpy as np\nfrom . import reference\nfrom .reference import norm"),
    (
        "cython_kernels/gemm.pyx",
        '"""from cktrain import comm"""\nfrom libc.math cimport exp  # import comm\n',
    ),
    ("comm/transport/verbs_pyverbs.py", "import pyverbs.device\nfrom ..errors import CommError"),
    ("comm/bootstrap.py", "import os\nfrom mpi4py import MPI\nrank = os.environ.get('RANK')"),
    (
        "cktrain/training/trainer.py",
        "from cktrain import comm, cython_kernels\nfrom .config import Config\nimport yaml",
    ),
    ("cktrain/__init__.py", "__version__ = '1'\ndef main():\n    from .trainer import Trainer\n"),
    ("cktrain/__init__.py", "if TYPE_CHECKING:\n    from .trainer import Trainer\n"),
    (
        "launch/cli.py",
        "import os\nfrom cktrain.training.trainer import Trainer\nfrom ..comm import bootstrap\nos.environ",
    ),
    ("cython_kernels/csrc/door.c", '#include <Python.h>\n#include "gemm.h"'),
    ("cython_kernels/__init__.py", "import os\nisa = os.environ.get('CKTRAIN_ISA')"),
]


@pytest.mark.parametrize(("path", "source", "expected"), VIOLATIONS)
def test_a_violation_is_caught(path: str, source: str, expected: str) -> None:
    assert any(expected in complaint for complaint in complaints(path, source)), complaints(path, source)


@pytest.mark.parametrize(("path", "source"), LAWFUL)
def test_lawful_code_is_not_blamed(path: str, source: str) -> None:
    assert complaints(path, source) == []


def sources() -> list[Path]:
    """The files that the rules hold for."""
    found = [
        path
        for folder in (*ROOMS, "tests", "examples")
        for suffix in ("py", "pyx", "pxd", "pxi")
        for path in (ROOT / folder).rglob(f"*.{suffix}")
    ]
    return [*found, *(path for path in (ROOT / "cython_kernels" / "csrc").rglob("*") if path.is_file())]


def test_the_tree_keeps_the_layers() -> None:
    files = sources()
    assert {path.relative_to(ROOT).parts[0] for path in files} >= set(ROOMS)
    found = [
        complaint
        for path in files
        for complaint in complaints(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    assert found == []


# What runs before the process is bound to its cores: the command line, the configuration, the binding itself.
EARLY = (
    "cktrain",
    "cktrain.launch.cli",
    "cktrain.host.bind",
    "cktrain.api",
    "cktrain.config_file",
    "cktrain.comm.environment",
)


@pytest.mark.parametrize("module", EARLY)
def test_the_process_is_bound_before_numpy_loads(module: str) -> None:
    """numpy's and MPI's thread pools are sized when they load, so nothing that runs earlier may load them."""
    heavy = "{'numpy', 'mpi4py', 'ml_dtypes', 'safetensors', 'tokenizers', 'matplotlib'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
