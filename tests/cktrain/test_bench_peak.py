"""`bench peak`: what is counted is what is computed and moved, on every instruction set."""

from pathlib import Path

import numpy as np
import pytest

from cktrain import cython_kernels
from cktrain.bench import peak
from cktrain.memory.arena import Arena

COMPILED = [isa for isa in cython_kernels.available() if isa != "reference"]
LANES = {"generic": 4, "avx2": 8, "avx512": 16, "avx512bf16": 16, "amx": 16}


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("threads", [1, 2])
def test_multiply_adds_are_counted_by_lanes_and_threads(isa: str, threads: int) -> None:
    kernels = cython_kernels.load(isa)
    kernels.set_num_threads(threads)
    from cktrain.cython_kernels import peak as loops

    try:
        sums = 24 if LANES[isa] == 16 else 12
        assert loops.multiply_adds(False, 1000) == threads * 1000 * sums * LANES[isa] * 2
        products = 4 if isa == "avx512bf16" else 2
        want = 4 * 16 * 16 * 32 * 2 if isa == "amx" else sums * LANES[isa] * products
        assert loops.multiply_adds(True, 1000) == threads * 1000 * want
    finally:
        kernels.set_num_threads(1)


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("reads", "writes"), [(0, 1), (1, 1), (2, 1), (4, 3), (3, 2)])
def test_stream_writes_the_sum_of_what_it_reads(isa: str, streaming: bool, reads: int, writes: int) -> None:
    kernels = cython_kernels.load(isa)
    kernels.activate()
    from cktrain.cython_kernels import peak as loops

    n = 64 * 37
    arena = Arena("test", 8 * 4 * n)
    inputs = [arena.array((n,), np.dtype(np.float32)) for _ in range(reads)]
    for i, array in enumerate(inputs):
        array[:] = np.arange(n) + i
    out = [arena.array((n,), np.dtype(np.float32)) for _ in range(writes)]
    want = sum(inputs, np.zeros(n, np.float32))
    for array in out:
        array.fill(np.nan)
    assert loops.stream(out, inputs, streaming) == 4 * n * (reads + writes)
    for array in out:
        assert np.array_equal(array, want)


def test_the_reference_is_measured_by_the_best_compiled_set() -> None:
    assert peak.measure_flops(cython_kernels.load("reference"), "fp64", 0.02) > 0


def test_caches_are_added_once(tmp_path: Path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")):
        for index, (level, size, who) in enumerate([(1, "48K", str(cpu)), (3, "32768K", shared)]):
            folder = tmp_path / f"devices/system/cpu/cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            (folder / "level").write_text(f"{level}\n")
            (folder / "size").write_text(f"{size}\n")
            (folder / "shared_cpu_list").write_text(f"{who}\n")
    assert peak.last_level_cache_bytes(str(tmp_path)) == 64 << 20
    assert peak.last_level_cache_bytes(str(tmp_path / "nothing")) == peak.DEFAULT_CACHE_BYTES


def test_bandwidth_of_every_mix_is_a_number() -> None:
    kernels = cython_kernels.load()
    for mix in peak.MIXES:
        assert 0 < peak.measure_bandwidth(kernels, mix, False, cache_bytes=1 << 18, runs=2) < 1e13
