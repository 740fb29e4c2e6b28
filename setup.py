"""The build: where the packages lie, and the compiled modules. All other metadata stands in pyproject.toml.

The folders cython_kernels/, comm/ and launch/ at the root are imported as cktrain.cython_kernels,
cktrain.comm and cktrain.launch. Each instruction set is a module of its own, compiled with its own flags;
one that the compiler does not know is left out, and the build records it.

A module is compiled once: it is kept in build/modules under a checksum of all that it is made of (generated C, sources,
headers, flags, compiler, Python, numpy), and every later build that comes to the same checksum takes it from there.
CKTRAIN_BUILT names another folder for that, so that several trees share one.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
KERNELS = "cktrain.cython_kernels"
CSRC = "cython_kernels/csrc"
ROOMS = {
    "cktrain": "cktrain",
    "cktrain.cython_kernels": "cython_kernels",
    "cktrain.comm": "comm",
    "cktrain.launch": "launch",
}

# Multiply-add is fused only where the source says so: the compiler's own choice would differ from a loop to
# its tail. -fno-math-errno lets sqrt be one instruction. -g0 and, for the doors, -O1 keep the build short.
# A function that is nowhere declared is an error to GCC 14 and Clang 16: so it is to those before.
DECLARED = "-Werror=implicit-function-declaration"
C_FLAGS = ["-std=c11", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden", DECLARED]
GLUE_FLAGS = ["-std=c11", "-O1", "-g0", "-fvisibility=hidden", DECLARED]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
AVX512BF16 = [*AVX512, "-mavx512bf16"]
# GCC remarks that wide vectors are passed otherwise with AVX: no call here passes any.
WIDE = ["-Wno-psabi"]
# By the processors that the compiler makes code for; of all others there is the first row.
ISA_FLAGS = {
    "": {"generic": WIDE},
    "x86_64": {
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512bf16": AVX512BF16,
        "amx": [*AVX512BF16, "-mamx-tile", "-mamx-bf16"],
    },
    "aarch64": {"neon": WIDE, "neonbf16": [*WIDE, "-march=armv8.2-a+bf16"]},
}
# AMX in plain C, for tests; -O1 halves the time to compile it.
EMULATED = {"amx_emulated": ["-O1", *WIDE]}

COMM = "comm/csrc"
# comm moves bytes and has a plain reduction to fall back on: no instruction set beyond the baseline.
COMM_SOURCES = {
    "_engine": [
        "world",
        "watch",
        "shm",
        "stream",
        "wire",
        "sockets",
        "delay",
        "rdma",
        "postbox",
        "memory",
        "reduce",
    ]
}

# The comment in which Cython says for which paths it generated a file.
GENERATED_FOR = re.compile(rb"/\* BEGIN: Cython Metadata.*?END: Cython Metadata \*/", re.DOTALL)
# How many builds of a module are kept: one comes back with a branch.
KEPT = 6

THEMES = [
    "linear",
    "quantized",
    "embedding",
    "norm",
    "rope",
    "attention",
    "activation",
    "cross_entropy",
    "optimizer",
    "cast",
    "peak",
    "reduce",
]


def packages() -> dict[str, str]:
    """Import name -> folder, for every folder under the rooms that holds an __init__.py."""
    found = {}
    for name, folder in ROOMS.items():
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            path = init.parent.relative_to(ROOT)
            found[".".join([name, *path.parts[1:]])] = path.as_posix()
    return found


def version() -> str:
    """Read, not imported: the package is not built yet."""
    found = re.search(r'__version__ = "(.+)"', (ROOT / "cktrain/__init__.py").read_text())
    assert found is not None
    return found[1]


def extensions() -> list[Extension]:
    """Every compiled module: (name, sources, flags)."""
    headers = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / CSRC).glob("*.h"))
    door = "cython_kernels/_door.pxi"
    runtime = [f"{CSRC}/{name}.c" for name in ("pool", "recording", "door", "cpu")]

    def extension(module: str, sources: list[str], flags: list[str], *libraries: str) -> Extension:
        return Extension(
            f"{KERNELS}.{module}",
            sources,
            include_dirs=[CSRC],
            libraries=[*libraries],
            extra_compile_args=flags,
            extra_link_args=["-pthread"],
            depends=[*headers, door],
        )

    comm_headers = sorted(
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / COMM).glob("*.h"), *(ROOT / "comm").glob("*.pxi")]
    )

    def comm_extension(module: str, sources: list[str]) -> Extension:
        return Extension(
            f"cktrain.comm.{module}",
            [f"comm/{module}.pyx", *(f"{COMM}/{name}.c" for name in sources)],
            include_dirs=[COMM],
            extra_compile_args=C_FLAGS,
            extra_link_args=["-pthread"],
            depends=comm_headers,
        )

    return [
        *(comm_extension(module, sources) for module, sources in COMM_SOURCES.items()),
        *(
            extension(f"_isa_{isa}", [f"{CSRC}/isa_{isa}.c"], C_FLAGS + flags)
            for isas in (*ISA_FLAGS.values(), EMULATED)
            for isa, flags in isas.items()
        ),
        extension("_runtime", ["cython_kernels/_runtime.pyx", *runtime], GLUE_FLAGS),
        # Opens a libdnnl at run time; it needs none to be built.
        extension("_onednn", ["cython_kernels/_onednn.pyx", f"{CSRC}/onednn.c"], GLUE_FLAGS, "dl"),
        *(extension(theme, [f"cython_kernels/{theme}.pyx"], GLUE_FLAGS) for theme in THEMES),
        # RDMA: opens libibverbs at run time, and needs no header of it.
        Extension(
            "cktrain.comm.transport._verbs_native",
            [
                "comm/transport/_verbs_native.pyx",
                *(f"{COMM}/{name}.c" for name in ("verbs_port", "libibverbs", "libibverbs_layout")),
            ],
            include_dirs=[COMM],
            libraries=["dl"],
            extra_compile_args=GLUE_FLAGS,
            depends=["comm/transport/_libibverbs.pxi", *comm_headers],
        ),
    ]


class BuildExtensions(build_ext):
    """Leaves out what the compiler does not know, cythonizes, compiles on all cores."""

    def build_extensions(self) -> None:
        """Everything is decided here, where the compiler is known."""
        import numpy
        from Cython.Build import cythonize

        machine = self.compiler_says("-dumpmachine").partition("-")[0]
        own = {**ISA_FLAGS[""], **ISA_FLAGS.get(machine, {})}
        unknown = [isa for isa, flags in own.items() if not self.compiles_with(flags)]
        built = [isa for isa in own if isa not in unknown]
        left = {isa for isas in ISA_FLAGS.values() for isa in isas} - {*built}
        self.extensions = [
            e for e in self.extensions if e.name not in {f"{KERNELS}._isa_{isa}" for isa in left}
        ]
        for isa in unknown:
            self.announce(f"left out: the compiler does not know {' '.join(own[isa])}", level=3)
        for extension in self.extensions:
            if extension.name.endswith(("._runtime", "._engine")):
                extension.include_dirs.append(numpy.get_include())
                extension.define_macros.append(("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"))
            if extension.name.endswith("._runtime"):
                extension.define_macros += [
                    ("CK_BUILT", f'"{" ".join(built)}"'),
                    ("CK_LEFT_OUT", f'"{" ".join(unknown)}"'),
                    ("CK_COMPILER", f'"{self.compiler_version()}"'),
                ]
        workers = len(os.sched_getaffinity(0))
        cythonized = cythonize(
            self.extensions,
            build_dir="build/cython",
            nthreads=workers,
            language_level=3,
            compiler_directives={
                "binding": True,
                "embedsignature": False,
                "boundscheck": False,
                "wraparound": False,
            },
        )
        for extension, with_c in zip(self.extensions, cythonized, strict=True):
            extension.sources = with_c.sources
        self.parallel = self.parallel or workers
        self.kept = Path(os.environ.get("CKTRAIN_BUILT") or "build/modules")
        self.kept.mkdir(parents=True, exist_ok=True)
        super().build_extensions()
        for extension in self.extensions:
            made = sorted(self.kept.glob(f"{extension.name}-*"), key=lambda path: path.stat().st_mtime)
            for old in made[:-KEPT]:
                old.unlink(missing_ok=True)

    def build_extension(self, extension: Extension) -> None:
        """Compile a module, or take the one that was made of the same."""
        wanted = Path(self.get_ext_fullpath(extension.name))
        kept = self.kept / f"{extension.name}-{self.checksum(extension)}{wanted.suffix}"
        if kept.exists() and not self.force:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, wanted)
            wanted.chmod(0o755)
            kept.touch()
            return
        super().build_extension(extension)
        # Another build may read it at once: it appears whole.
        with tempfile.NamedTemporaryFile(dir=self.kept, delete=False) as unfinished:
            unfinished.write(wanted.read_bytes())
        Path(unfinished.name).rename(kept)

    def checksum(self, extension: Extension) -> str:
        """Of all that makes the module what it is, but for the system's own headers. No path is in it."""
        import numpy

        with_numpy = numpy.get_include() in extension.include_dirs
        made = hashlib.sha256()
        for what in (
            (sys.version, numpy.__version__ if with_numpy else "", self.compiler_version()),
            (self.compiler.compiler_so, self.compiler.linker_so),
            (extension.define_macros, extension.extra_compile_args),
            (extension.extra_link_args, extension.libraries),
        ):
            made.update(repr(what).encode())
        for path in sorted({*extension.sources, *extension.depends}):
            made.update(GENERATED_FOR.sub(b"", Path(path).read_bytes()))
        return made.hexdigest()[:20]

    def compiles_with(self, flags: list[str]) -> bool:
        """Whether the compiler takes the flags."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "try.c")
            source.write_text("int nothing;\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_preargs=flags)
            except CompileError:
                return False
        return True

    def compiler_version(self) -> str:
        """The first line of `cc --version`, without quotes."""
        return self.compiler_says("--version").replace('"', "").replace("\\", "")

    def compiler_says(self, option: str) -> str:
        """The first line that the compiler prints with an option; its name where it prints none."""
        words = [word for word in self.compiler.compiler if not word.startswith("-")]
        out = subprocess.run([*words, option], capture_output=True, text=True, check=False).stdout
        return (out.splitlines() or [words[0]])[0]


setup(
    version=version(),
    packages=list(packages()),
    package_dir=packages(),
    package_data={"cktrain": ["py.typed", "demo.yaml"]},  # that of `cktrain demo`: a link to the example
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtensions},
)
