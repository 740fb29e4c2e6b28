/* How a matmul is cut into blocks: a pure function of the sizes and the machine.
 *
 *   for each `cols` of n, for each `rows` of m        a block of C
 *     for each `depth` of k                           b's block packed by all threads, then shared
 *       for each item: `item_rows` x `item_cols`      taken by whichever thread is free: a's rows packed, tiles
 *
 * depth depends on k and the caches alone, so the order of additions to an element of C, and its bits, depend
 * neither on m and n nor on the number of threads. */
#ifndef CK_GEMM_PLAN_H
#define CK_GEMM_PLAN_H

#include "kernels.h"
#include "split.h"

/* Units between two packed panels. Without a gap panels of 1024 units would stand a multiple of 4 KB apart, all in the
 * same sets of the first-level cache, and packing writes several in turn. It also takes what whole vectors write past a
 * panel's end. */
#define CK_PANEL_GAP 16

/* Panels of b's block at most. */
#define CK_GEMM_PANELS 1024

/* Units from one packed panel to the next. */
static inline int64_t ck_panel_units(int64_t width, int64_t depth) { return width * depth + CK_PANEL_GAP; }

typedef struct { int64_t rows, cols, depth, item_rows, item_cols; } ck_gemm_plan;

/* All lengths along k in 4-byte units. mr x nr is the register tile; with sums, C's block is summed in fp32 in
 * the shared workspace, because C is bf16 and k takes several steps. */
static inline ck_gemm_plan ck_plan_gemm(int64_t m, int64_t n, int64_t k, int64_t mr, int64_t nr, int c_is_f32,
                                        int threads, const ck_caches *caches) {
    /* b's panel of nr columns takes an eighth of the second level, a's rows half of it. A quarter more in depth costs
     * less than another visit to C. */
    const int64_t deep = ck_max(128, ck_min(1024, caches->l2 / 8 / (nr * 4) / 64 * 64));
    const int64_t steps = ck_max(1, ck_ceil_div(k - deep / 4, deep));
    const int64_t depth = ck_max(1, ck_min(k, ck_round_up(ck_ceil_div(k, steps), 8)));
    const int64_t share = ck_min(caches->l2 / 2, CK_SCRATCH_BYTES / 2);
    const int sums = !c_is_f32 && depth < k;

    /* Two blocks of b stand in the workspace. Larger ones do not stay in the third level's share of a few cores. */
    const int64_t b_bytes = ck_min(caches->l3 / 4, CK_SHARED_BYTES / 4 - 4096);
    int64_t cols = ck_max(1, ck_min(CK_GEMM_PANELS, b_bytes / (ck_panel_units(nr, depth) * 4))) * nr;
    cols = ck_max(nr, ck_round_up(ck_ceil_div(n, ck_max(1, ck_ceil_div(n, cols))), nr));
    int64_t rows = ck_max(1, m);
    if (sums) {
        const int64_t most = ck_max(mr, (CK_SHARED_BYTES / 2 - 8192) / (cols * 4) / mr * mr);
        rows = ck_max(mr, ck_round_up(ck_ceil_div(rows, ck_ceil_div(rows, most)), mr));
    }

    /* Items: as many rows as the second level holds, fewer where there would be less than four items for each
     * thread, then fewer columns. */
    int64_t item_rows = ck_max(1, share / (ck_panel_units(mr, depth) * 4)) * mr, item_cols = cols;
    if (threads > 1) {
        const int64_t wanted = 4 * (int64_t)threads, tiles = ck_ceil_div(rows, mr);
        item_rows = ck_min(item_rows, mr * ck_max(4, tiles / wanted));
        const int64_t have = ck_ceil_div(rows, item_rows);
        if (have < wanted) {
            const int64_t parts = ck_min(ck_ceil_div(wanted, have), ck_max(1, cols / nr));
            item_cols = ck_round_up(ck_ceil_div(cols, parts), nr);
        }
    }
    /* even shares */
    item_rows = ck_round_up(ck_ceil_div(rows, ck_ceil_div(rows, item_rows)), mr);
    return (ck_gemm_plan){rows, cols, depth, item_rows, item_cols};
}

/* Tiles of the item that begins with tile `begin` of `all`, which stand in columns of `down`: the plan's item, or, with
 * several threads, half of what is left for each, but two tiles, whose rows of a are worth packing. 0 at the end. */
static inline int64_t ck_item_tiles(const ck_gemm_plan *plan, int64_t mr, int64_t begin, int64_t down, int64_t all,
                                    int threads) {
    const int64_t most = plan->item_rows / mr, left = ck_max(0, all - begin);
    const int64_t share = threads > 1 ? ck_max(2, left / (2 * threads)) : most;
    return ck_min(ck_min(share, most), ck_min(left, down - begin % down));
}

#endif
