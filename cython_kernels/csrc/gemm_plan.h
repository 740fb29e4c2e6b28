/* How a matmul is cut into blocks: pure functions of the sizes and the machine.
 *
 *   together    the team's threads share b's packed blocks
 *   alone       C is cut into a grid of as many parts as threads; each packs for itself what its part needs
 *
 * Within a team's C, or a part of it:
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

/* Bytes before the sums, for what threads tell each other of panels and items. */
#define CK_GEMM_NOTES 16384

typedef struct { int64_t rows, cols, depth, item_rows, item_cols; } ck_gemm_plan;

/* Bytes of a's packed rows, at the beginning of a thread's workspace. */
static inline int64_t ck_left_bytes(const ck_caches *caches) { return ck_min(caches->l2 / 2, CK_SCRATCH_BYTES / 2); }

/* Bytes for b's block and for the sums of one of so many threads, alone. The team's workspace holds all threads' notes,
 * then all blocks, where there is room for them, so that they lie where the team's lie, then all sums. Without room the
 * block is in the thread's own workspace. */
typedef struct { int64_t block, sums; int shared; } ck_gemm_room;
static inline ck_gemm_room ck_room_alone(int threads, const ck_caches *caches) {
    const int64_t share = CK_SHARED_BYTES / threads - CK_GEMM_NOTES, rest = CK_SCRATCH_BYTES - ck_left_bytes(caches);
    if (share / 2 < rest) return (ck_gemm_room){rest, share / 64 * 64, 0};
    return (ck_gemm_room){ck_min(share / 2, CK_SHARED_BYTES / 4) / 64 * 64, share / 128 * 64, 1};
}

/* All lengths along k in 4-byte units. mr x nr is the register tile, which takes kr units along k at once; with sums, C's block is summed in fp32 in
 * the shared workspace, because C is bf16 and k takes several steps. With `alone`, of a part of C of one of so many
 * threads. */
static inline ck_gemm_plan ck_plan_gemm(int64_t m, int64_t n, int64_t k, int64_t mr, int64_t nr, int64_t kr, int c_is_f32,
                                        int threads, int alone, const ck_caches *caches) {
    /* b's panel of nr columns takes an eighth of the second level, a's rows half of it. A quarter more in depth costs
     * less than another visit to C. */
    const int64_t deep = ck_max(128, ck_min(1024, caches->l2 / 8 / (nr * 4) / 64 * 64));
    const int64_t steps = ck_max(1, ck_ceil_div(k - deep / 4, deep));
    const int64_t depth = ck_max(1, ck_min(k, ck_round_up(ck_ceil_div(k, steps), ck_max(8, kr))));
    const int64_t share = ck_left_bytes(caches);
    const ck_gemm_room own = ck_room_alone(threads, caches);
    const int sums = !c_is_f32 && depth < k;

    /* Two blocks of b stand in the team's workspace. Larger ones do not stay in the third level's share of a few cores. */
    const int64_t b_bytes = ck_min(caches->l3 / 4, alone ? own.block : CK_SHARED_BYTES / 4 - 4096);
    int64_t cols = ck_max(1, ck_min(CK_GEMM_PANELS, b_bytes / (ck_panel_units(nr, depth) * 4))) * nr;
    cols = ck_max(nr, ck_round_up(ck_ceil_div(n, ck_max(1, ck_ceil_div(n, cols))), nr));
    int64_t rows = ck_max(1, m);
    if (sums) {
        const int64_t room = alone ? own.sums : CK_SHARED_BYTES / 2 - CK_GEMM_NOTES;
        const int64_t most = ck_max(mr, room / (cols * 4) / mr * mr);
        rows = ck_max(mr, ck_round_up(ck_ceil_div(rows, ck_ceil_div(rows, most)), mr));
    }

    /* Items: as many rows as the second level holds, fewer where there would be less than four items for each
     * thread, then fewer columns. */
    int64_t item_rows = ck_max(1, share / (ck_panel_units(mr, depth) * 4)) * mr, item_cols = cols;
    if (threads > 1 && !alone) {
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

/* Rows, or columns, whose products take as long as packing one unit: of qkv and the head on a Zen 5. */
#define CK_PACKING 12

/* How much longer packing takes into a block that is shared: who writes a line takes it from the caches of all who read
 * it before. Seen on two cores of a virtual machine: 3 to 5 at some times, when they behaved as if each had a third
 * level of its own, and 1 at others. */
#define CK_SHARED_PACKING 3

/* What computing alone must save at least, as a part of the product: threads then cannot even out their speeds. */
#define CK_ALONE_SAVES 0.005

/* Parts of C along m and along n, as many as threads, each computed alone; {0, 0}: together. The less of a part's time
 * goes into packing, and into waiting for the largest part, the better. */
typedef struct { int down, across; } ck_gemm_grid;
static inline ck_gemm_grid ck_cut_gemm(int64_t m, int64_t n, int64_t k, int64_t mr, int64_t nr, int64_t kr, int c_is_f32,
                                       int threads, const ck_caches *caches) {
    const ck_gemm_plan whole = ck_plan_gemm(m, n, k, mr, nr, kr, c_is_f32, threads, 0, caches);
    double least = CK_PACKING / (double)ck_min(whole.cols, n) + CK_SHARED_PACKING * CK_PACKING / (double)m
                   - CK_ALONE_SAVES;
    ck_gemm_grid found = {0, 0};
    if (threads == 1) return (ck_gemm_grid){1, 1};
    for (int down = 1; down <= threads; down++) {
        if (threads % down) continue;
        const int across = threads / down;
        const int64_t rows = ck_round_up(ck_ceil_div(m, down), mr), cols = ck_round_up(ck_ceil_div(n, across), nr);
        const ck_gemm_plan plan = ck_plan_gemm(rows, cols, k, mr, nr, kr, c_is_f32, threads, 1, caches);
        if (plan.rows < rows) continue;     /* b would be packed several times */
        const double most = (double)(rows * down) / (double)ck_round_up(m, mr)
                            * ((double)(cols * across) / (double)ck_round_up(n, nr));
        const double cost = most - 1 + CK_PACKING / (double)ck_min(plan.cols, cols) + CK_PACKING / (double)rows;
        if (cost < least) {
            least = cost;
            found = (ck_gemm_grid){down, across};
        }
    }
    return found;
}

/* Above so many threads one tile more is a tenth of a thread's share of common products. */
#define CK_MANY_THREADS 8

/* Tiles of the item that begins with tile `begin` of `all`, which stand in columns of `down`: the plan's item, or, with
 * several threads, half of what is left for each, but two tiles, whose rows of a are worth packing, or one of many threads.
 * 0 at the end. */
static inline int64_t ck_item_tiles(const ck_gemm_plan *plan, int64_t mr, int64_t begin, int64_t down, int64_t all,
                                    int threads) {
    const int64_t most = plan->item_rows / mr, left = ck_max(0, all - begin);
    const int64_t share = threads > 1 ? ck_max(threads > CK_MANY_THREADS ? 1 : 2, left / (2 * threads)) : most;
    return ck_min(ck_min(share, most), ck_min(left, down - begin % down));
}

#endif
