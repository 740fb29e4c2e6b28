"""The one runtime of the process: the table of kernels in force, the thread pool, the checks at the door.

The modules of the ops reach it through `capsule` (csrc/runtime.h). What is public is in
cktrain.cython_kernels.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport int64_t
from libc.string cimport strerror

cdef extern from "runtime.h" nogil:
    ctypedef struct ck_caches:
        int64_t l1, l2, l3
    ctypedef void (*ck_kernel)(const void *args, const void *team) noexcept nogil
    ctypedef struct ck_table:
        int abi
        const char *isa
        ck_kernel vector_exp
        ck_kernel vector_exp2
        ck_kernel vector_exp2_degree4
        ck_kernel vector_exp2_degree3
        ck_kernel vector_sigmoid
        ck_kernel vector_sigmoid_degree3
        ck_kernel vector_tanh
        ck_kernel vector_normal_cdf
        ck_kernel vector_normal_cdf_degree3
    ctypedef struct ck_array:
        void *data
        int64_t shape[4]
        int64_t stride[4]
        int dims
    ctypedef struct ck_cast_args:
        void *dst
        const void *src
        int64_t n
    ctypedef struct ck_runtime:
        const ck_table *table
        void *run
        void *take
        void *match
        void *same_dtype
        void *in_range
    const int CK_ABI
    const int CK_SCRATCH_BYTES, CK_SHARED_BYTES
    const char *CK_TABLE_CAPSULE
    const char *CK_RUNTIME_CAPSULE
    const unsigned int CK_IS_F32, CK_IS_WRITTEN
    unsigned int CK_DIMS(int least, int most)

cdef extern from "door_functions.h":
    int ck_door_open() except -1
    int ck_take(ck_array *array, object given, const char *op, const char *name,
                unsigned int allowed) except -1
    int ck_match(const ck_array *array, const char *op, const char *name, int axis, int64_t wanted,
                 const char *source) except -1
    void *ck_same_dtype
    void *ck_in_range

cdef extern from "pool.h" nogil:
    int ck_pool_threads()
    int ck_pool_set_threads(int n)
    const ck_caches *ck_pool_caches()
    unsigned ck_pool_barriers()
    void ck_pool_run(ck_kernel kernel, const void *args, int64_t work)
    ctypedef struct ck_recording:
        int64_t count
    void ck_pool_replay(const ck_recording *recording)
    int ck_recording_add(ck_recording *r, ck_kernel kernel, const void *args, size_t size, int64_t work)
    bint ck_recording_is_last(const ck_recording *r, const void *args)
    void ck_recording_clear(ck_recording *r)

cdef extern from "cpu.h":
    bint ck_cpu_supports(const char *isa)
    int ck_cpu_ask_for_tiles()

cdef extern from "split.h":
    ctypedef struct ck_range:
        int64_t begin, end
    ck_range ck_split(int64_t n, int64_t grain, int parts, int index)
    int ck_deal(int64_t item, int parts)
    int ck_team_size(int64_t work, int threads)

cdef extern from "gemm_plan.h":
    ctypedef struct ck_gemm_plan:
        int64_t rows, cols, depth, item_rows, item_cols
    ctypedef struct ck_gemm_grid:
        int down, across
    ck_gemm_plan ck_plan_gemm(int64_t m, int64_t n, int64_t k, int64_t mr, int64_t nr, int64_t kr, int c_is_f32,
                              int threads, int alone, const ck_caches *caches)
    ck_gemm_grid ck_cut_gemm(int64_t m, int64_t n, int64_t k, int64_t mr, int64_t nr, int64_t kr, int c_is_f32,
                             int threads, const ck_caches *caches)
    ctypedef struct ck_gemm_room:
        int64_t block, sums
        int shared
    int64_t ck_left_bytes(const ck_caches *caches)
    ck_gemm_room ck_room_alone(int threads, const ck_caches *caches)
    const int CK_GEMM_NOTES
    int64_t ck_item_tiles(const ck_gemm_plan *plan, int64_t mr, int64_t begin, int64_t down, int64_t all, int threads)

cdef extern from "attention_plan.h":
    const int CK_BLOCK_TILES
    int64_t ck_attention_tiles(int64_t pairs, int64_t tiles, int64_t most, int threads)
    bint ck_attention_by_pairs(int64_t pairs, int threads)

# Written by setup.py: what was built, and what the compiler did not know.
cdef extern from *:
    """
    #ifndef CK_BUILT
    #define CK_BUILT "generic"
    #define CK_LEFT_OUT ""
    #define CK_COMPILER ""
    #endif
    """
    const char *CK_BUILT
    const char *CK_LEFT_OUT
    const char *CK_COMPILER

ck_door_open()


cdef void run(ck_kernel kernel, const void *args, size_t size, int64_t work) noexcept nogil:
    ck_pool_run(kernel, args, work)


cdef ck_runtime runtime
runtime.table = NULL
runtime.run = <void *> run
runtime.take = <void *> ck_take
runtime.match = <void *> ck_match
runtime.same_dtype = <void *> ck_same_dtype
runtime.in_range = <void *> ck_in_range
capsule = PyCapsule_New(&runtime, CK_RUNTIME_CAPSULE, NULL)

MAX_THREADS = 4096


def built() -> tuple[str, ...]:
    """The instruction sets that were compiled, plainest first."""
    return tuple(CK_BUILT.decode().split())


def left_out() -> tuple[str, ...]:
    """The instruction sets that the compiler did not know."""
    return tuple(CK_LEFT_OUT.decode().split())


def compiler() -> str:
    """The compiler's first line about itself."""
    return CK_COMPILER.decode()


def cpu_supports(isa: str) -> bool:
    """Whether the processor has the instruction set and the operating system saves its registers."""
    return ck_cpu_supports(isa.encode())


def ask_for_tiles() -> str:
    """Asks the operating system for AMX's tiles, on a CPU that has them; "" or why they were refused."""
    cdef int error = ck_cpu_ask_for_tiles()
    return strerror(error).decode() if error else ""


def activate(table) -> None:
    """Put the kernels of a module's `table` capsule in force, for every later call of an op."""
    cdef const ck_table *new = <const ck_table *> PyCapsule_GetPointer(table, CK_TABLE_CAPSULE)
    if new.abi != CK_ABI:
        raise ImportError(
            f"[kernels] the {new.isa.decode()} kernels were built for ABI {new.abi}, not {CK_ABI}. "
            "Build cktrain again."
        )
    runtime.table = new


def active() -> str:
    """The name of the table in force."""
    return runtime.table.isa.decode()


def num_threads() -> int:
    """How many threads a kernel may use, the caller's included."""
    return ck_pool_threads()


def set_num_threads(n: int) -> None:
    """Start a pool of n threads, with a workspace each. ValueError when the system refuses."""
    if not 1 <= n <= MAX_THREADS:
        raise ValueError(
            f"[kernels.set_num_threads] n is {n}, outside [1, {MAX_THREADS}]. "
            "Pass the number of cores to use."
        )
    cdef int count = n, error
    with nogil:
        error = ck_pool_set_threads(count)
    if error:
        raise ValueError(
            f"[kernels.set_num_threads] {n} threads with {CK_SCRATCH_BYTES:,} bytes of workspace "
            f"each: {strerror(error).decode()}. Ask for fewer."
        )


def split(n: int, grain: int, parts: int) -> list[tuple[int, int]]:
    """csrc/split.h's ck_split for every part."""
    ranges = []
    cdef ck_range r
    for index in range(parts):
        r = ck_split(n, grain, parts, index)
        ranges.append((r.begin, r.end))
    return ranges


def deal(items: int, parts: int) -> list[int]:
    """csrc/split.h's ck_deal for items 0, 1, ... items - 1."""
    return [ck_deal(item, parts) for item in range(items)]


def plan_gemm(
    m: int, n: int, k: int, mr: int, nr: int, kr: int, c_is_f32: bool, threads: int, alone: bool, l2: int, l3: int
) -> dict[str, int]:
    """csrc/gemm_plan.h's ck_plan_gemm: the blocks of a matmul, lengths along k in 4-byte units."""
    cdef ck_caches caches = ck_caches(32 << 10, l2, l3)
    return ck_plan_gemm(m, n, k, mr, nr, kr, c_is_f32, threads, alone, &caches)


def cut_gemm(
    m: int, n: int, k: int, mr: int, nr: int, kr: int, c_is_f32: bool, threads: int, l2: int, l3: int
) -> tuple[int, int]:
    """csrc/gemm_plan.h's ck_cut_gemm: parts along m and n for a thread each, or (0, 0) for one product together."""
    cdef ck_caches caches = ck_caches(32 << 10, l2, l3)
    cdef ck_gemm_grid grid = ck_cut_gemm(m, n, k, mr, nr, kr, c_is_f32, threads, &caches)
    return grid.down, grid.across


def gemm_room(threads: int, l2: int) -> dict[str, int]:
    """Bytes of a thread's packed rows of a, and of one of so many threads alone: of its notes, b's block and the sums;
    whether the block is in the team's workspace, as the others are."""
    cdef ck_caches caches = ck_caches(32 << 10, l2, l2)
    own = ck_room_alone(threads, &caches)
    return {"left": ck_left_bytes(&caches), "notes": CK_GEMM_NOTES, **own}


def gemm_items(
    m: int, n: int, k: int, mr: int, nr: int, kr: int, threads: int, l2: int, l3: int
) -> list[tuple[int, int]]:
    """The items of the first block of an fp32 product, in the order in which threads take them: first tile, tiles."""
    cdef ck_caches caches = ck_caches(32 << 10, l2, l3)
    cdef ck_gemm_plan plan = ck_plan_gemm(m, n, k, mr, nr, kr, True, threads, 0, &caches)
    cdef int64_t down = -(-min(m, plan.rows) // mr), every = down * -(-min(n, plan.cols) // plan.item_cols)
    cdef int64_t begin = 0, count = 0
    items = []
    while True:
        count = ck_item_tiles(&plan, mr, begin, down, every, threads)
        if count == 0:
            return items
        items.append((begin, count))
        begin += count


def attention_tiles(pairs: int, tiles: int, threads: int) -> int:
    """csrc/attention_plan.h's ck_attention_tiles: tiles of an item."""
    return ck_attention_tiles(pairs, tiles, CK_BLOCK_TILES, threads)


def attention_by_pairs(pairs: int, threads: int) -> bool:
    """csrc/attention_plan.h's ck_attention_by_pairs: whether backward takes whole heads."""
    return ck_attention_by_pairs(pairs, threads)


def barriers() -> int:
    """How often a team's threads have waited for each other: differences count."""
    return ck_pool_barriers()


def workspace() -> tuple[int, int]:
    """Bytes of a thread's workspace, and of the one that a team shares."""
    return CK_SCRATCH_BYTES, CK_SHARED_BYTES


def caches() -> tuple[int, int, int]:
    """Bytes of the first, second and third level, as matmul's blocks are sized for."""
    cdef const ck_caches *found = ck_pool_caches()
    return found.l1, found.l2, found.l3


def team_size(work: int, threads: int) -> int:
    """csrc/split.h's ck_team_size."""
    return ck_team_size(work, threads)


def vector(name: str, y, x) -> None:
    """y = f(x), float32 (n): a function of csrc/vmath.h behind a door, for the test of its error bound."""
    cdef ck_array ay, ax
    cdef ck_cast_args a
    cdef ck_kernel kernel
    if name == "exp":
        kernel = runtime.table.vector_exp
    elif name == "exp2":
        kernel = runtime.table.vector_exp2
    elif name == "exp2_degree4":
        kernel = runtime.table.vector_exp2_degree4
    elif name == "exp2_degree3":
        kernel = runtime.table.vector_exp2_degree3
    elif name == "sigmoid":
        kernel = runtime.table.vector_sigmoid
    elif name == "sigmoid_degree3":
        kernel = runtime.table.vector_sigmoid_degree3
    elif name == "tanh":
        kernel = runtime.table.vector_tanh
    elif name == "normal_cdf":
        kernel = runtime.table.vector_normal_cdf
    elif name == "normal_cdf_degree3":
        kernel = runtime.table.vector_normal_cdf_degree3
    else:
        raise ValueError(f"[kernels.vector] there is no function {name!r}. Use one of csrc/ops_vmath.h.")
    ck_take(&ay, y, b"vector", b"y", CK_IS_F32 | CK_IS_WRITTEN | CK_DIMS(1, 1))
    ck_take(&ax, x, b"vector", b"x", CK_IS_F32 | CK_DIMS(1, 1))
    ck_match(&ay, b"vector", b"y", 0, ax.shape[0], b"x")
    a = ck_cast_args(ay.data, ax.data, ax.shape[0])
    with nogil:
        ck_pool_run(kernel, &a, a.n)


include "_recording.pxi"

set_num_threads(1)
