"""The types of a file's tensors, beside what llama.cpp's quantizer chose for a published one."""

import pytest

from cktrain.hf.gguf_file.block_choice import fitting_type, wanted_type


def chosen(name, layers=16, kind="q4_k", tied=True, shape=(64, 256)):
    return wanted_type(name, shape, kind, layers, tied)


def test_q4_k_is_the_mixture_of_a_published_q4_k_m():
    """Gemma 3 270M, gemma-3-270m-q4_k_m.gguf: 18 layers, widths of 640, of 1024 (o_proj) and of 2048 (down_proj)."""
    more = [0, 1, 4, 7, 10, 13, 15, 16, 17]

    def of(module, layer, width):
        return fitting_type(chosen(f"blk.{layer}.{module}.weight", layers=18), width)

    for layer in range(18):
        assert of("ffn_down", layer, 2048) == ("Q6_K" if layer in more else "Q4_K"), layer
        assert of("attn_v", layer, 640) == ("Q8_0" if layer in more else "Q5_0"), layer
        assert of("attn_output", layer, 1024) == "Q4_K"
        for module in ("attn_q", "attn_k", "ffn_up", "ffn_gate"):
            assert of(module, layer, 640) == "Q5_0"
    assert fitting_type(chosen("token_embd.weight"), 640) == "Q8_0"


def test_other_heads_and_fused_matrices():
    assert chosen("token_embd.weight") == "Q6_K" and chosen("token_embd.weight", tied=False) == "Q4_K"
    assert chosen("output.weight", tied=False) == "Q6_K" == chosen("output.weight", tied=False, kind="q4_0")
    assert chosen("token_embd.weight", kind="mxfp4", tied=False) == "Q8_0"
    assert chosen("blk.3.attn_qkv.weight") == "Q5_K"
    assert chosen("blk.0.attn_norm.weight", shape=(256,)) == "F32"


@pytest.mark.parametrize(
    ("wanted", "width", "found"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 576, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q4_K", 80, "F16"),
        ("Q8_0", 80, "F16"),
        ("MXFP4", 80, "F16"),
        ("Q4_0", 96, "Q4_0"),
        ("F32", 7, "F32"),
        ("BF16", 7, "BF16"),
    ],
)
def test_rows_that_are_no_blocks_have_smaller_blocks(wanted, width, found):
    assert fitting_type(wanted, width) == found
