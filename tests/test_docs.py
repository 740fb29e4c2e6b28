"""What the documents say exists, what the code offers is documented, and neither speaks of one machine."""

import ast
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cktrain", "comm", "cython_kernels", "launch")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TEXTS = {".py", ".pyx", ".pxd", ".c", ".h", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".in", ""}
MADE = {
    ".venv",
    "build",
    "dist",
    "runs",
    "data",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
}

# Absolute paths of somebody's machine, and hosts that a package index happens to have.
FORBIDDEN = re.compile(
    r"(?:^|[^\w.~/-])/(?:h[o]me|r[o]ot|w[o]rk|Us[e]rs|scratch)/\w|p[y]pi\.org|deb\.de[b]ian|files\.pythonh[o]sted"
)


def relative(path: Path) -> str:
    """The path as the repository knows it."""
    return path.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------ docstrings


def undocumented_python(source: str) -> Iterator[str]:
    """Public modules, classes, functions and methods without a docstring; __dunder__ methods are Python's."""

    def visit(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                overload = any("overload" in ast.unparse(mark) for mark in child.decorator_list)
                if not child.name.startswith("_") and not overload and ast.get_docstring(child) is None:
                    yield prefix + child.name
                if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                    yield from visit(child, f"{prefix}{child.name}.")

    tree = ast.parse(source)
    if ast.get_docstring(tree) is None and tree.body:
        yield "the module"
    yield from visit(tree, "")


CYTHON_PUBLIC = re.compile(
    r"^(?:cpdef|def|class|cdef class)\s+(?:[\w.]+\s+)*?([A-Za-z]\w*)\s*[(:]", re.MULTILINE
)


def undocumented_cython(source: str) -> Iterator[str]:
    """Public functions and classes of a .pyx file whose signature is not followed by a docstring."""
    if not re.match(r"(?:\s*#.*\n)*\s*[rR]?(\"\"\"|''')", source):
        yield "the module"
    for match in CYTHON_PUBLIC.finditer(source):
        rest = source[match.end() - 1 :]
        end = re.search(r":\s*(?:#[^\n]*)?\n", rest)
        if end is None or not re.match(r"\s*[rR]?(\"|')", rest[end.end() :]):
            yield match[1]


@pytest.mark.parametrize("room", ROOMS)
def test_everything_public_has_a_docstring(room: str) -> None:
    found = []
    for path in sorted((ROOT / room).rglob("*.py*")):
        if path.suffix in (".py", ".pyx"):
            check = undocumented_python if path.suffix == ".py" else undocumented_cython
            found += [f"{relative(path)}: {name}" for name in check(path.read_text(encoding="utf-8"))]
    assert found == []


def test_a_missing_docstring_is_caught() -> None:
    python = '"M."\nclass A:\n    "A."\n    def f(self): pass\n    def _g(self): pass\ndef h():\n    "H."\n'
    assert list(undocumented_python(python)) == ["A.f"]
    assert list(undocumented_python("x = 1\n")) == ["the module"]
    cython = (
        '# c\n"""M."""\ndef f(\n    int x,\n):\n    """F."""\ncpdef int g(int x) noexcept:\n    return x\n'
    )
    assert list(undocumented_cython(cython)) == ["g"]
    assert list(undocumented_cython("cdef class A:\n    cdef int x\n")) == ["the module", "A"]


# ------------------------------------------------------------------------------------------------ documents

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
NAMED_FILE = re.compile(
    r"(?:\./)?(?:(?:cktrain|comm|cython_kernels|launch|examples|tests|docs|\.ci)/[\w./-]*"
    r"|[\w-]+\.(?:md|toml|in)|setup\.py)"
)


def anchor(heading: str) -> str:
    """The fragment by which a Markdown heading is linked to."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(path: Path, text: str) -> Iterator[str]:
    """Relative links to files or headings that do not exist."""
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        aim = path.parent / file
        if file and not aim.exists():
            yield f"{target} does not exist"
        elif fragment and (not file or aim.suffix == ".md"):
            content = aim.read_text(encoding="utf-8") if file else text
            if fragment not in {anchor(title) for title in re.findall(r"^#+ (.*)$", content, re.MULTILINE)}:
                yield f"{target}: no such heading"


def missing_files(text: str) -> Iterator[str]:
    """File names in `code` that the repository does not hold; <placeholders> and globs are no names."""
    for code in CODE.findall(text):
        for word in code.split():
            name = word.rstrip(".,:;")
            if NAMED_FILE.fullmatch(name) and not (ROOT / name.removeprefix("./")).exists():
                yield f"`{name}` does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_links_and_file_names_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert [*broken_links(document, text), *missing_files(text)] == []


def test_a_broken_reference_is_caught() -> None:
    page = ROOT / "docs" / "page.md"
    assert list(broken_links(page, "[a](no.md) [b](../README.md) [c](https://x.y) [d](#top)\n# Top\n")) == [
        "no.md does not exist"
    ]
    assert list(broken_links(page, "[d](#bottom)\n# Top\n")) == ["#bottom: no such heading"]
    assert list(missing_files("`comm/nothing.py`, `comm/<name>.py`, `pyproject.toml`")) == [
        "`comm/nothing.py` does not exist"
    ]


# ------------------------------------------------------------------------------------------------- commands


def commands(text: str) -> list[list[str]]:
    """The `cktrain ...` and `./run ...` lines of code blocks and spans, without a launcher before them."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += CODE.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    found = []
    for line in lines:
        match = re.search(r"(?:^|\s)(cktrain|\./run)\s+([a-z][^#]*)", line)
        if match:
            found.append([match[1], *match[2].split()])
    return found


def help_of(*words: str) -> str:
    """What the command line says about a command; the exit status must be 0."""
    line = [sys.executable, "-m", "cktrain.launch.cli", *words, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (
        f"cktrain {' '.join(words)} --help ended with {done.returncode}:\n{done.stderr}"
    )
    return done.stdout


def test_commands_are_read_from_the_text() -> None:
    block = "```sh\n./run demo\nmpirun -n 2 cktrain train a.yaml  # b\n```\n"
    text = f"Run `cktrain doctor`.\n{block}`cktrain/x.py`\n"
    assert sorted(commands(text)) == [
        ["./run", "demo"],
        ["cktrain", "doctor"],
        ["cktrain", "train", "a.yaml"],
    ]


def test_the_commands_of_the_readme_exist() -> None:
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert ["./run", "demo"] in found and ["./run", "test"] in found
    usage = subprocess.run([ROOT / "run", "help"], capture_output=True, text=True, check=True).stdout
    for program, *words in found:
        if program == "./run":
            assert re.search(rf"^\./run {re.escape(words[0])}\b", usage, re.MULTILINE), f"./run {words[0]}"
            continue
        # `data prepare` and the like; what follows the last subcommand does not matter before --help.
        help_text = help_of(*itertools.takewhile(re.compile(r"[a-z][a-z-]*").fullmatch, words))
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in help_text, f"cktrain {' '.join(words)}: {option} is not in its help"
        for file in (word for word in words if word.startswith("examples/")):
            assert (ROOT / file).exists(), f"cktrain {' '.join(words)}: {file} does not exist"


# --------------------------------------------------------------------------------------------- one machine


def texts() -> Iterator[Path]:
    """The project's text files, without what was built, made or installed."""
    for folder, subfolders, files in os.walk(ROOT):
        top = Path(folder) == ROOT
        subfolders[:] = [
            name
            for name in subfolders
            if name not in ("__pycache__", ".git")
            and not (top and name in MADE)
            and not name.endswith(".egg-info")
        ]
        for path in (Path(folder) / name for name in files if name != ".git"):
            if path.suffix in TEXTS:
                yield path


def test_no_file_speaks_of_one_machine() -> None:
    found, read = [], 0
    for path in texts():
        read += 1
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{relative(path)}:{number}: {match.group()}")
    assert read > 20
    assert found == []


def test_a_machine_path_is_caught() -> None:
    slash = "/"
    assert FORBIDDEN.search(f"see {slash}home{slash}ann/data")
    assert FORBIDDEN.search(f'"{slash}root{slash}x"')
    assert not FORBIDDEN.search("see docs/home/x, ~/x and /tmp/x")
