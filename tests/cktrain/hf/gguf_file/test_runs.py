"""Runs that start from a GGUF file: what trains is saved, what is frozen stays in the file, by its SHA-256."""

import json

import numpy as np
import pytest

import cktrain as ck
from cktrain import cython_kernels
from cktrain.checkpoint_record import CheckpointError
from cktrain.fine_tuning import FineTuning, prepare
from cktrain.launch.cli import main
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import find_saved_model

FROZEN = ["model.embed_tokens", "model.layers.0.*"]


def config(path, tokens_file, folder, freeze):
    return {
        "run": {"dir": str(folder), "steps": 2},
        "model": {"from_pretrained": str(path), "freeze": freeze},
        "data": {"path": str(tokens_file), "sequence_length": 16},
        "batch": {"micro_batch_size": 2, "global_batch_size": 4},
        "schedule": {"warmup_steps": 0},
    }


def test_a_run_trains_from_a_file_as_from_the_folder_made_of_it(gguf, tokens_file, tmp_path):
    from cktrain.hf.gguf_file.import_gguf import import_gguf

    path = gguf("llama3")
    import_gguf(path, tmp_path / "hf")
    for name, source in (("a", path), ("b", tmp_path / "hf")):
        ck.train(config(source, tokens_file, tmp_path / name, []), bar=False)
    ids = np.array([1, 5, 9, 30])
    one, other = (ck.load(tmp_path / name) for name in ("a", "b"))
    np.testing.assert_array_equal(one.logits(ids), other.logits(ids))
    assert one.encode("the thing") == ck.load(path).encode("the thing")


def test_frozen_weights_stay_in_the_file(gguf, tokens_file, tmp_path):
    path = gguf("llama", "q8_0")
    ck.train(config(path, tokens_file, tmp_path / "run", FROZEN), bar=False)
    model = ck.load(tmp_path / "run")
    assert np.isfinite(model.logits([1, 2, 3])).all()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"llama-q8_0\.gguf is not the one recorded"):
        ck.load(tmp_path / "run").logits([1, 2, 3])


def test_an_adapter_beside_a_file_is_merged_into_a_folder_and_into_a_file(
    gguf, tokens_file, tmp_path, capsys
):
    path = gguf("llama3", "q8_0")
    values = config(path, tokens_file, tmp_path / "run", [])
    values["adapter"] = {"r": 2}
    values["optimizer"] = {"lr": 0.05}
    ck.train(values, bar=False)
    ids = np.array([1, 5, 9, 30])
    wanted = ck.load(tmp_path / "run").logits(ids)
    assert np.abs(wanted - ck.load(path).logits(ids)).max() > 1e-2
    for out, options in {"hf": ["--dtype", "float32"], "plain": [], "out.gguf": ["--gguf", "f32"]}.items():
        assert main(["export", str(tmp_path / "run"), str(tmp_path / out), "--merge", *options]) == 0
        merged = ck.load(tmp_path / out).logits(ids)
        # Sums in another order in fp32; a merged weight in bf16 is rounded by up to 2^-9 of it.
        assert np.abs(merged - wanted).max() / np.abs(wanted).max() < (3e-2 if out == "plain" else 1e-5), out
    said = capsys.readouterr().out
    assert f"merged into the weights of {path}, written as bfloat16" in said
    plain = find_saved_model(path).load(Numerics(cython_kernels.load(), "fp32"), positions=1)[1]
    assert f"out.gguf: {plain.count:,} parameters, f32" in said
    run = str(tmp_path / "run")
    assert main(["export", run, str(tmp_path / "a.gguf"), "--adapter", "--gguf"]) == 0
    assert "a.gguf: an adapter of " in capsys.readouterr().out and (tmp_path / "a.gguf").is_file()
    assert main(["export", run, str(tmp_path / "x"), "--adapter", "--gguf", "q8_0"]) == 2
    assert main(["export", run, str(tmp_path / "x"), "--merge", "--adapter"]) == 2
    assert not (tmp_path / "x").exists()


def test_a_file_is_fine_tuned_as_a_folder_that_is_made_once(gguf, tmp_path):
    path, out, said = gguf("llama", "q8_0"), tmp_path / "run", []
    rows = [json.dumps({"prompt": f"say {i}", "completion": " a" * (i % 3 + 1)}) for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    asked = FineTuning(
        path, tmp_path / "rows.jsonl", out, chat={"sequence_length": 24, "validation_fraction": 0.1}
    )
    first = prepare(asked, said.append, progress=False)
    (base,) = out.glob("base-*")
    assert f"model: {path} -> {base}, bfloat16" in said and first.config.model.from_pretrained == str(base)
    said.clear()
    assert prepare(asked, said.append, progress=False).config == first.config
    assert f"model: {base}, made of {path} before" in said
