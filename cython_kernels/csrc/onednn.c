/* bf16 products by oneDNN, for processors with AMX, whose tiles the project's own kernels do not use.
 *
 * libdnnl is not needed to build: it is opened at run time, and the few functions of its C API (oneDNN 3, "Developer
 * Guide and Reference") are declared here.
 *
 * oneDNN divides a product among OpenMP's threads, as many as the team has. So that they and the pool's never compete
 * for a core, the team comes together first, its first thread makes the call, and the others sleep, not spin, until it
 * is done; OpenMP's threads sleep in between (OMP_WAIT_POLICY=passive, which whoever opens the library sets for it).
 *
 * A primitive is compiled at the first call of a shape and kept. What the library has no fast implementation of, and
 * up to CK_ONEDNN_ROWS rows, which the own kernels multiply without packing, is left to the own kernels. */
#define _GNU_SOURCE
#include "onednn.h"
#include "split.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CK_ONEDNN_ROWS 16

typedef struct {
    int major, minor, patch;
    const char *hash;
    unsigned cpu_runtime, gpu_runtime;
} dnnl_version_t;
typedef int64_t dnnl_dims_t[12];
typedef struct { int arg; void *memory; } dnnl_exec_arg_t;

enum { DNNL_OPENMP = 2, DNNL_TBB = 4, DNNL_SYCL = 512 };  /* cpu_runtime */
enum { DNNL_CPU = 1, DNNL_IN_ORDER = 1, DNNL_SCRATCHPAD_USER = 1, DNNL_BF16 = 2, DNNL_F32 = 3 };
enum { DNNL_QUERY_IMPL_INFO = 8, DNNL_QUERY_SCRATCHPAD = 136 };
enum { DNNL_SRC = 1, DNNL_DST = 17, DNNL_WEIGHTS = 33, DNNL_BIAS = 41, DNNL_SCRATCHPAD = 80 };
#define DNNL_AMX 0xfefu  /* dnnl_cpu_isa_avx512_core_amx: int8 and bf16 tiles */

/* result, name, arguments. A dnnl_*_t is an opaque pointer; a result of int is a status, 0 for success. */
#define CK_ONEDNN_API(X)                                                                                    \
    X(const dnnl_version_t *, dnnl_version, (void))                                                         \
    X(unsigned, dnnl_get_effective_cpu_isa, (void))                                                         \
    X(int, dnnl_engine_create, (void **, int, size_t))                                                      \
    X(int, dnnl_stream_create, (void **, void *, unsigned))                                                 \
    X(int, dnnl_memory_desc_create_with_strides, (void **, int, const dnnl_dims_t, int, const dnnl_dims_t)) \
    X(size_t, dnnl_memory_desc_get_size, (const void *))                                                    \
    X(int, dnnl_memory_create, (void **, const void *, void *, void *))                                     \
    X(int, dnnl_memory_destroy, (void *))                                                                   \
    X(int, dnnl_post_ops_create, (void **))                                                                 \
    X(int, dnnl_post_ops_append_sum, (void *, float, int32_t, int))                                         \
    X(int, dnnl_post_ops_destroy, (void *))                                                                 \
    X(int, dnnl_primitive_attr_create, (void **))                                                           \
    X(int, dnnl_primitive_attr_set_scratchpad_mode, (void *, int))                                          \
    X(int, dnnl_primitive_attr_set_post_ops, (void *, const void *))                                        \
    X(int, dnnl_primitive_attr_destroy, (void *))                                                           \
    X(int, dnnl_matmul_primitive_desc_create,                                                               \
      (void **, void *, const void *, const void *, const void *, const void *, const void *))              \
    X(int, dnnl_primitive_desc_query, (const void *, int, int, void *))                                     \
    X(const void *, dnnl_primitive_desc_query_md, (const void *, int, int))                                 \
    X(int, dnnl_primitive_desc_destroy, (void *))                                                           \
    X(int, dnnl_primitive_create, (void **, const void *))                                                  \
    X(int, dnnl_primitive_execute, (const void *, void *, int, const dnnl_exec_arg_t *))                    \
    X(int, omp_get_max_threads, (void))                                                                     \
    X(void, omp_set_num_threads, (int))

/* What a primitive is made for. All of 8 bytes, so that it can be compared as bytes. */
typedef struct { int64_t m, n, k, a_row, a_col, b_row, b_col, c_row, c_is_f32, has_bias, adds, threads; } shape_key;

enum { SRC, WEIGHTS, DST, BIAS, SCRATCHPAD, ARGUMENTS };
static const int argument_numbers[ARGUMENTS] = {DNNL_SRC, DNNL_WEIGHTS, DNNL_DST, DNNL_BIAS, DNNL_SCRATCHPAD};

typedef struct product {
    shape_key key;
    void *primitive;                /* NULL: left to the own kernels */
    void *desc[ARGUMENTS];          /* of memory; NULL where there is none */
    struct product *next;
} product;

#define BUCKETS 256
#define MOST_PRODUCTS 4096          /* each holds some 50 KB of code; shapes beyond are the own kernels' */

typedef struct {
#define CK_DECLARE(result, name, arguments) result (*name) arguments;
    CK_ONEDNN_API(CK_DECLARE)
#undef CK_DECLARE
} library_api;

static library_api lib;

static struct {
    char path[4096];
    void *engine, *stream;          /* engine: NULL until a library is open */
    ck_onednn_facts facts;
    const ck_table *own;
    ck_table table;
    pthread_mutex_t lock;           /* of the products */
    product *products[BUCKETS];
    int64_t count, refused;
    pthread_mutex_t at_rest;
    pthread_cond_t done;
    unsigned finished;              /* calls of the library that have ended */
} state = {.lock = PTHREAD_MUTEX_INITIALIZER, .at_rest = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

/* ------------------------------------------------------------------------------------------ opening the library */

/* Fill `found` from the library; NULL, or what is wrong with it, of which `detail` is a part. */
static const char *read_api(void *handle, library_api *found, char *detail, size_t size) {
#define CK_FIND(result, name, arguments)                      \
    *(void **)&found->name = dlsym(handle, #name);            \
    if (found->name == NULL) {                                \
        snprintf(detail, size, "%s", #name);                  \
        return "it has no %s";                                \
    }
    CK_FIND(const dnnl_version_t *, dnnl_version, (void))
    const dnnl_version_t *v = found->dnnl_version();
    snprintf(detail, size, "%d.%d.%d", v->major, v->minor, v->patch);
    if (v->major != 3) return "it is oneDNN %s, and 3.x is needed";
    snprintf(detail, size, "%s", v->cpu_runtime == DNNL_TBB ? "TBB" : v->cpu_runtime == DNNL_SYCL ? "SYCL" : "others");
    if (v->cpu_runtime != DNNL_OPENMP) return "it is built for %s, and a build for OpenMP is needed";
    CK_ONEDNN_API(CK_FIND)
#undef CK_FIND
    return NULL;
}

int ck_onednn_open(const char *path, ck_onednn_facts *facts, char *problem, int64_t size) {
    if (!state.engine || strcmp(path, state.path) != 0) {
        void *engine = NULL, *stream = NULL, *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) {
            snprintf(problem, (size_t)size, "%s", dlerror());
            return -1;
        }
        library_api found = {0};
        char detail[64] = "";
        const char *wrong = read_api(handle, &found, detail, sizeof detail);
        if (!wrong && state.engine) wrong = "another libdnnl is in use already";
        if (!wrong && (strlen(path) >= sizeof state.path || found.dnnl_engine_create(&engine, DNNL_CPU, 0)
                       || found.dnnl_stream_create(&stream, engine, DNNL_IN_ORDER)))
            wrong = "it makes no engine for this CPU";
        if (wrong) {
            snprintf(problem, (size_t)size, wrong, detail);
            dlclose(handle);
            return -1;
        }
        const dnnl_version_t *v = found.dnnl_version();
        lib = found;
        lib.omp_get_max_threads();  /* an OpenMP that reads its variables at the first call does so now */
        state.facts = (ck_onednn_facts){v->major, v->minor, v->patch,
                                        (lib.dnnl_get_effective_cpu_isa() & DNNL_AMX) == DNNL_AMX};
        state.stream = stream;
        state.engine = engine;
        strcpy(state.path, path);
    }
    *facts = state.facts;
    return 0;
}

/* -------------------------------------------------------------------------------------------------- primitives */

static int describe(void **desc, int64_t rows, int64_t cols, int type, int64_t row, int64_t col) {
    const dnnl_dims_t dims = {rows, cols}, strides = {row, col};
    return lib.dnnl_memory_desc_create_with_strides(desc, 2, dims, type, strides);
}

/* p->primitive and p->desc for p->key; the former stays NULL where the library has nothing fast. */
static void compile(product *p) {
    const shape_key *s = &p->key;
    void *attr = NULL, *post_ops = NULL, *desc = NULL, *primitive = NULL;
    const void *scratchpad;
    const char *implementation = "";
    const int c_type = s->c_is_f32 ? DNNL_F32 : DNNL_BF16;
    int failed = describe(&p->desc[SRC], s->m, s->k, DNNL_BF16, s->a_row, s->a_col)
              || describe(&p->desc[WEIGHTS], s->k, s->n, DNNL_BF16, s->b_row, s->b_col)
              || describe(&p->desc[DST], s->m, s->n, c_type, s->c_row, 1)
              || (s->has_bias && describe(&p->desc[BIAS], 1, s->n, DNNL_F32, s->n, 1))
              || lib.dnnl_primitive_attr_create(&attr)
              || lib.dnnl_primitive_attr_set_scratchpad_mode(attr, DNNL_SCRATCHPAD_USER)
              || lib.dnnl_post_ops_create(&post_ops)
              || (s->adds && lib.dnnl_post_ops_append_sum(post_ops, 1.0f, 0, c_type))
              || lib.dnnl_primitive_attr_set_post_ops(attr, post_ops)
              || lib.dnnl_matmul_primitive_desc_create(&desc, state.engine, p->desc[SRC], p->desc[WEIGHTS],
                                                       p->desc[BIAS], p->desc[DST], attr)
              || lib.dnnl_primitive_desc_query(desc, DNNL_QUERY_IMPL_INFO, 0, &implementation)
              || strncmp(implementation, "brg", 3) != 0;  /* else plain loops, or copies of everything */
    if (!failed) {
        scratchpad = lib.dnnl_primitive_desc_query_md(desc, DNNL_QUERY_SCRATCHPAD, 0);
        const size_t bytes = lib.dnnl_memory_desc_get_size(scratchpad);
        failed = (int64_t)bytes > s->threads * CK_SCRATCH_BYTES || lib.dnnl_primitive_create(&primitive, desc);
        if (!failed && bytes) {
            const int64_t n = (int64_t)ck_ceil_div((int64_t)bytes, 4);
            failed = describe(&p->desc[SCRATCHPAD], 1, n, DNNL_F32, n, 1);
        }
    }
    if (post_ops) lib.dnnl_post_ops_destroy(post_ops);
    if (attr) lib.dnnl_primitive_attr_destroy(attr);
    if (desc) lib.dnnl_primitive_desc_destroy(desc);
    if (!failed) p->primitive = primitive;
    state.count++;
    state.refused += failed;
}

/* The product of this shape, compiled if it is new; NULL when it is left to the own kernels. */
static const product *find(const shape_key *key) {
    uint64_t hash = 0;
    for (size_t i = 0; i < sizeof *key / 8; i++) hash = (hash ^ (uint64_t)((const int64_t *)key)[i]) * 0x9e3779b97f4a7c15u;
    product **place = &state.products[hash >> 56];
    pthread_mutex_lock(&state.lock);
    product *p = *place;
    while (p && memcmp(&p->key, key, sizeof *key) != 0) p = p->next;
    if (p == NULL && state.count < MOST_PRODUCTS && (p = calloc(1, sizeof *p)) != NULL) {
        const int threads = lib.omp_get_max_threads();
        lib.omp_set_num_threads((int)key->threads);  /* a primitive is made for so many */
        p->key = *key;
        compile(p);
        lib.omp_set_num_threads(threads);
        p->next = *place;
        *place = p;
    }
    pthread_mutex_unlock(&state.lock);
    return p && p->primitive ? p : NULL;
}

static void execute(const product *p, void *const handles[ARGUMENTS]) {
    dnnl_exec_arg_t arguments[ARGUMENTS];
    int count = 0, status = 0;
    for (int i = 0; i < ARGUMENTS; i++)
        if (p->desc[i]) {
            status |= lib.dnnl_memory_create(&arguments[count].memory, p->desc[i], state.engine, handles[i]);
            arguments[count++].arg = argument_numbers[i];
        }
    if (status == 0) status = lib.dnnl_primitive_execute(p->primitive, state.stream, count, arguments);
    if (status != 0) {  /* out of memory; the team has no way back */
        fprintf(stderr, "[kernels.onednn] a product of %lld x %lld x %lld failed with status %d.\n",
                (long long)p->key.m, (long long)p->key.n, (long long)p->key.k, status);
        abort();
    }
    while (count > 0) lib.dnnl_memory_destroy(arguments[--count].memory);
}

/* ------------------------------------------------------------------------------------------------- the kernels */

static void multiply(const ck_gemm_args *g, const ck_team *team, const int c_is_f32) {
    const ck_kernel own = c_is_f32 ? state.own->gemm_f32[CK_BF16] : state.own->gemm[CK_BF16];
    const shape_key key = {g->m, g->n, g->k, g->a_row, g->a_col, g->b_row, g->b_col, g->c_row, c_is_f32, g->bias != NULL,
                           g->accumulate || g->residual, team->size};
    const product *p = g->m <= CK_ONEDNN_ROWS || g->n == 0 || g->k == 0 ? NULL : find(&key);
    if (p == NULL) {  /* the same for all of the team */
        own(g, team);
        return;
    }
    if (g->column_sums) {
        ck_gemm_args sums_alone = *g;
        sums_alone.n = 0;
        own(&sums_alone, team);
    }
    if (g->residual && g->residual != g->c) {
        const int64_t bytes = c_is_f32 ? 4 : 2;
        const ck_range rows = ck_split(g->m, ck_row_grain(g->c_row * bytes), team->size, team->index);
        for (int64_t i = rows.begin; i < rows.end; i++)
            memcpy((char *)g->c + i * g->c_row * bytes, (const char *)g->residual + i * g->residual_row * bytes,
                   (size_t)(g->n * bytes));
    }
    const unsigned before = state.finished;  /* nobody changes it before all are here */
    ck_barrier(team);
    if (team->index > 0) {
        pthread_mutex_lock(&state.at_rest);
        while (state.finished == before) pthread_cond_wait(&state.done, &state.at_rest);
        pthread_mutex_unlock(&state.at_rest);
        return;
    }
    const int threads = lib.omp_get_max_threads();  /* the caller's own setting, which may be somebody's */
    lib.omp_set_num_threads(team->size);
    execute(p, (void *const[ARGUMENTS]){
        [SRC] = (void *)g->a, [WEIGHTS] = (void *)g->b, [DST] = g->c, [BIAS] = (void *)g->bias,
        [SCRATCHPAD] = team->scratch,  /* those of the whole team, one after the other */
    });
    lib.omp_set_num_threads(threads);
    pthread_mutex_lock(&state.at_rest);
    state.finished++;
    pthread_cond_broadcast(&state.done);
    pthread_mutex_unlock(&state.at_rest);
}

static void gemm_bf16(const void *args, const ck_team *team) { multiply(args, team, 0); }
static void gemm_f32_bf16(const void *args, const ck_team *team) { multiply(args, team, 1); }

const ck_table *ck_onednn_table(const ck_table *own) {
    state.own = own;
    state.table = *own;
    state.table.isa = "onednn";
    state.table.gemm[CK_BF16] = gemm_bf16;
    state.table.gemm_f32[CK_BF16] = gemm_f32_bf16;
    return &state.table;
}

void ck_onednn_count(int64_t *shapes, int64_t *refused) {
    pthread_mutex_lock(&state.lock);
    *shapes = state.count;
    *refused = state.refused;
    pthread_mutex_unlock(&state.lock);
}
