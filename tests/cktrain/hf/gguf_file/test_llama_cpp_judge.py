"""llama.cpp itself (the wheel xllamacpp) reads what is written: our log-probabilities from F32, and quantized files load.

An F32 file leaves nothing to rounding but the order of sums: 1e-5 in a log-probability, with llama.cpp's cache in F32 and
its flash attention off, which would round to F16. ggml's GELU is a table of F16, 2^-11 of each value: 2e-3 for Gemma.
"""

import numpy as np
import pytest
from gguf_made_here import FAMILIES, ROWS

import cktrain as ck

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.judge
PRINTABLE = 34
"""An id that is a printable character: llama.cpp says no probabilities for incomplete UTF-8."""


def log_probabilities(path, ids, adapters=()):
    """llama.cpp's log-probabilities (V) after these ids."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.lora_adapters = list(adapters)
    params.n_ctx, params.n_parallel, params.warmup = 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {
        "prompt": [int(index) for index in ids],
        "max_tokens": 1,
        "n_probs": ROWS,
        "temperature": 1.0,
        "logit_bias": [[PRINTABLE, 1000]],
    }
    answer = xllamacpp.Server(params).handle_completions(request)
    found = np.full(ROWS, np.nan)
    for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        found[each["id"]] = each["logprob"]
    return found


def ours(path, ids, adapter=None):
    logits = ck.load(path, adapter=adapter).logits(np.asarray(ids))[-1].astype(np.float64)
    return logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


IDS = [0, 77, 140, 260, 12, 199, 31, 265, 88, 40]


@pytest.mark.parametrize("case", FAMILIES)
def test_f32_gives_our_log_probabilities(case, gguf):
    path = gguf(case)
    theirs = log_probabilities(path, IDS)
    assert not np.isnan(theirs).any()
    np.testing.assert_allclose(theirs, ours(path, IDS), rtol=0, atol=2e-3 if "gemma" in case else 1e-5)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_other_types_load_and_are_near(kind, gguf):
    """llama.cpp rounds activations too (to 8 bits beside Q8_0): 0.1 tells the right weights from wrong ones."""
    path = gguf("llama", kind)
    theirs = log_probabilities(path, IDS)
    assert np.abs(theirs - ours(path, IDS)).max() < 0.1 < np.ptp(theirs)
