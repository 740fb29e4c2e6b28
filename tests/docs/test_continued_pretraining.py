"""The example of continued pretraining: texts of two kinds, a file that is a mixture, curves read as they are written."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cktrain.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that measures, which is in no package."""
    file = ROOT / "docs" / "benchmarks" / "continued_pretraining.py"
    spec = importlib.util.spec_from_file_location("continued_pretraining", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_texts_are_source_without_the_prose_and_the_prose(tmp_path: Path) -> None:
    texts = ROOT / "examples" / "continued_pretraining_texts.py"
    subprocess.run([sys.executable, texts, tmp_path / "texts"], check=True)
    source, prose = (sorted((tmp_path / "texts" / kind).iterdir()) for kind in ("source", "prose"))
    assert len(source) > 200 and {file.suffix for file in source} == {".py"}
    assert len(prose) > 50 and {file.suffix for file in prose} == {".txt"}
    assert not any("pydoc_data" in file.name for file in source)
    assert (tmp_path / "texts/source/argparse.py").read_bytes() == Path(
        sys.modules["argparse"].__file__ or ""
    ).read_bytes()


def test_the_example_goes_on_with_prose_and_a_quarter_of_source() -> None:
    data = load_config(ROOT / "examples" / "continued_pretraining.yaml").data
    assert data.parts == {"prose": "data/prose", "source": "data/source"}
    assert data.shares_of_stages == [(None, [0.75, 0.25])]


@pytest.mark.parametrize("replay", [0.0, 0.25])
def test_a_run_is_asked_for_by_its_share_and_its_losses_are_read_by_part(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replay: float
) -> None:
    asked = []
    monkeypatch.setattr(script, "command", lambda *words: asked.append(words))
    folder = tmp_path / f"runs/replay-{replay:g}"
    folder.mkdir(parents=True)
    lines = [{"step": 0, "val_loss_of_parts": {"prose": 5.0, "source": 3.0}}, {"step": 1, "loss": 4.0}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert script.run(tmp_path, replay, 1) == {"prose": [(0, 5.0)], "source": [(0, 3.0)]}
    (words,) = asked
    overrides = [word for word in words[2:] if word != "--set"]
    config = load_config(words[1], overrides)
    (_, weights), *more = config.data.shares_of_stages
    assert weights == [1.0 - replay, replay] and bool(more) == (replay == 0)


def test_the_curves_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = {"prose": [(0, 5.0), (10, 4.0)], "source": [(0, 3.0), (10, 3.5)]}
    script.plot({"0": curve, "0.25": curve}, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text()
