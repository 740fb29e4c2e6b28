"""Attention's options beside those whose models have them: PyTorch's scaled_dot_product_attention and flex_attention, and
the eager attention of Gemma 2 (softcap), gpt-oss (sinks) and T5 (a bias of buckets, all of whose positions share it)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch.nn.attention.flex_attention import flex_attention
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from cktrain import cython_kernels

pytestmark = pytest.mark.judge
B, S, T, H, K, D = 2, 45, 100, 6, 2, 24


@pytest.fixture(params=cython_kernels.available())
def kernels(request: pytest.FixtureRequest) -> Any:
    return cython_kernels.load(request.param)


def draw(s: int = S, t: int = T) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"q": (B, s, H, D), "k": (B, t, K, D), "v": (B, t, K, D), "do": (B, s, H, D)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ours(kernels: Any, given: dict[str, Any], scale: float, **options: Any) -> dict[str, Any]:
    """o and the gradients of q, k, v, and of sinks and bias where they are among the options."""
    q, k, v, do = (given[name] for name in ("q", "k", "v", "do"))
    o, lse = np.empty_like(q), np.empty((q.shape[0], H, q.shape[1]), np.float32)
    kernels.attention_forward(o, lse, q, k, v, scale, **options)
    dq, dk, dv, delta = np.empty_like(q), np.empty_like(k), np.empty_like(v), np.empty_like(lse)
    learned = {f"d{name}": np.zeros_like(options[name]) for name in ("sinks", "bias") if name in options}
    kernels.attention_backward(dq, dk, dv, delta, do, q, k, v, o, lse, scale, **options, **learned)
    return {"o": o, "dq": dq, "dk": dk, "dv": dv} | learned


def theirs(run: Any, given: dict[str, Any], **learned: Any) -> dict[str, Any]:
    """The same of run(q, k, v, **learned), which takes and returns (B, heads, rows, D), by autograd in fp64."""
    tensors = {name: torch.tensor(given[name], dtype=torch.float64, requires_grad=True) for name in "qkv"}
    tensors |= {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in learned.items()}
    heads = [tensors[name].transpose(1, 2) for name in "qkv"]
    o = run(*heads, **{name: tensors[name] for name in learned}).transpose(1, 2)
    o.backward(torch.tensor(given["do"], dtype=torch.float64))
    return {"o": o.detach().numpy()} | {f"d{name}": x.grad.numpy() for name, x in tensors.items()}


def agree(got: dict[str, Any], want: dict[str, Any]) -> None:
    """To some hundred roundings of fp32 of the largest number."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert np.abs(got[name] - value).max() <= 1e-5 * np.abs(value).max(), name


def test_cross_attention_with_a_bias(kernels: Any) -> None:
    given, bias = draw(), np.random.default_rng(1).standard_normal((1, H, S, T)).astype(np.float32)

    def run(q: Any, k: Any, v: Any, bias: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias.expand(B, -1, -1, -1), scale=0.3, enable_gqa=True
        )

    agree(ours(kernels, given, 0.3, causal=False, bias=bias), theirs(run, given, bias=bias))


def test_more_queries_than_keys(kernels: Any) -> None:
    given = draw(T, S)

    def run(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=-0.2, enable_gqa=True)

    agree(ours(kernels, given, -0.2, causal=False), theirs(run, given))


def test_local_attention_to_both_sides(kernels: Any) -> None:
    given, w = draw(T, T), 17
    near = (torch.arange(T)[:, None] - torch.arange(T)).abs() < w

    def run(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=near, enable_gqa=True)

    agree(ours(kernels, given, D**-0.5, causal=False, window=w), theirs(run, given))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_softcap_by_flex_attention(kernels: Any) -> None:
    """The output alone: uncompiled, it is not for gradients; those are Gemma 2's below."""
    given, cap = draw(T, T), 1.5

    def capped(score: Any, b: Any, h: Any, q_at: Any, k_at: Any) -> Any:
        return torch.where(k_at <= q_at, cap * torch.tanh(score / cap), -torch.inf)

    heads = [torch.tensor(given[name], dtype=torch.float64).transpose(1, 2) for name in "qkv"]
    with torch.no_grad():
        want = flex_attention(*heads, score_mod=capped, scale=0.4, enable_gqa=True).transpose(1, 2).numpy()
    got = ours(kernels, given, 0.4, softcap=cap)["o"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def causal_mask() -> Any:
    hidden = torch.arange(T)[None, :] > torch.arange(T)[:, None]
    return torch.zeros(T, T, dtype=torch.float64).masked_fill(hidden, -torch.inf)[None, None]


def test_softcap_as_gemma2_has_it(kernels: Any) -> None:
    given = draw(T, T)
    module = SimpleNamespace(num_key_value_groups=H // K, training=False)

    def run(q: Any, k: Any, v: Any) -> Any:
        out, _ = gemma2(module, q, k, v, causal_mask(), scaling=0.4, softcap=1.5)
        return out.transpose(1, 2)

    agree(ours(kernels, given, 0.4, softcap=1.5), theirs(run, given))


def test_sinks_as_gpt_oss_has_them(kernels: Any) -> None:
    given, sinks = draw(T, T), np.linspace(-3.0, 4.0, H, dtype=np.float32)

    def run(q: Any, k: Any, v: Any, sinks: Any) -> Any:
        module = SimpleNamespace(num_key_value_groups=H // K, training=False, sinks=sinks)
        out, _ = gpt_oss(module, q, k, v, causal_mask(), scaling=0.4)
        return out.transpose(1, 2)

    agree(ours(kernels, given, 0.4, sinks=sinks), theirs(run, given, sinks=sinks))


def test_the_bias_of_t5(kernels: Any) -> None:
    """An encoder's layer: its projections are unit matrices, so that its heads are q, k and v; the gradient of the table."""
    config = T5Config(d_model=H * D, d_kv=D, num_heads=H, dropout_rate=0.0, attn_implementation="eager")
    layer = T5Attention(config, has_relative_attention_bias=True).double().eval()
    for projection in (layer.q, layer.k, layer.v, layer.o):
        torch.nn.init.eye_(projection.weight)
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.relative_attention_bias.weight)
    x = torch.randn(B, T, H * D, dtype=torch.float64)
    do = torch.randn(B, T, H * D, dtype=torch.float64)
    with torch.no_grad():
        bias = layer.compute_bias(T, T)
    out = layer(x)[0]
    out.backward(do)
    q = x.numpy().reshape(B, T, H, D).astype(np.float32)
    do32 = do.numpy().reshape(B, T, H, D).astype(np.float32)
    given = {"q": q, "k": q, "v": q, "do": do32}
    got = ours(kernels, given, 1.0, causal=False, bias=np.ascontiguousarray(bias.numpy(), np.float32))
    want = out.detach().numpy().reshape(B, T, H, D)
    assert np.abs(got["o"] - want).max() <= 1e-5 * np.abs(want).max()
    buckets = layer._relative_position_bucket(
        torch.arange(T)[None, :] - torch.arange(T)[:, None],
        bidirectional=True,
        num_buckets=config.relative_attention_num_buckets,
        max_distance=config.relative_attention_max_distance,
    ).numpy()
    dtable = np.zeros((config.relative_attention_num_buckets, H))
    np.add.at(dtable, buckets.ravel(), got["dbias"][0].reshape(H, -1).T)
    table = layer.relative_attention_bias.weight.grad.numpy()
    assert np.abs(dtable - table).max() <= 1e-5 * np.abs(table).max()
