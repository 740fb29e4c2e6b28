/* How attention is cut into items: pure functions of its sizes and the number of threads.
 *
 *   pairs    (batch, key/value head)
 *   tiles    of CK_TILE rows, or keys, of a pair
 *
 * An item is a run of tiles of one pair. Items are dealt by falling cost (ck_deal). */
#ifndef CK_ATTENTION_PLAN_H
#define CK_ATTENTION_PLAN_H

#include "split.h"

/* Tiles of rows (forward) or of keys (backward) that share one packing of the other side, at most. */
#define CK_BLOCK_TILES 4

/* Items for each thread, where there are as many tiles: one more than the others is a tenth of such a share. */
#define CK_ATTENTION_ITEMS 10

/* Tiles of an item: `most`, fewer where there would be too few items to share out evenly. No sum's order depends on it. */
static inline int64_t ck_attention_tiles(int64_t pairs, int64_t tiles, int64_t most, int threads) {
    int64_t each = most;
    while (threads > 1 && each > 1 && pairs * ck_ceil_div(tiles, each) < CK_ATTENTION_ITEMS * (int64_t)threads) each--;
    return each;
}

/* Whether backward takes whole pairs, five products for a tile, which is less than by tiles, seven products, even where
 * some threads get a pair more than others. */
static inline int ck_attention_by_pairs(int64_t pairs, int threads) {
    return ck_ceil_div(pairs, threads) * threads * 5 <= pairs * 7;
}

#endif
