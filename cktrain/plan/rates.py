"""What computing, updating and sending cost here, measured in about a second each; or as the user states it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cktrain.comm.group import Group
from cktrain.config import Config
from cktrain.memory.arena import Arena
from cktrain.memory.param import Param
from cktrain.memory.param_store import ParamStore
from cktrain.nn.numerics import Numerics
from cktrain.optim.newton_schulz import NewtonSchulz, newton_schulz_flops
from cktrain.optim.table import OPTIMIZERS
from cktrain.parallel.ranks import Ranks

PROBE_ROWS, PROBE_COLUMNS = 8192, 1024
LINK_BYTES = 16 << 20
ROUNDS = 5
QUIET = 0.85
"""The part of its best that the register loop reaches on average where nothing else uses the cores; clocks that move take
some hundredths."""


def spread(rates: Sequence[float]) -> float:
    """Half of what lies between the deciles of FLOP/s, as a share of their median."""
    low, *_, high = statistics.quantiles(rates, n=10)
    return (high - low) / 2 / statistics.median(rates)


def disturbance(rates: Sequence[float]) -> str:
    """What to say where other work used the cores, from FLOP/s of the register loop's short runs; "" where none did.

    A run of a millisecond or two has the cores for itself or shares them, so that other work spreads the runs.
    """
    share = statistics.harmonic_mean(rates) / max(rates)
    if share >= QUIET:
        return ""
    return (
        f"OTHER WORK used these cores meanwhile: the register loop ran at {min(rates) / 1e9:,.0f} to "
        f"{max(rates) / 1e9:,.0f} GFLOP/s, {100 * share:.0f} % of its best on average. Idle, it is faster than this plan; "
        "plan again when nothing else runs"
    )


@dataclass(frozen=True)
class Link:
    """What one rank sends at a time through its group's slowest connection."""

    bytes_per_second: float
    latency: float = 0.0
    """Seconds per call."""
    beside: bool = False
    """Whether messages travel beside the computation; where they take the cores' time, each adds its own."""

    def seconds(self, nbytes: float, calls: int = 1) -> float:
        """Time of so many bytes in so many calls; none for nothing."""
        return nbytes / self.bytes_per_second + calls * self.latency if nbytes else 0.0


@dataclass(frozen=True)
class UpdateRates:
    """Seconds per element of the flat parameters."""

    clear: float
    """To set gradients to zero, where the optimizer does not."""
    norm: float
    """To add their squares."""
    update: float
    """The optimizer's."""
    refresh: float
    """To round the bf16 copy from the masters; 0 where there is none."""
    flop: float = 0.0
    """Of a floating-point operation of the optimizer's matrix products (Muon's); 0 where it has none."""


def measure_update(config: Config, numerics: Numerics) -> UpdateRates:
    """Time what a step does per parameter, on 8 million of them."""
    params = ParamStore([Param("probe", (PROBE_ROWS, PROBE_COLUMNS))], numerics)
    params.data[...] = 1e-2
    params.grad[...] = 1e-3
    optimizer = OPTIMIZERS[config.optimizer.name](params, config.optimizer)
    kernels = numerics.kernels

    def per_element(work: Callable[[], object]) -> float:
        work()
        return _median_seconds(work) / params.size

    return UpdateRates(
        clear=per_element(lambda: params.grad.fill(0)),
        norm=per_element(lambda: kernels.sum_of_squares(params.grad)),
        update=per_element(lambda: optimizer.step(1e-3, 1.0, 2)),
        refresh=0.0 if params.compute_weights is None else per_element(params.refresh),
        flop=_newton_schulz_seconds(numerics) if config.optimizer.name == "muon" else 0.0,
    )


def _newton_schulz_seconds(numerics: Numerics) -> float:
    """Seconds per floating-point operation of one iteration."""
    shape = PROBE_COLUMNS, PROBE_COLUMNS
    out = np.zeros(shape, numerics.master_dtype)
    update = np.random.default_rng(0).standard_normal(shape).astype(numerics.master_dtype)
    iteration = NewtonSchulz(numerics, [shape], 1)
    seconds = _median_seconds(lambda: iteration.add(out, update, 1e-3))
    return seconds / newton_schulz_flops(*shape, 1)


def predict_update(bytes_rate: float, flops_rate: float, bf16_copy: bool) -> UpdateRates:
    """The same from a memory bandwidth and a rate of products: AdamW reads 16 bytes and writes 16, and 2 more with a bf16
    copy."""
    copy = 2 if bf16_copy else 0
    per_byte = 1 / bytes_rate
    return UpdateRates(
        4 * per_byte,
        4 * per_byte,
        (32 + copy) * per_byte,
        (4 + copy) * per_byte if copy else 0.0,
        1 / flops_rate,
    )


def measure_links(ranks: Ranks, beside: bool = False) -> dict[str, Link]:
    """The links of the data, pipeline and tensor groups, measured on all ranks at the same time. Collective."""
    arena = Arena("links", LINK_BYTES, ranks.world.allocate).array((LINK_BYTES // 4,), np.dtype(np.float32))
    links = {}
    for name, group in ranks.groups.items():
        ranks.world.barrier()
        links[name] = _measure_link(group, arena, beside)
    return {name: _slowest(ranks.world, link) for name, link in links.items()}


def _measure_link(group: Group, arena: np.ndarray, beside: bool) -> Link:
    if group.size == 1:
        return Link(float("inf"))
    part = arena.size // group.size
    whole = arena[: part * group.size]
    own = whole[group.rank * part : (group.rank + 1) * part]
    small = np.zeros(256, np.float32)

    def both_ways() -> None:
        group.reduce_scatter(own, whole)
        group.all_gather(whole, own)

    both_ways()
    latency = _median_seconds(lambda: group.all_reduce(small))
    sent = 2 * whole.nbytes * (group.size - 1) / group.size
    seconds = max(_median_seconds(both_ways) - 2 * latency, 1e-9)
    return Link(sent / seconds, latency, beside)


def _slowest(world: Group, link: Link) -> Link:
    told = [
        text.decode().split()
        for text in world.all_gather_bytes(f"{link.bytes_per_second} {link.latency}".encode())
    ]
    return Link(min(float(rate) for rate, _ in told), max(float(wait) for _, wait in told), link.beside)


def _median_seconds(work: Callable[[], object]) -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
