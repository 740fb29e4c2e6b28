"""The two providers of verbs as the tests in guests have them: cktrain's own, and the system's pyverbs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")

TRY = """
from cktrain.comm.transport import verbs
for name in verbs.PROVIDERS:
    try:
        verbs.load_provider(name)
    except verbs.ProviderError as error:
        print(error.sentence)
        break
"""


def variables(folder: Path) -> dict[str, str]:
    """Variables with which Python finds the system's pyverbs and nothing else of the system's; `folder` will hold a link."""
    # Some tests run as a user without rights, who may not enter pytest's own folders.
    folder.chmod(0o755)
    (folder / "pyverbs").symlink_to(SYSTEM_PACKAGES / "pyverbs")
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def not_ready() -> str | None:
    """Why one of them does not load here, or None."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **variables(Path(folder))}
        tried = subprocess.run(
            [sys.executable, "-c", TRY], env=environment, capture_output=True, text=True, check=False
        )
    if tried.returncode != 0:
        return f"cktrain does not import here ({tried.stderr.strip().splitlines()[-1]})"
    return tried.stdout.strip() or None
