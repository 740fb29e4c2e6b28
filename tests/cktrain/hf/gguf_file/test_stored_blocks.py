"""`quantize: stored`: a GGUF file's blocks are kept as they are, and stand for the values that they are decoded to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.cython_kernels.block_formats import BLOCK_FORMATS
from cktrain.hf.gguf_file import export
from cktrain.memory.param_store import ParamStore
from cktrain.models import parse_model
from cktrain.models.build import build_model
from cktrain.nn.numerics import Numerics
from cktrain.saved_model import find_saved_model

gguf = pytest.importorskip("gguf")

from gguf_made_here import SIZES, byte_level, side_files  # noqa: E402

SCALES = {"Q4_K": {0: 0.0002, 2: 0.0015}, "Q5_K": {0: 0.0001, 2: 0.0015}, "Q6_K": {208: 0.00005}}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    """`mixed(kinds)`: a file whose matrices have these types, by a part of their names."""

    def make(kinds: dict[str, str], **keys: Any):
        def kind_of(name: str) -> str:
            return next(kind for part, kind in kinds.items() if part in name)

        def stored(values: np.ndarray, kind: str, name: str) -> np.ndarray:
            if kind == "F32":
                return values.view(np.uint8)
            known, size = gguf.GGMLQuantizationType[kind], gguf.GGML_QUANT_SIZES
            if kind not in SCALES:
                return gguf.quants.quantize(values, known)
            block, nbytes = size[known]
            shape = values.shape[0], values.shape[1] // block, nbytes
            data = np.random.default_rng(len(name)).integers(0, 256, shape, dtype=np.uint8)
            for place, scale in SCALES[kind].items():
                data[..., place : place + 2] = np.array([scale], np.float16).view(np.uint8)
            return data.reshape(values.shape[0], -1)

        names = iter(())

        def kind(_: str, shape: tuple[int, ...], *__: Any) -> str:
            return "F32" if len(shape) == 1 else next(names)

        config = parse_model(
            {**SIZES, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, **keys}
        )
        numerics = Numerics(cython_kernels.load("reference"), "fp32")
        params = ParamStore(build_model(config, numerics, 64).params(), numerics)
        params.initialize(seed=7)
        monkeypatch.setattr(export, "_stored", stored)
        matrices = [t.name for t in export.hf_tensors(config, reversed(params.params)) if len(t.shape) == 2]
        names = iter([kind_of(name) for name in matrices])
        monkeypatch.setattr(export, "wanted_type", kind)
        path = tmp_path / f"mixed-{len(list(tmp_path.iterdir()))}.gguf"
        export.export_gguf(path, config, params, side_files(tmp_path / "side", byte_level()), "f16")
        return path

    return make


def hidden(path, quantize: str):
    """(the stream before the head of a few tokens, the parameters), reference kernels in fp64."""
    numerics = Numerics(cython_kernels.load("reference"), "fp64")
    model, params = find_saved_model(path).quantized(quantize).load(numerics, 8)
    ids = np.arange(8, dtype=np.int32).reshape(1, 8)
    slot = model.plan(1, 8, train=False).allocate()[0]
    slot.describe(None, None)
    return model.head.logits(model.hidden(ids, slot)), params


@pytest.mark.parametrize(
    "kinds",
    [
        {"v_proj": "Q6_K", "up_proj": "Q6_K", "embed": "Q6_K", "": "Q4_K"},
        {"o_proj": "F32", "down": "Q5_0", "": "Q4_1"},
        {"embed": "F32", "lm_head": "Q8_0", "": "MXFP4"},
    ],
)
def test_blocks_are_kept_and_stand_for_their_values(mixed, kinds):
    path = mixed(kinds)
    got, params = hidden(path, "stored")
    want, _ = hidden(path, "none")
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    file = {t.name: t for t in gguf.GGUFReader(path).tensors}
    down = next(p for p in params.params if p.name.endswith("down_proj.weight"))
    assert np.array_equal(down.data, np.asarray(file["blk.0.ffn_down.weight"].data).reshape(-1))
    qkv = next(p for p in params.params if p.name.endswith("qkv_proj.weight"))
    formats = [kinds.get(name, kinds[""]).lower() for name in ("q_proj", "k_proj", "v_proj")]
    assert [part.format.name for part in qkv.blocks] == (formats if len(set(formats)) > 1 else formats[:1])
    value = np.asarray(file["blk.0.attn_v.weight"].data)  # not permuted
    assert np.array_equal(qkv.blocks[-1].data[-len(value) :], value)


def test_a_format_keeps_the_bytes_that_have_it_and_encodes_the_others(mixed):
    path = mixed({"gate_proj": "Q4_0", "": "Q4_K"})
    got, params = hidden(path, "q4_0")
    assert np.isfinite(got).all()
    gate_up = next(p for p in params.params if p.name.endswith("gate_up_proj.weight"))
    (part,) = gate_up.blocks
    file = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert np.array_equal(part.data[:512], file["blk.0.ffn_gate.weight"].data)
    table = next(p for p in params.params if "embed" in p.name)
    assert table.spec.blocks == ("q8_0",) and part.format is BLOCK_FORMATS["q4_0"]


def test_a_type_that_is_not_multiplied_is_refused_by_name(mixed):
    path = mixed({"down_proj": "Q5_K", "": "Q4_K"})
    with pytest.raises(
        ValueError, match=r"down_proj.weight is Q5_K in .*\.gguf, which is not multiplied as it is"
    ):
        hidden(path, "stored")


def test_a_scale_that_is_not_finite_is_found(mixed):
    path = mixed({"": "Q8_0"})
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset : tensor.data_offset + 2] = np.array([np.inf], np.float16).tobytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"up_proj.weight in .*blocks of q8_0,: 3[12] of these"):
        hidden(path, "stored")
