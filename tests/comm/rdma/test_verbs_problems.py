"""A pyverbs that does not load is explained by what lies on the disk: elsewhere, for another Python, mismatched."""

import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from cktrain.comm.transport import verbs_problems
from cktrain.comm.transport.verbs_problems import (
    Library,
    describe_library,
    explain_import,
    explain_pyverbs,
    private_version,
)

SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
SYSTEM = Library(Path("/usr/lib/libibverbs.so.1.14.44.0"), "44.0", 34)


def pyverbs(folder: Path, private: int | None = 34, suffix: str = SUFFIX) -> Path:
    """A package with a device module that names a private interface."""
    package = folder / "pyverbs"
    package.mkdir(parents=True)
    symbol = b"" if private is None else b"ibv_query_gid_type\0IBVERBS_PRIVATE_%d\0" % private
    (package / f"device{suffix}").write_bytes(b"\x7fELF..." + symbol + b"IBVERBS_1.1\0")
    return folder


def test_the_versions_are_read_from_the_files(tmp_path: Path) -> None:
    library = tmp_path / "libibverbs.so.1.14.44.0"
    library.write_bytes(b"\x7fELF\0IBVERBS_1.14\0IBVERBS_PRIVATE_34\0")
    (tmp_path / "libibverbs.so.1").symlink_to(library)
    assert describe_library(tmp_path / "libibverbs.so.1") == Library(library, "44.0", 34)
    other = tmp_path / "libibverbs.so.1.odd"
    other.write_bytes(b"nothing")
    assert describe_library(other) == Library(other, "?", None)
    assert private_version(other) is None


@pytest.mark.parametrize(("private", "versions"), [(57, "57 and 58"), (59, "59 to 63"), (65, "65 or newer")])
def test_a_pyverbs_for_another_libibverbs(tmp_path: Path, private: int, versions: str) -> None:
    error = ImportError(f"undefined symbol: ibv_query_gid_type, version IBVERBS_PRIVATE_{private}")
    found = explain_pyverbs(error, [str(pyverbs(tmp_path, private))], [], SYSTEM)
    assert (
        f"was built for rdma-core {versions}, and the system's libibverbs is of rdma-core 44.0"
        in found.reason
    )
    assert f"{private} against 34" in found.reason
    assert "pip uninstall pyverbs" in found.remedy and "rdma-core 34 to 56" in found.remedy


def test_a_fake_module_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: the provider is asked for, the import fails, and the message says why."""
    from cktrain.comm.transport import verbs

    pyverbs(tmp_path, 57)
    (tmp_path / "pyverbs" / "__init__.py").touch()
    own = "cktrain.comm.transport.verbs_pyverbs"
    others = {k: v for k, v in sys.modules.items() if k.partition(".")[0] != "pyverbs" and k != own}
    monkeypatch.setattr(sys, "modules", others)  # nothing of a real pyverbs, and nothing stays of this one
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(verbs_problems, "installed_library", lambda: SYSTEM)
    with pytest.raises(verbs.ProviderError, match="built for rdma-core 57 and 58") as failed:
        verbs.load_provider("pyverbs")
    assert set(failed.value.problems) == {"pyverbs"}


def test_installed_but_not_on_the_path(tmp_path: Path) -> None:
    error = ModuleNotFoundError("No module named 'pyverbs'")
    found = explain_pyverbs(error, [], [pyverbs(tmp_path)], SYSTEM)
    assert f"this Python does not look into {tmp_path}" in found.reason
    assert found.remedy == f"ln -s {tmp_path}/pyverbs {sysconfig.get_path('purelib')}/pyverbs"


@pytest.mark.parametrize("visible", [True, False])
def test_for_another_python(tmp_path: Path, visible: bool) -> None:
    folder = pyverbs(tmp_path, suffix=".cpython-38-x86_64-linux-gnu.so")
    found = explain_pyverbs(ImportError(), [str(folder)] if visible else [], [folder], SYSTEM)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"is for Python 3.8, and this is {running}" in found.reason
    assert "native provider" in found.remedy


def test_not_installed_at_all(tmp_path: Path) -> None:
    found = explain_pyverbs(ImportError(), [str(tmp_path)], [tmp_path], SYSTEM)
    assert found.reason == "pyverbs is not installed" and "apt-get install python3-pyverbs" in found.remedy


def test_no_library() -> None:
    missing = ImportError("libibverbs.so.1: cannot open shared object file: No such file or directory")
    for provider in ("native", "pyverbs"):
        found = explain_import(provider, missing)
        assert found.reason == "libibverbs is not installed" and "ibverbs-providers" in found.remedy
    assert explain_pyverbs(ImportError(), [], [], None).reason == "libibverbs is not installed"


def test_something_else_is_passed_on(tmp_path: Path) -> None:
    found = explain_pyverbs(ImportError("odd\nmore"), [str(pyverbs(tmp_path))], [], SYSTEM)
    assert "does not import (odd)" in found.reason


def test_a_native_binding_that_does_not_load() -> None:
    found = explain_import("native", ImportError("odd\nmore"))
    assert found.reason == "cktrain's own binding does not load (odd)"


def test_both_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from cktrain.comm.transport import verbs

    def fail(name: str) -> Any:
        raise ImportError("libibverbs.so.1: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(verbs.ProviderError, match="native: libibverbs is not installed; pyverbs: libibverbs"):
        verbs.load_provider()
    with pytest.raises(ValueError, match="provider 'ucx' is unknown"):
        verbs.load_provider("ucx")
