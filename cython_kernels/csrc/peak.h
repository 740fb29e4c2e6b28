/* The limits of the machine, for the denominators of benchmarks: multiply-adds that touch registers only,
 * and arrays that are read and written with nothing else to do. */

/* Independent sums: two instructions per cycle of latency 4 to 6 need 8 to 12. As many as the registers hold. */
#define CK_PEAK_SUMS (VL == 16 ? 24 : 12)

/* Keeps the compiler from hoisting or merging what depends on x. */
#if defined(CK_AMX_EMULATED)
#define CK_OPAQUE(x) __asm__ volatile("" : "+m"(x))
#elif defined(__x86_64__)
#define CK_OPAQUE(x) __asm__ volatile("" : "+v"(x))
#elif defined(__aarch64__)
#define CK_OPAQUE(x) __asm__ volatile("" : "+w"(x))
#else
#define CK_OPAQUE(x) (void)(x)
#endif

static void peak_f32(const void *args, const ck_team *team) {
    ck_peak_args *a = (ck_peak_args *)args;
    vf sum[CK_PEAK_SUMS], x = v_set1(0.999f), y = v_set1(0.001f);
    CK_OPAQUE(x);
    CK_OPAQUE(y);
#pragma GCC unroll 24
    for (int i = 0; i < CK_PEAK_SUMS; i++) sum[i] = v_set1((float)i);
    for (int64_t p = 0; p < a->steps; p++) {
#pragma GCC unroll 24
        for (int i = 0; i < CK_PEAK_SUMS; i++) sum[i] = v_fma(sum[i], x, y);
    }
    for (int i = 1; i < CK_PEAK_SUMS; i++) sum[0] = v_add(sum[0], sum[i]);
    if (team->index == 0) {
        a->result = v_sum(sum[0]);
        a->flops = team->size * a->steps * CK_PEAK_SUMS * VL * 2;
    }
}

#if defined(CK_ISA_AMX)
/* Four sums, from two tiles of each operand: as matmul's register tile. */
static void peak_bf16(const void *args, const ck_team *team) {
    ck_peak_args *a = (ck_peak_args *)args;
    ck_tiles t;
    (void)t;
    _Alignas(64) float sum[CK_AMX_ROWS * CK_AMX_UNITS];
    t_begin();
    t_zero(&t, 0);
    t_zero(&t, 1);
    t_zero(&t, 2);
    t_zero(&t, 3);
    t_zero(&t, 4);
    t_zero(&t, 5);
    t_zero(&t, 6);
    t_zero(&t, 7);
    for (int64_t p = 0; p < a->steps; p++) {
        t_dot(&t, 0, 4, 6);
        t_dot(&t, 1, 4, 7);
        t_dot(&t, 2, 5, 6);
        t_dot(&t, 3, 5, 7);
    }
    t_store(&t, 0, sum, 64);
    t_end();
    if (team->index == 0) {
        a->result = sum[0];
        a->flops = team->size * a->steps * 4 * CK_AMX_ROWS * CK_AMX_UNITS * CK_AMX_UNITS * 4;
    }
}
#elif defined(CK_ISA_BF16)
static void peak_bf16(const void *args, const ck_team *team) {
    ck_peak_args *a = (ck_peak_args *)args;
    vf sum[CK_PEAK_SUMS];
    vf x = v_from_bits(vi_set1(0x3c003c00));
    CK_OPAQUE(x);
#pragma GCC unroll 24
    for (int i = 0; i < CK_PEAK_SUMS; i++) sum[i] = v_set1((float)i);
    for (int64_t p = 0; p < a->steps; p++) {
#pragma GCC unroll 24
        for (int i = 0; i < CK_PEAK_SUMS; i++) sum[i] = v_dot_pairs(x, x, sum[i]);
    }
    for (int i = 1; i < CK_PEAK_SUMS; i++) sum[0] = v_add(sum[0], sum[i]);
    if (team->index == 0) {
        a->result = v_sum(sum[0]);
        a->flops = team->size * a->steps * CK_PEAK_SUMS * VL * 4;
    }
}
#else
/* Without bf16 arithmetic the products are fp32's. */
static void peak_bf16(const void *args, const ck_team *team) { peak_f32(args, team); }
#endif

INLINE void stream_part(ck_stream_args *a, ck_range part, const int reads, const int writes,
                        const int streaming, int keep_result) {
    enum { STEP = 4 };  /* vectors at a time, so that as many loads are under way */
    vf total[STEP] = {v_zero(), v_zero(), v_zero(), v_zero()};
    for (int64_t i = part.begin; i + STEP * VL <= part.end; i += STEP * VL)
#pragma GCC unroll 4
        for (int s = 0; s < STEP; s++) {
            vf x = reads ? v_load(a->in[0] + i + s * VL) : v_zero();
#pragma GCC unroll 4
            for (int r = 1; r < reads; r++) x = v_add(x, v_load(a->in[r] + i + s * VL));
#pragma GCC unroll 4
            for (int w = 0; w < writes; w++) {
                if (streaming) v_stream(a->out[w] + i + s * VL, x);
                else v_store(a->out[w] + i + s * VL, x);
            }
            if (!writes) total[s] = v_add(total[s], x);
        }
    if (streaming) ck_store_fence();
    if (keep_result) a->result = v_sum(v_add(v_add(total[0], total[1]), v_add(total[2], total[3])));
}

/* n is a multiple of 64 elements and the arrays are 64-byte aligned. */
static void stream(const void *args, const ck_team *team) {
    ck_stream_args *a = (ck_stream_args *)args;
    const ck_range part = ck_split(a->n, 1024, team->size, team->index);
    const int first = team->index == 0;
#define CK_MIX(r, w)                                                                                        \
    if (a->reads == r && a->writes == w) {                                                                  \
        if (a->streaming) stream_part(a, part, r, w, 1, first);                                             \
        else stream_part(a, part, r, w, 0, first);                                                          \
        return;                                                                                             \
    }
    CK_MIX(1, 0) CK_MIX(0, 1) CK_MIX(1, 1) CK_MIX(2, 1) CK_MIX(4, 3)
#undef CK_MIX
    stream_part(a, part, a->reads, a->writes, a->streaming, first);
}
