/* Tiles of 16 rows of 64 bytes (Intel SDM vol. 1, chapter 18): `t`, eight of them, of which the processor has one set for
 * each thread. Numbers of tiles are constants. Emulated, the same functions are plain C, bit for bit
 * (tests/cython_kernels/test_amx.py). */
#ifndef CK_SIMD_AMX_H
#define CK_SIMD_AMX_H

#define CK_AMX_ROWS 16
#define CK_AMX_UNITS 16    /* 4-byte units of a row: fp32, or pairs of bf16 */

#ifndef CK_AMX_EMULATED

typedef struct { char nothing; } ck_tiles;

/* The intrinsics do not tell the compiler which memory they read. */
#define t_see_memory() __asm__ volatile("" ::: "memory")
/* All tiles in full size, for this thread, until t_end(). The process must have asked for them (cpu.c). */
INLINE void t_begin(void) {
    _Alignas(64) const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1,
               .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
               .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}
INLINE void t_end(void) { _tile_release(); }
#define t_zero(t, n) _tile_zero(n)
#define t_load(t, n, p, bytes) _tile_loadd(n, p, bytes)
#define t_store(t, n, p, bytes) _tile_stored(n, p, bytes)
/* Tile c (16, 16) fp32 += a (16, 32) . b (32, 16) of bf16, b in pairs along its rows. */
#define t_dot(t, c, a, b) _tile_dpbf16ps(c, a, b)

#else

typedef struct { uint32_t tile[8][CK_AMX_ROWS][CK_AMX_UNITS]; } ck_tiles;

#define t_see_memory()
INLINE void t_begin(void) {}
INLINE void t_end(void) {}
INLINE void ck_tile_zero(ck_tiles *t, int n) { memset(t->tile[n], 0, sizeof t->tile[n]); }
INLINE void ck_tile_load(ck_tiles *t, int n, const void *p, int64_t bytes) {
    for (int i = 0; i < CK_AMX_ROWS; i++) memcpy(t->tile[n][i], (const char *)p + i * bytes, 64);
}
INLINE void ck_tile_store(ck_tiles *t, int n, void *p, int64_t bytes) {
    for (int i = 0; i < CK_AMX_ROWS; i++) memcpy((char *)p + i * bytes, t->tile[n][i], 64);
}
/* a + b as the tiles add: the first operand that is a NaN wins. */
INLINE float ck_tile_add(float a, float b) {
    const uint32_t x = ck_flushed(ck_bits_of(a)), y = ck_flushed(ck_bits_of(b));
    const double v = (double)ck_float_of(x) + ck_float_of(y);
    if (v == v) return ck_round_flushed(v);
    if ((x & 0x7fffffff) > 0x7f800000) return ck_float_of(x | 0x400000);
    if ((y & 0x7fffffff) > 0x7f800000) return ck_float_of(y | 0x400000);
    return ck_float_of(0xffc00000);
}
/* One element as the processor sums it: products of the even and of the odd elements along k apart, each in turn; then
 * both sums are added, and then to c. */
static uint32_t ck_tile_element(const ck_tiles *t, int c, int a, int b, int i, int j) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < CK_AMX_UNITS; k++) {
        const uint32_t x = t->tile[a][i][k], y = t->tile[b][k][j];
        even = ck_bf16_fma(x << 16, y << 16, even);
        odd = ck_bf16_fma(x & 0xffff0000, y & 0xffff0000, odd);
    }
    return ck_bits_of(ck_tile_add(ck_float_of(t->tile[c][i][j]), ck_tile_add(even, odd)));
}
static void ck_tile_dot(ck_tiles *t, int c, int a, int b) {
    for (int i = 0; i < CK_AMX_ROWS; i++)
        for (int j = 0; j < CK_AMX_UNITS; j++) t->tile[c][i][j] = ck_tile_element(t, c, a, b, i, j);
}
#define t_zero(t, n) ck_tile_zero(t, n)
#define t_load(t, n, p, bytes) ck_tile_load(t, n, p, bytes)
#define t_store(t, n, p, bytes) ck_tile_store(t, n, p, bytes)
#define t_dot(t, c, a, b) ck_tile_dot(t, c, a, b)

#endif
#endif
