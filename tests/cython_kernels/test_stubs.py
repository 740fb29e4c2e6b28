"""The stubs of compiled modules against the modules: the same public names, with the same arguments."""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "cython_kernels"
MODULES = sorted(path.stem for path in FOLDER.glob("*.pyi") if (FOLDER / f"{path.stem}.pyx").is_file())


def written(source: str) -> dict[str, list[str] | None]:
    """Public name -> its arguments as the stub writes them, a class's public members, None for what is neither."""
    found: dict[str, list[str] | None] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            arguments, defaults = node.args.args, node.args.defaults
            first = len(arguments) - len(defaults)
            found[node.name] = [
                a.arg if i < first else f"{a.arg}={ast.unparse(defaults[i - first])}"
                for i, a in enumerate(arguments)
            ]
        elif isinstance(node, ast.ClassDef):
            names = [
                ast.unparse(n.target) if isinstance(n, ast.AnnAssign) else getattr(n, "name", "_")
                for n in node.body
            ]
            found[node.name] = sorted(name for name in names if not name.startswith("_"))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = None
    return found


def compiled(module: ModuleType) -> dict[str, list[str] | None]:
    """The same of a compiled module."""
    found: dict[str, list[str] | None] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        if isinstance(value, type):
            found[name] = sorted(member for member in vars(value) if not member.startswith("_"))
        elif callable(value):
            parameters = inspect.signature(value).parameters.values()
            found[name] = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        else:
            found[name] = None
    return found


@pytest.mark.parametrize("name", MODULES)
def test_a_stub_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"cktrain.cython_kernels.{name}")
    assert written((FOLDER / f"{name}.pyi").read_text()) == compiled(module)


def test_a_difference_is_seen() -> None:
    assert MODULES == ["_onednn", "_runtime", "peak"]
    assert written("def f(a: int, b: int = 2) -> None: ...\nN: int\n") == {"f": ["a", "b=2"], "N": None}
    assert written(
        "class C:\n    n: int\n    def f(self) -> None: ...\n    def __len__(self) -> int: ..."
    ) == {"C": ["f", "n"]}
