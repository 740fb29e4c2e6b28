"""Texts of two kinds without a network, from the running Python: source of its library, and prose about the language.

    python examples/continued_pretraining_texts.py texts

writes texts/source/*.py, what the base is trained on, and texts/prose/*.txt, the topics of `help()`: what it goes on with.
The library's own copy of these topics is left out of the source.
"""

import pydoc_data.topics
import sys
import sysconfig
from pathlib import Path

MODULES = ("asyncio", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging", "multiprocessing",
           "sqlite3", "unittest", "urllib", "xml")  # fmt: skip


def main(texts: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(library.glob("*.py")) + [
        file for name in MODULES for file in sorted((library / name).rglob("*.py"))
    ]
    for folder in ("source", "prose"):
        (texts / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        name = "-".join(file.relative_to(library).with_suffix("").parts)
        (texts / "source" / f"{name}.py").write_bytes(file.read_bytes())
    for topic, text in pydoc_data.topics.topics.items():
        (texts / "prose" / f"{topic}.txt").write_text(text, encoding="utf-8")
    print(f"{texts}: {len(files)} files of source, {len(pydoc_data.topics.topics)} topics of prose")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "texts"))
