"""The ops of a kernel set, for type checkers. Made of ops.py by ops_text.py; do not edit."""

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

class Ops:
    def linear_forward(
        self,
        y: Array,
        x: Array,
        w: Array,
        bias: Array | None = None,
        residual: Array | None = None,
    ) -> None: ...
    def linear_backward_input(self, dx: Array, dy: Array, w: Array, accumulate: bool = False) -> None: ...
    def linear_backward_weight(
        self,
        dw: Array,
        dbias: Array | None,
        dy: Array,
        x: Array,
        accumulate: bool = True,
    ) -> None: ...
    def matmul(
        self,
        out: Array,
        a: Array,
        b: Array,
        transpose_a: bool = False,
        transpose_b: bool = False,
        accumulate: bool = False,
    ) -> None: ...
    def symmetric_product(
        self,
        out: Array,
        x: Array,
        transpose: bool = False,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None: ...
    def quantized_forward(
        self,
        y: Array,
        x: Array,
        w: Array,
        format: str,
        bias: Array | None = None,
        residual: Array | None = None,
    ) -> None: ...
    def quantized_forward_q8(
        self,
        y: Array,
        x: Array,
        w: Array,
        format: str,
        bias: Array | None = None,
        residual: Array | None = None,
    ) -> None: ...
    def quantized_backward_input(
        self,
        dx: Array,
        dy: Array,
        w: Array,
        format: str,
        accumulate: bool = False,
    ) -> None: ...
    def dequantize(self, y: Array, w: Array, format: str, ids: Array | None = None) -> None: ...
    def embedding_forward(self, y: Array, ids: Array, table: Array) -> None: ...
    def embedding_backward(self, dtable: Array, dy: Array, ids: Array) -> None: ...
    def rms_norm_forward(
        self,
        y: Array,
        rstd: Array,
        x: Array,
        w: Array,
        eps: float,
        residual: Array | None = None,
        offset: float = 0.0,
    ) -> None: ...
    def rms_norm_backward(
        self,
        dx: Array,
        dw: Array,
        dy: Array,
        x: Array,
        w: Array,
        rstd: Array,
        accumulate: bool = False,
        offset: float = 0.0,
    ) -> None: ...
    def layer_norm_forward(
        self,
        y: Array,
        mean: Array,
        rstd: Array,
        x: Array,
        w: Array,
        b: Array,
        eps: float,
        residual: Array | None = None,
    ) -> None: ...
    def layer_norm_backward(
        self,
        dx: Array,
        dw: Array,
        db: Array,
        dy: Array,
        x: Array,
        w: Array,
        mean: Array,
        rstd: Array,
        accumulate: bool = False,
    ) -> None: ...
    def rope_forward(self, y: Array, x: Array, cos: Array, sin: Array, positions: Array) -> None: ...
    def rope_backward(self, dx: Array, dy: Array, cos: Array, sin: Array, positions: Array) -> None: ...
    def attention_forward(
        self,
        o: Array,
        lse: Array,
        q: Array,
        k: Array,
        v: Array,
        scale: float,
        window: int = 0,
        first: Array | None = None,
        end: Array | None = None,
        causal: bool = True,
        softcap: float = 0.0,
        sinks: Array | None = None,
        bias: Array | None = None,
    ) -> None: ...
    def attention_backward(
        self,
        dq: Array,
        dk: Array,
        dv: Array,
        delta: Array,
        do: Array,
        q: Array,
        k: Array,
        v: Array,
        o: Array,
        lse: Array,
        scale: float,
        window: int = 0,
        first: Array | None = None,
        end: Array | None = None,
        causal: bool = True,
        softcap: float = 0.0,
        sinks: Array | None = None,
        bias: Array | None = None,
        dsinks: Array | None = None,
        dbias: Array | None = None,
    ) -> None: ...
    def attention_merge(self, o: Array, lse: Array, part: Array, part_lse: Array) -> None: ...
    def attention_cached(
        self,
        o: Array,
        keys: Array,
        values: Array,
        q: Array,
        k: Array,
        v: Array,
        lengths: Array,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
    ) -> None: ...
    def swiglu_forward(self, y: Array, gate_up: Array) -> None: ...
    def swiglu_backward(self, dgate_up: Array, dy: Array, gate_up: Array, y: Array | None = None) -> None: ...
    def geglu_forward(self, y: Array, gate_up: Array) -> None: ...
    def geglu_backward(self, dgate_up: Array, dy: Array, gate_up: Array, y: Array | None = None) -> None: ...
    def gelu_forward(self, y: Array, x: Array, tanh: bool) -> None: ...
    def gelu_backward(self, dx: Array, dy: Array, x: Array, tanh: bool) -> None: ...
    def add(self, out: Array, a: Array, b: Array, alpha: float = 1.0) -> None: ...
    def softcap(self, y: Array, x: Array, c: float) -> None: ...
    def dropout(
        self,
        out: Array,
        x: Array,
        keys: Array,
        p: float,
        first_column: int = 0,
        accumulate: bool = False,
    ) -> None: ...
    def cross_entropy_forward(
        self,
        row_max: Array,
        row_sum: Array,
        target_logit: Array,
        logits: Array,
        targets: Array,
        vocab_start: int = 0,
    ) -> None: ...
    def cross_entropy_backward(
        self,
        dlogits: Array,
        logits: Array,
        lse: Array,
        targets: Array,
        ignore_index: int = -100,
        vocab_start: int = 0,
        softcap: float = 0.0,
    ) -> None: ...
    def adamw_step(
        self,
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
    ) -> None: ...
    def adamw_8bit_step(
        self,
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
    ) -> None: ...
    def sgd_step(
        self,
        param: Array,
        momentum_buffer: Array,
        grad: Array,
        lr: float,
        momentum: float,
        weight_decay: float,
        nesterov: bool,
        grad_scale: float,
    ) -> None: ...
    def sum_of_squares(self, x: Array) -> float: ...
    def cast(self, dst: Array, src: Array) -> None: ...
    def zero(self, x: Array) -> None: ...
