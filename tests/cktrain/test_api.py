"""What a script or a notebook gets: imports that load nothing, honest refusals, numbers that fit together, runs."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cktrain as ck

pytestmark = pytest.mark.usefixtures("unbound")
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hf"


@pytest.fixture
def exact(monkeypatch):
    """The reference kernels, which compute in fp64."""
    monkeypatch.setenv("CKTRAIN_ISA", "reference")


def python(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return subprocess.run(
        [sys.executable, "-c", code], env={**kept, **environ}, capture_output=True, text=True, check=True
    )


def test_nothing_is_loaded_before_it_is_asked_for_and_binding_comes_before_numpy():
    done = python(
        "import os, sys, cktrain as ck\n"
        "assert 'numpy' not in sys.modules and 'load' in dir(ck)\n"
        "ck.bind()\n"
        "assert 'numpy' not in sys.modules and os.environ['OPENBLAS_NUM_THREADS'] == '1'\n"
        "import numpy\n"
        f"print(ck.load({str(GOLDEN / 'llama')!r}).loss([1, 2, 3]))"
    )
    assert float(done.stdout) > 0 and done.stderr == ""


def test_a_process_that_has_numpy_is_told_once_what_that_costs():
    code = "import numpy, cktrain as ck\nck.bind(); ck.bind()"
    said = python(code).stderr
    assert said.count("numpy was loaded before cktrain bound this process") == 1
    assert "<string>" in said  # it points at the caller's line
    assert python(code, OPENBLAS_NUM_THREADS="1").stderr == ""


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cktrain' has no attribute 'chat'"):
        _ = ck.chat


@pytest.mark.parametrize(
    "given, words",
    [
        ({"path": "m.gguf"}, "m.gguf: it cannot be read"),
        ({"path": ".", "quantize": "q8_0"}, "is no run"),
        ({"path": ".", "dtype": "int8"}, "dtype='int8' is unknown"),
        ({"path": ".", "special_tokens": "no"}, "special_tokens='no' is unknown"),
        ({"path": ".", "threads": 9999}, "Give 1 to"),
        ({"path": "nowhere"}, "is no run"),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_name(given, words):
    with pytest.raises(ValueError, match=words):
        ck.load(**given)


def test_fp64_is_for_the_reference_kernels(monkeypatch):
    monkeypatch.setenv("CKTRAIN_ISA", "generic")
    with pytest.raises(ValueError, match="Set CKTRAIN_ISA=reference"):
        ck.load(GOLDEN / "llama", dtype="fp64")


@pytest.mark.parametrize("case", ["llama", "gpt2", "qwen3"])
def test_logits_and_loss_are_the_stored_ones(exact, case):
    """Against logits that transformers computed in fp64 and stored in fp32, and the mean cross-entropy of these by hand."""
    stored = np.load(GOLDEN / case / "results.npz")
    ids = stored["tokens"]
    model = ck.load(GOLDEN / case, dtype="fp64")
    logits = model.logits(ids)
    np.testing.assert_allclose(logits, stored["logits"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(model.logits(ids[0]), logits[0])
    labels = ids.copy()
    labels[0, 3:9] = -100
    wide = stored["logits"][:, :-1].astype(np.float64)
    lse = np.log(np.exp(wide).sum(-1))
    losses = lse - np.take_along_axis(wide, ids[:, 1:, None], 2)[..., 0]
    assert model.loss(ids) == pytest.approx(losses.mean(), rel=1e-6)
    assert model.loss(ids, labels) == pytest.approx(losses[labels[:, 1:] != -100].mean(), rel=1e-6)
    assert model.loss(ids[1]) == pytest.approx(losses[1].mean(), rel=1e-6)


@pytest.mark.parametrize("case", ["llama", "gpt2", "llama_tied_biases"])
def test_gradients_are_the_slope_of_the_loss(exact, tmp_path, case):
    """Central differences over the weights of the folder itself, so names and shapes are Hugging Face's."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 30, (2, 9))
    labels = ids.copy()
    labels[1, 4:] = -100
    found = ck.load(GOLDEN / case, dtype="fp64").gradients(ids, labels)
    weights = {
        name: w.astype(np.float64) for name, w in load_file(GOLDEN / case / "model.safetensors").items()
    }
    assert set(found) == set(weights)
    (tmp_path / "config.json").write_text((GOLDEN / case / "config.json").read_text())
    for name in sorted(weights)[::5]:
        weight = weights[name]
        assert found[name].shape == weight.shape
        index = tuple(rng.integers(0, size) for size in weight.shape)
        losses = []
        for move in (1e-5, -1e-5):
            weight[index] += move
            save_file(weights, tmp_path / "model.safetensors")
            weight[index] -= move
            losses.append(ck.load(tmp_path, dtype="fp64").loss(ids, labels))
        assert (losses[0] - losses[1]) / 2e-5 == pytest.approx(found[name][index], rel=1e-5, abs=1e-9), name


def test_one_model_gives_the_same_numbers_in_any_order_of_calls(exact):
    """Another shape and the way from frozen weights to weights with gradients change nothing."""
    model = ck.load(GOLDEN / "llama", dtype="fp64")
    ids = np.arange(12) % 7
    loss, logits = model.loss(ids), model.logits(ids[:5])
    first = model.gradients(ids)
    model.loss(np.tile(ids, (3, 1)))
    again = model.gradients(ids)
    assert model.loss(ids) == loss and (model.logits(ids[:5]) == logits).all()
    assert all((first[name] == again[name]).all() for name in first)


@pytest.mark.parametrize(
    "ids, labels, words",
    [
        ([[0.5]], None, "give integers of shape"),
        ([], None, "give integers of shape"),
        ([1, 99], None, "id 99 is not in the model's vocabulary of 33"),
        ([1, -1], None, "id -1 is not in"),
        ([1] * 65, None, "65 tokens in a row, and the model has 64 positions"),
        ([1, 2], [1], r"labels \(1,\) beside ids \(2,\)"),
        ([1, 2], [1, 33], "vocabulary has 33 ids"),
        ([1, 2], [5, -100], "no label is left"),
        ([1], None, "no label is left"),
    ],
)
def test_bad_ids_and_labels_are_named(ids, labels, words):
    with pytest.raises(ValueError, match=words):
        ck.load(GOLDEN / "qwen3").loss(ids, labels)


def test_text_needs_a_tokenizer():
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        ck.load(GOLDEN / "llama").generate("a")


def config_of(folder: Path, tokens_file: Path) -> dict:
    return {
        "run": {"dir": str(folder), "steps": 6, "seed": 5},
        "model": {
            "family": "llama",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 40,
            "vocab_size": 61,
        },
        "data": {"path": str(tokens_file), "sequence_length": 16},
        "batch": {"micro_batch_size": 2, "global_batch_size": 8},
        "log": {"every": 1},
    }


def test_a_run_in_two_calls_is_the_run_in_one(tmp_path, tokens_file):
    both = []
    for name, stops in (("whole", (6,)), ("parts", (2, 6))):
        values = {
            **config_of(tmp_path / name, tokens_file),
            "schedule": {"name": "constant", "warmup_steps": 0},
        }
        for steps in stops:
            run = ck.train(values, {"run.steps": steps}, bar=False)
        assert run.done and run.path == tmp_path / name
        both.append((run.losses().training, run.load().loss(np.arange(16))))
    assert both[0] == both[1] and len(both[0][0]) == 6
    logger = logging.getLogger("cktrain")
    assert logger.handlers == [] and logger.propagate  # the program's own logging is as it was


def test_what_a_run_gives(tmp_path, tokens_file):
    (tmp_path / "run.yaml").write_text(json.dumps(config_of(tmp_path / "run", tokens_file)))
    run = ck.train(tmp_path / "run.yaml", {"run.steps": 2})
    assert run.plot(tmp_path / "loss.png").axes and (tmp_path / "loss.png").stat().st_size > 1000
    exported = ck.load(run.export(tmp_path / "out"))
    ids = np.arange(16)
    assert exported.loss(ids) == run.load().loss(ids) == ck.load(tmp_path / "run").loss(ids)
    with pytest.raises(ValueError, match="is not an empty folder"):
        run.export(tmp_path / "out")
    assert ck.TrainedRun(tmp_path / "run").losses() == run.losses()


def test_what_is_wrong_with_a_run_is_a_value_error(tmp_path, tokens_file):
    values = config_of(tmp_path / "run", tokens_file)
    with pytest.raises(ValueError, match=r"run\.stepz"):
        ck.train(values, {"run.stepz": 3})
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        ck.train(values, {"optimizer.lr": "fast"})
    with pytest.raises(ValueError, match="no such file or folder"):
        ck.train(values, {"data.path": tmp_path / "nowhere"})
    assert values == config_of(tmp_path / "run", tokens_file)  # what was given is as it was
    assert ck.train(values, {"run.steps": 1}).done  # the folder was given back


def test_no_warning_where_the_blas_is_limited(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ck.bind(1) == 1


def test_generate_of_one_prompt_and_of_several(tmp_path):
    from chat_models import write_weights

    model = ck.load(write_weights(tmp_path / "model"))
    keys = {
        "max_tokens": 8,
        "temperature": 0.9,
        "top_k": 20,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 4,
    }
    both = ck.generate(model, ["a b", "c"], **keys)
    assert both == [model.generate("a b", **keys), ck.generate(tmp_path / "model", "c", **keys)]
    first = both[0][:1]
    assert ck.generate(model, "a b", **keys, stop=[first]) == ""
    assert ck.generate(model, ["a b", "c"], **keys, stop=[first])[0] == "" and ck.generate(model, []) == []
    narrow = ck.load(tmp_path / "model", kv_dtype="bf16")
    assert narrow.decoder(5).feed([1, 2, 3]).dtype == np.float32
    with pytest.raises(ValueError, match="kv_dtype='fp8' is unknown"):
        ck.load(tmp_path / "model", kv_dtype="fp8")
