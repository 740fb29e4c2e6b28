"""What PyTorch computes for each row of the table of cases: its forward, and its autograd's backward.

Imported where torch is: by the live parity test and by the script that makes the golden files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case, Inputs, Outputs
from cases_quantized import values_of

from cktrain.cython_kernels.block_formats import NOT_INTEGERS
from cktrain.cython_kernels.dynamic_map import SIGNED, UNSIGNED

Tensors = dict[str, Any]


def torch_run(case: Case, inputs: Inputs) -> Outputs:
    """Return what `case.run` returns, from PyTorch in the type of the inputs."""
    tensors = {
        name: _tensor(value) if isinstance(value, np.ndarray) else value for name, value in inputs.items()
    }
    sources = [name for name in case.gradients if tensors[name] is not None]
    for name in sources:
        tensors[name].requires_grad_(True)
    results = TWINS[case.name](tensors)
    pairs = [(results[name], tensors[f"d{name}"]) for name in case.outputs]
    if pairs:
        outputs, cotangents = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(outputs, [tensors[name] for name in sources], cotangents)
        for name, gradient in zip(sources, gradients, strict=True):
            results[f"d{name}"] = gradient + tensors.get(f"d{name}_before", 0.0)
    return {name: _numpy(value) for name, value in results.items()}


def _tensor(value: Any) -> Any:
    if value.dtype.name == "bfloat16":  # which PyTorch does not take from numpy
        return torch.from_numpy(value.astype(np.float32)).bfloat16()
    return torch.from_numpy(value.copy())


def _numpy(value: Any) -> Any:
    value = torch.as_tensor(value).detach()
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _linear(t: Tensors) -> Tensors:
    y = F.linear(t["x"], t["w"], t["bias"])
    return {"y": y if t["residual"] is None else y + t["residual"]}


def _matmul(t: Tensors) -> Tensors:
    a = t["a"].T if t["transpose_a"] else t["a"]
    b = t["b"].T if t["transpose_b"] else t["b"]
    return {"out": a @ b + t.get("out_before", 0.0)}


def _symmetric_product(t: Tensors) -> Tensors:
    x = t["x"].T if t["transpose"] else t["x"]
    return {"out": t["scale"] * (x @ x.T) + t["shift"] * torch.eye(len(x), dtype=x.dtype)}


def _quantized(t: Tensors) -> Tensors:
    x, residual = t["x"], 0.0 if t["residual"] is None else t["residual"]
    w = torch.from_numpy(values_of(t["w"].numpy(), t["format"], x.shape[1])).to(x.dtype)
    results = {"y": F.linear(x, w, t["bias"]) + residual, "values": w, "rows": w[t["ids"].long()]}
    if t["format"] not in NOT_INTEGERS:
        groups = x.detach().float().reshape(len(x), x.shape[1] // 32, 32)
        largest = groups.abs().amax(dim=2, keepdim=True)
        rounded = torch.round(groups * (127 / largest)) * (largest / 127).to(x.dtype)
        results["y8"] = F.linear(rounded.reshape(x.shape).to(x.dtype), w, t["bias"]) + residual
    return results


def _embedding(t: Tensors) -> Tensors:
    return {"y": F.embedding(t["ids"], t["table"])}


def _rms_norm(t: Tensors) -> Tensors:
    x = t["x"]
    y = F.rms_norm(x, x.shape[-1:], t["w"] + t.get("offset", 0.0), t["eps"])
    return {"y": y + t.get("residual", 0), "rstd": torch.rsqrt(x.square().mean(-1) + t["eps"])}


def _layer_norm(t: Tensors) -> Tensors:
    y, mean, rstd = torch.native_layer_norm(t["x"], t["x"].shape[-1:], t["w"], t["b"], t["eps"])
    return {"y": y + t.get("residual", 0), "mean": mean[..., 0], "rstd": rstd[..., 0]}


def _rope(t: Tensors) -> Tensors:
    x, positions = t["x"], t["positions"].long()
    cos = torch.cat([t["cos"], t["cos"]], dim=-1)[positions][:, None]
    sin = torch.cat([t["sin"], t["sin"]], dim=-1)[positions][:, None]
    low, high = x.chunk(2, dim=-1)
    return {"y": x * cos + torch.cat([-high, low], dim=-1) * sin}


def _attention(t: Tensors) -> Tensors:
    q, k, v = (t[name].transpose(1, 2) for name in ("q", "k", "v"))
    (h, s), (heads, keys) = q.shape[1:3], k.shape[1:3]
    key, query = torch.arange(keys), torch.arange(keys - s, keys)[:, None]
    mask = (key <= query).expand(q.shape[0], 1, s, keys)
    if t["window"]:
        mask = mask & (query - key < t["window"])
    if t["first"] is not None:
        mask = mask & (key >= t["first"][:, None, :, None])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=t["scale"], enable_gqa=True)
    scores = q @ k.repeat_interleave(h // heads, dim=1).transpose(2, 3) * t["scale"]
    lse = scores.masked_fill(~mask, -torch.inf).logsumexp(-1)
    o = out.transpose(1, 2)
    return {"o": o, "lse": lse, "delta": (t["do"] * o).sum(-1).transpose(1, 2)}


def _attention_options(t: Tensors) -> Tensors:
    q, k, v = (t[name].transpose(1, 2) for name in ("q", "k", "v"))
    (h, s), (heads, keys) = q.shape[1:3], k.shape[1:3]
    k, v = (each.repeat_interleave(h // heads, dim=1) for each in (k, v))
    key, query = torch.arange(keys), torch.arange(keys - s, keys)[:, None]
    mask = (key <= query if t["causal"] else key >= 0).expand(q.shape[0], h, s, keys)
    if t["window"]:
        mask = mask & ((query - key).abs() < t["window"])
    if t["first"] is not None:
        mask = mask & (key >= t["first"][:, None, :, None]) & (key < t["end"][:, None, :, None])
    scores = q @ k.transpose(2, 3) * t["scale"]
    if t["softcap"]:
        scores = t["softcap"] * torch.tanh(scores / t["softcap"])
    if t["bias"] is not None:
        mask = mask & (t["bias"] > -torch.inf)
        scores = scores + torch.where(t["bias"] > -torch.inf, t["bias"], 0.0)
    # A row of no score at all is given one, whose probability is dropped like a sink's.
    sink = torch.where(mask.any(-1, keepdim=True), -torch.inf, torch.zeros((), dtype=q.dtype))
    lonely = sink == 0.0
    if t["sinks"] is not None:
        sink = t["sinks"][None, :, None, None].expand(*scores.shape[:3], 1)
        lonely = torch.zeros_like(lonely)
    every = torch.cat([scores.masked_fill(~mask, -torch.inf), sink], dim=-1)
    o = (every.softmax(-1)[..., :-1] @ v).transpose(1, 2)
    lse = torch.where(lonely, -torch.inf, every.logsumexp(-1, keepdim=True))[..., 0]
    return {"o": o, "lse": lse, "delta": (t["do"] * o).sum(-1).transpose(1, 2)}


def _attention_merge(t: Tensors) -> Tensors:
    lse = torch.logaddexp(t["lse_before"], t["part_lse"])
    weight = (t["lse_before"] - torch.where(lse == -torch.inf, 0.0, lse)).exp().transpose(1, 2)[..., None]
    other = (t["part_lse"] - torch.where(lse == -torch.inf, 0.0, lse)).exp().transpose(1, 2)[..., None]
    return {"o": weight * t["o_before"] + other * t["part"], "lse": lse}


def _attention_cached(t: Tensors) -> Tensors:
    keys, values = (t[name].to(t["q"].dtype, copy=True) for name in ("keys_before", "values_before"))
    p, heads = keys.shape[1:3]
    group = t["q"].shape[1] // heads
    outputs = []
    for at, position in enumerate(t["lengths"].tolist()):
        keys[at, position % p], values[at, position % p] = t["k"][at], t["v"][at]
        most = min(t["window"], p) if t["window"] else p
        rows = [i % p for i in range(max(0, position + 1 - most), position + 1)]
        seen, summed = (x[at, rows].repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
        scores = (seen @ t["q"][at, :, :, None])[..., 0] * t["scale"]
        if t["softcap"]:
            scores = t["softcap"] * torch.tanh(scores / t["softcap"])
        outputs.append((scores.softmax(-1)[:, None] @ summed)[:, 0])
    o = torch.stack(outputs) if outputs else t["q"]
    return {"o": o, "keys": keys, "values": values}


def _swiglu(t: Tensors) -> Tensors:
    gate, up = t["gate_up"].chunk(2, dim=-1)
    y = F.silu(gate) * up
    return {"y": y} | ({"y_again": y} if t["recompute"] else {})


def _geglu(t: Tensors) -> Tensors:
    gate, up = t["gate_up"].chunk(2, dim=-1)
    y = F.gelu(gate, approximate="tanh") * up
    return {"y": y} | ({"y_again": y} if t["recompute"] else {})


def _gelu(t: Tensors) -> Tensors:
    return {"y": F.gelu(t["x"], approximate="tanh" if t["tanh"] else "none")}


def _add(t: Tensors) -> Tensors:
    return {"out": (t["b"] if t.get("twice") else t["a"]) + t.get("alpha", 1.0) * t["b"]}


def _softcap(t: Tensors) -> Tensors:
    return {"y": t["cap"] * torch.tanh(t["x"] / t["cap"])}


def _dropout(t: Tensors) -> Tensors:
    """The mask in int64, whose products of 32 bits do not overflow once the factors are split."""
    x, low = t["x"], 0xFFFFFFFF
    columns = torch.arange(t["first_column"], t["first_column"] + x.shape[1], dtype=torch.int64)
    h = (t["keys"].long()[:, None] + _times(columns & low, 0x9E3779B9)) & low
    h = _times(h ^ (h >> 16), 0x7FEB352D)
    h = _times(h ^ (h >> 15), 0x846CA68B)
    h = h ^ (h >> 16)
    return {"y": torch.where(h >= round(t["p"] * 2**32), x / (1 - t["p"]), torch.zeros_like(x))}


def _times(a: Any, factor: int) -> Any:
    """a · factor modulo 2^32, for a below 2^32."""
    high, low = factor >> 16, factor & 0xFFFF
    return ((((a * high) & 0xFFFF) << 16) + a * low) & 0xFFFFFFFF


def _cross_entropy(t: Tensors) -> Tensors:
    logits, targets, rest = t["logits"], t["targets"].long(), t["rest"]
    v = logits.shape[1]
    column = targets - t["vocab_start"]
    inside = (column >= 0) & (column < v)
    # The other slices of the vocabulary enter as one more class, whose logit is their log-sum-exp.
    classes = torch.where(inside, column, v)
    ignored = targets == t["ignore_index"]
    classes = torch.where(ignored, -100, classes)
    whole = torch.cat([logits, rest[:, None]], dim=1)
    loss = F.cross_entropy(whole, classes, reduction="none", ignore_index=-100)
    logit = logits.gather(1, column.clamp(0, v - 1)[:, None])[:, 0]
    row_max = logits.amax(1)
    return {
        "row_max": row_max,
        "row_sum": (logits - row_max[:, None]).exp().sum(1),
        "target_logit": torch.where(inside, logit, 0.0),
        "lse": whole.logsumexp(1),
        "loss": loss + torch.where(inside | ignored, 0.0, rest),
    }


def _capped_cross_entropy(t: Tensors) -> Tensors:
    logits = t["cap"] * torch.tanh(t["x"] / t["cap"])
    return _cross_entropy(t | {"logits": logits}) | {"logits": logits}


def _adamw(t: Tensors) -> Tensors:
    param = torch.nn.Parameter(t["param"].clone())
    betas = (t["beta1"], t["beta2"])
    optimizer = torch.optim.AdamW([param], t["lr"], betas, t["eps"], t["weight_decay"])
    _steps(optimizer, param, t)
    state = optimizer.state[param]
    results = {"param": param, "m": state["exp_avg"], "v": state["exp_avg_sq"]}
    if t["fused"]:
        results["copy"] = param.detach().to(torch.bfloat16).to(param.dtype)
    return results


def _adamw_8bit(t: Tensors) -> Tensors:
    """By the maps' numbers alone: the nearest one by its distance; a second moment above 0 is never 0."""
    n = t["param"].numel()
    maps = {"m": torch.from_numpy(SIGNED.values.copy()), "v": torch.from_numpy(UNSIGNED.values.copy())}
    grad = t["grad"] * t["grad_scale"]
    moments = {}
    for name, beta, new in (("m", t["beta1"], grad), ("v", t["beta2"], grad * grad)):
        scale = t[f"{name}_scale"].repeat_interleave(256)[:n]
        moments[name] = beta * maps[name].to(scale)[t[name].long()] * scale + (1 - beta) * new
    denominator = (moments["v"] / (1 - t["beta2"] ** t["step"])).sqrt() + t["eps"]
    rate = t["lr"] / (1 - t["beta1"] ** t["step"])
    param = t["param"] * (1 - t["lr"] * t["weight_decay"]) - rate * moments["m"] / denominator
    results = {"param": param}
    for name, values in moments.items():
        scales = [block[block.abs().argmax()] for block in values.split(256) if n]
        each = torch.tensor(scales, dtype=values.dtype)
        distance = (values[:, None] / each.repeat_interleave(256)[:n, None] - maps[name].to(values)).abs()
        if name == "v":
            distance[values > 0, 0] = torch.inf
        results |= {name: distance.argmin(dim=1).to(torch.uint8), f"{name}_scale": each}
    if t["fused"]:
        results["copy"] = param.to(torch.bfloat16).to(param.dtype)
    return results


def _sgd(t: Tensors) -> Tensors:
    param = torch.nn.Parameter(t["param"].clone())
    optimizer = torch.optim.SGD(
        [param], t["lr"], t["momentum"], weight_decay=t["weight_decay"], nesterov=t["nesterov"]
    )
    results = {"param": param}
    _steps(optimizer, param, t)
    buffer = optimizer.state[param].get("momentum_buffer")
    # Without momentum PyTorch keeps no buffer; there the parameter alone is compared.
    return results if buffer is None else results | {"momentum_buffer": buffer}


def _steps(optimizer: torch.optim.Optimizer, param: Any, t: Tensors) -> None:
    for grad in t["grads"]:
        param.grad = grad * t["grad_scale"]
        optimizer.step()


def _sum_of_squares(t: Tensors) -> Tensors:
    return {"sum": t["x"].double().square().sum()}


def _cast(t: Tensors) -> Tensors:
    src = t["src"].float()
    narrow = src.bfloat16()
    return {"narrow": narrow, "wide": narrow.float(), "copy": src, "nothing": torch.zeros_like(src)}


TWINS: dict[str, Callable[[Tensors], Tensors]] = {
    "linear": _linear,
    "matmul": _matmul,
    "symmetric_product": _symmetric_product,
    "quantized": _quantized,
    "embedding": _embedding,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "attention": _attention,
    "attention_options": _attention_options,
    "attention_merge": _attention_merge,
    "attention_cached": _attention_cached,
    "swiglu": _swiglu,
    "geglu": _geglu,
    "gelu": _gelu,
    "add": _add,
    "softcap": _softcap,
    "dropout": _dropout,
    "cross_entropy": _cross_entropy,
    "capped_cross_entropy": _capped_cross_entropy,
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "sgd": _sgd,
    "sum_of_squares": _sum_of_squares,
    "cast": _cast,
}
