/* How work is divided: pure functions of sizes, tested for 1 to 192 threads
 * (tests/cython_kernels/test_split.py). */
#ifndef CK_SPLIT_H
#define CK_SPLIT_H

#include <stdint.h>

typedef struct { int64_t begin, end; } ck_range;

static inline int64_t ck_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ck_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t ck_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t ck_round_up(int64_t a, int64_t b) { return ck_ceil_div(a, b) * b; }

/* Part `index` of [0, n) cut at multiples of `grain`; parts differ by one grain at most and cover all
 * once. */
static inline ck_range ck_split(int64_t n, int64_t grain, int parts, int index) {
    const int64_t units = ck_ceil_div(n, grain), each = units / parts, extra = units % parts;
    const int64_t begin = each * index + ck_min(index, extra);
    const int64_t end = begin + each + (index < extra);
    return (ck_range){ck_min(begin * grain, n), ck_min(end * grain, n)};
}

/* Rows per cut such that two threads write no common cache line, were the rows packed and aligned. */
static inline int64_t ck_row_grain(int64_t row_bytes) {
    return row_bytes >= 64 ? 1 : row_bytes > 0 ? ck_ceil_div(64, row_bytes) : 64;
}

/* Items sorted by falling cost are dealt like cards, to and fro: 0 1 2 2 1 0 0 1 2 ... The owner of
 * `item`. */
static inline int ck_deal(int64_t item, int parts) {
    const int64_t place = item % (2 * (int64_t)parts);
    return (int)(place < parts ? place : 2 * (int64_t)parts - 1 - place);
}

/* Threads worth waking for `work` (the time of about that many elements of a pointwise op). */
#define CK_WORK_PER_THREAD 32768
static inline int ck_team_size(int64_t work, int threads) {
    return (int)ck_max(1, ck_min(threads, work / CK_WORK_PER_THREAD));
}

#endif
