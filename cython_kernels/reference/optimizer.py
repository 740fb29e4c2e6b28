"""Optimizer steps on flat f32 arrays, and the sum of squares behind the gradient norm."""

from __future__ import annotations

import math

import numpy as np

from cktrain.cython_kernels.dynamic_map import BLOCK, SIGNED, UNSIGNED

from ._arrays import Array, Door, widen

_SQUARES_BLOCK = 1 << 20  # elements summed at a time: bounds the fp64 copy


def adamw_step(
    param: Array,
    m: Array,
    v: Array,
    grad: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copy: Array | None = None,
) -> None:
    """Update param, m and v f32 (n) with grad f32 (n) · grad_scale: AdamW, Loshchilov & Hutter 2019.

    The decay is decoupled (param shrinks by lr · weight_decay) and `step` counts from 1. `copy`, bf16 (n), receives
    the new parameters.
    """
    door = Door("adamw_step", param)
    (n,) = door.dims("param", param, 1)
    door.f32(param=(param, (n,)), m=(m, (n,)), v=(v, (n,)), grad=(grad, (n,)))
    if step < 1:
        door.refuse("step", f"is {step}, steps count from 1")
    scaled = grad * grad_scale
    m *= beta1
    m += (1.0 - beta1) * scaled
    v *= beta2
    v += (1.0 - beta2) * scaled * scaled
    param *= 1.0 - lr * weight_decay
    denominator = np.sqrt(v) / math.sqrt(1.0 - beta2**step) + eps
    param -= (lr / (1.0 - beta1**step)) * m / denominator
    if copy is not None:
        if copy.shape != (n,) or copy.dtype.name != "bfloat16":
            door.refuse(
                "copy", f"has shape {copy.shape} and type {copy.dtype}, ({n},) and bfloat16 are needed"
            )
        copy[...] = param


def adamw_8bit_step(
    param: Array,
    m: Array,
    m_scale: Array,
    v: Array,
    v_scale: Array,
    grad: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    copy: Array | None = None,
) -> None:
    """Update param f32 (n), and moments m, v uint8 (n) with their scales f32 (ceil(n / 256)), as `adamw_step` does.

    The moments are numbers of the dynamic maps (Dettmers et al. 2022; dynamic_map.py): they are read, updated, used for
    param, and rounded to bytes again.
    """
    door = Door("adamw_8bit_step", param)
    (n,) = door.dims("param", param, 1)
    blocks = -(-n // BLOCK)
    door.f32(param=(param, (n,)), m_scale=(m_scale, (blocks,)), v_scale=(v_scale, (blocks,)))
    door.bytes(m=(m, (n,)), v=(v, (n,)))
    first, second = SIGNED.numbers_of(m, m_scale), UNSIGNED.numbers_of(v, v_scale)
    adamw_step(param, first, second, grad, lr, beta1, beta2, eps, weight_decay, step, grad_scale, copy)
    SIGNED.encode(m, m_scale, first)
    UNSIGNED.encode(v, v_scale, second)


def sgd_step(
    param: Array,
    momentum_buffer: Array,
    grad: Array,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    grad_scale: float,
) -> None:
    """Update param and momentum_buffer f32 (n) with grad f32 (n) · grad_scale, as torch.optim.SGD does.

    The decay is coupled (weight_decay · param is added to the gradient); the buffer starts at zero.
    """
    door = Door("sgd_step", param)
    (n,) = door.dims("param", param, 1)
    door.f32(param=(param, (n,)), momentum_buffer=(momentum_buffer, (n,)), grad=(grad, (n,)))
    direction = grad * grad_scale + weight_decay * param
    momentum_buffer *= momentum
    momentum_buffer += direction
    param -= lr * (direction + momentum * momentum_buffer if nesterov else momentum_buffer)


def sum_of_squares(x: Array) -> float:
    """Return the sum of x², of any shape, in fp64 in a fixed order. Inf or NaN in x give Inf or NaN."""
    flat = x.reshape(-1)
    Door("sum_of_squares", x)
    total = 0.0
    with np.errstate(over="ignore"):
        for start in range(0, flat.size, _SQUARES_BLOCK):
            total += float(np.square(widen(flat[start : start + _SQUARES_BLOCK]), dtype=np.float64).sum())
    return total
