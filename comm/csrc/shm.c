#include "shm.h"

#include <string.h>

#define LINE 64

static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline ckc_block_head *head(const ckc_channel *ch, int rank) { return (ckc_block_head *)ch->blocks[rank]; }
static inline char *slot(const ckc_channel *ch, int rank, uint64_t seq) {
    return ch->blocks[rank] + sizeof(ckc_block_head) + (int64_t)(seq & 1) * ch->inline_bytes;
}
static inline char *stage(const ckc_channel *ch, int rank, int64_t chunk) {
    return ch->blocks[rank] + sizeof(ckc_block_head) + 2 * ch->inline_bytes + (chunk & 1) * ch->stage_bytes;
}

int64_t ckc_block_bytes(int64_t inline_bytes, int64_t stage_bytes) {
    return round_up((int64_t)sizeof(ckc_block_head) + 2 * inline_bytes + 2 * stage_bytes + 2 * (int64_t)sizeof(ckc_parts), 4096);
}

const ckc_call *ckc_call_of(const ckc_channel *ch, int rank, uint64_t seq) { return &head(ch, rank)->call[seq & 1]; }

/* They stand behind the stages: operations that have none touch no page of them. */
static ckc_parts *parts_of(const ckc_channel *ch, int rank, uint64_t seq) {
    return (ckc_parts *)(stage(ch, rank, 0) + 2 * ch->stage_bytes) + (seq & 1);
}

const ckc_parts *ckc_parts_of(const ckc_channel *ch, int rank, uint64_t seq) { return parts_of(ch, rank, seq); }

void ckc_who_is_here(const ckc_channel *ch, uint64_t seq, uint64_t tick, uint8_t *here) {
    for (int r = 0; r < ch->size; r++)
        here[r] = atomic_load_explicit(&ckc_call_of(ch, r, seq)->seq, memory_order_acquire) >= seq &&
                  atomic_load_explicit(&head(ch, r)->tick, memory_order_acquire) >= tick;
}

/* --------------------------------------------------------------------------------------- arriving and stepping */

static int64_t length(const int64_t *begins, int r) { return begins[r + 1] - begins[r]; }

static void show_parts(const ckc_op *o) {
    const ckc_channel *ch = o->on;
    ckc_parts *mine = parts_of(ch, ch->rank, o->seq);
    mine->longest = 0;
    for (int r = 0; r <= ch->size; r++) {
        mine->begins[r] = o->begins[r];
        mine->received[r] = o->received[r];
        if (r < ch->size && length(o->begins, r) > mine->longest) mine->longest = length(o->begins, r);
    }
}

static void arrive(ckc_op *o, const void *payload, int64_t bytes) {
    ckc_channel *ch = o->on;
    CKC_PUT(ch->seq, ch->seq + 1);
    CKC_PUT(o->seq, ch->seq);
    o->base = ch->tick;
    o->cursor = 0;
    ckc_call *mine = &head(ch, ch->rank)->call[o->seq & 1];
    memcpy((char *)mine + offsetof(ckc_call, kind), (char *)&o->call + offsetof(ckc_call, kind),
           sizeof(ckc_call) - offsetof(ckc_call, kind));
    if (bytes) memcpy(slot(ch, ch->rank, o->seq), payload, (size_t)bytes);
    if (o->received != NULL) show_parts(o);
    atomic_store_explicit(&ch->world->seats[ch->world->local_rank]->operation, (uint64_t)o->call.kind << 56 | o->seq,
                          memory_order_relaxed);
    atomic_store_explicit(&mine->seq, o->seq, memory_order_release);
    ckc_ring(ch->world, ch->seats, ch->size);
}

/* Whether rank r, which has arrived, calls the same, and each of the two expects as much as the other one sends. */
static int agrees(const ckc_op *o, int r) {
    const ckc_channel *ch = o->on;
    const char *theirs = (const char *)ckc_call_of(ch, r, o->seq) + offsetof(ckc_call, kind);
    const char *mine = (const char *)&o->call + offsetof(ckc_call, kind);
    if (o->received == NULL) return !memcmp(theirs, mine, CKC_CALL_COMPARED);
    if (memcmp(theirs, mine, CKC_CALL_COMPARED_IN_EXCHANGE)) return 0;
    const ckc_parts *parts = ckc_parts_of(ch, r, o->seq);
    return length(parts->begins, ch->rank) == length(o->received, r) &&
           length(parts->received, ch->rank) == length(o->begins, r);
}

/* Of an all_to_all in which all have arrived: whether the counts of all pairs agree (world.h). */
static int all_agree(const ckc_op *o) {
    const ckc_channel *ch = o->on;
    uint64_t sum = 0;
    for (int r = 0; r < ch->size; r++) sum += ckc_call_of(ch, r, o->seq)->extra;
    return sum == 0;
}

/* CKC_DONE when all have arrived and call the same. A call that differs is seen as soon as it is there, also while
 * others are missing: its rank may be gone by the time they come. */
static int all_arrived(ckc_op *o) {
    const ckc_channel *ch = o->on;
    int all = 1;
    for (int r = o->cursor; r < ch->size; r++) {
        const ckc_call *theirs = ckc_call_of(ch, r, o->seq);
        if (r != ch->rank && atomic_load_explicit(&theirs->seq, memory_order_acquire) != o->seq) {
            all = 0;
            continue;
        }
        if (r != ch->rank && !agrees(o, r)) return CKC_MISMATCH;
        if (all) o->cursor = r + 1;
    }
    if (all && o->received != NULL && !all_agree(o)) return CKC_MISMATCH;
    return all ? CKC_DONE : CKC_PENDING;
}

static void step(ckc_op *o) {
    ckc_channel *ch = o->on;
    o->moved++;
    CKC_PUT(ch->tick, ch->tick + 1);
    atomic_store_explicit(&head(ch, ch->rank)->tick, ch->tick, memory_order_release);
    ckc_ring(ch->world, ch->seats, ch->size);
}

/* Whether all are `steps` steps into the operation. */
static int all_stepped(ckc_op *o, int64_t steps) {
    const ckc_channel *ch = o->on;
    const uint64_t wanted = o->base + (uint64_t)steps;
    for (int r = 0; r < ch->size; r++)
        if (atomic_load_explicit(&head(ch, r)->tick, memory_order_acquire) < wanted) return 0;
    return 1;
}

/* ------------------------------------------------------------------------------------------- parts and places */

static int64_t bytes_of(const ckc_op *o, int64_t count) { return count * ckc_item_bytes(o->call.dtype); }

/* Where peer r's array lies in this process; NULL unless it is in a shared arena. */
static char *in_place(const ckc_op *o, int r) {
    const ckc_channel *ch = o->on;
    const ckc_call *theirs = ckc_call_of(ch, r, o->seq);
    if (theirs->arena < 0) return NULL;
    return ch->world->arenas[ch->seats[r]][theirs->arena].base + theirs->offset;
}

static int all_in_place(const ckc_op *o) {
    const ckc_channel *ch = o->on;
    for (int r = 0; r < ch->size; r++)
        if (ckc_call_of(ch, r, o->seq)->arena < 0) return 0;
    return 1;
}

/* Parts of equal length, each a whole number of cache lines: who reduces what does not change the result. */
static void even_parts(ckc_op *o) {
    ckc_channel *ch = o->on;
    const int64_t line = LINE / ckc_item_bytes(o->call.dtype);
    const int64_t part = round_up((o->call.count + ch->size - 1) / ch->size, line);
    for (int r = 0; r <= ch->size; r++) ch->begins[r] = least(r * part, o->call.count);
    o->begins = ch->begins;
}

/* Elements [*begin, *begin + result) of an array whose parts begin so are chunk c of rank r's part. */
static int64_t piece_of(const ckc_op *o, const int64_t *begins, int r, int64_t c, int64_t *begin) {
    *begin = least(begins[r] + c * o->chunk, begins[r + 1]);
    return least(o->chunk, begins[r + 1] - *begin);
}

static int64_t piece(const ckc_op *o, int r, int64_t c, int64_t *begin) { return piece_of(o, o->begins, r, c, begin); }

/* Chunks of the longest part, the same on all ranks, such that `shares` pieces fit a stage. */
static void plan_chunks(ckc_op *o, int shares) {
    const ckc_channel *ch = o->on;
    o->chunk = ch->stage_bytes / shares / LINE * LINE / ckc_item_bytes(o->call.dtype);
    int64_t longest = 0;
    for (int r = 0; r < ch->size; r++) {
        const int64_t theirs = o->received != NULL ? ckc_parts_of(ch, r, o->seq)->longest : length(o->begins, r);
        if (theirs > longest) longest = theirs;
    }
    o->chunks = (longest + o->chunk - 1) / o->chunk;
    o->c = 0;
}

static char *share(const ckc_op *o, int owner, int64_t c, int r) {
    return stage(o->on, owner, c) + r * bytes_of(o, o->chunk);
}

/* ------------------------------------------------------------------------------------------------ reductions */

static void reduce(const ckc_op *o, void *const *dst, int n_dst, const void *const *src, int64_t count, int flags) {
    const ckc_channel *ch = o->on;
    if (count > 0) ch->world->reduce(dst, n_dst, src, ch->size, count, o->call.dtype, o->call.op | flags);
}

static void reduce_inlined(const ckc_op *o, int64_t begin, int64_t count) {
    const ckc_channel *ch = o->on;
    const void *src[CKC_MAX_RANKS];
    void *dst = o->out;
    for (int r = 0; r < ch->size; r++)
        src[r] = (r == ch->rank ? o->in : slot(ch, r, o->seq)) + bytes_of(o, begin);
    reduce(o, &dst, 1, src, count, 0);
}

/* Part `rank` of all arrays in place, to `everywhere` or to the rank's own output alone. */
static void reduce_in_place(const ckc_op *o, int everywhere) {
    const ckc_channel *ch = o->on;
    const void *src[CKC_MAX_RANKS];
    void *dst[CKC_MAX_RANKS];
    int64_t begin = o->begins[ch->rank];
    const int64_t count = o->begins[ch->rank + 1] - begin;
    for (int r = 0; r < ch->size; r++) {
        char *at = (r == ch->rank ? (char *)o->in : in_place(o, r)) + bytes_of(o, begin);
        src[r] = dst[r] = at;
    }
    if (!everywhere) dst[0] = o->out;
    const int large = bytes_of(o, o->call.count) * ch->size > ch->world->stream_bytes;
    reduce(o, dst, everywhere ? ch->size : 1, src, count, large ? CKC_STREAM : 0);
}

/* Chunk c of every other rank's part into the own stage. */
static void copy_in(const ckc_op *o, int64_t c) {
    const ckc_channel *ch = o->on;
    for (int r = 0; r < ch->size; r++) {
        int64_t begin;
        const int64_t count = piece(o, r, c, &begin);
        if (r != ch->rank && count > 0)
            memcpy(share(o, ch->rank, c, r), o->in + bytes_of(o, begin), (size_t)bytes_of(o, count));
    }
}

/* Chunk c of the own part: the peers' shares and the own array, to `out` and, where peers wait for it, to the stage. */
static void reduce_chunk(const ckc_op *o, int64_t c, char *out, int to_stage) {
    const ckc_channel *ch = o->on;
    const void *src[CKC_MAX_RANKS];
    int64_t begin;
    const int64_t count = piece(o, ch->rank, c, &begin);
    for (int r = 0; r < ch->size; r++) src[r] = share(o, r, c, ch->rank);
    src[ch->rank] = o->in + bytes_of(o, begin);
    void *dst[2] = {out, share(o, ch->rank, c, ch->rank)};
    reduce(o, dst, to_stage ? 2 : 1, src, count, 0);
}

/* Chunk c of what every other rank r has in its stage as share `r`, or in all_to_all as the share of this rank. */
static void copy_out(const ckc_op *o, int64_t c) {
    const ckc_channel *ch = o->on;
    const int exchange = o->received != NULL;
    for (int r = 0; r < ch->size; r++) {
        int64_t begin;
        const int64_t count = piece_of(o, exchange ? o->received : o->begins, r, c, &begin);
        if (r != ch->rank && count > 0)
            memcpy(o->out + bytes_of(o, begin), share(o, r, c, exchange ? ch->rank : r), (size_t)bytes_of(o, count));
    }
}

static int inlines(const ckc_op *o, int64_t count) {
    return bytes_of(o, count) <= ((const ckc_channel *)o->on)->inline_bytes;
}

/* ------------------------------------------------------------------------------------------------ collectives */

static int barrier(ckc_op *o) {
    CKC_BEGIN(o);
    arrive(o, NULL, 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    CKC_END(o);
}

/* in == out. Steps of the staged way: copy in chunk 0; then for each chunk: copy in the next, reduce this one, copy out
 * this one. Copying in chunk c is step 2c (1 for c = 0), reducing it step 2c + 3. Both stages are safe to be written
 * again two chunks later: the shares were read before the peers' reduction step, which the copying out of that chunk
 * waited for; the result was read before the peers copied in chunk c + 2, which its reduction waits for. */
static int all_reduce(ckc_op *o) {
    ckc_channel *ch = o->on;
    int64_t begin;
    CKC_BEGIN(o);
    arrive(o, o->in, inlines(o, o->call.count) ? bytes_of(o, o->call.count) : 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    if (inlines(o, o->call.count)) {
        reduce_inlined(o, 0, o->call.count);
        return CKC_DONE;
    }
    even_parts(o);
    if (all_in_place(o)) {
        reduce_in_place(o, 1);
        step(o);
        CKC_AWAIT(o, all_stepped(o, 1));
        return CKC_DONE;
    }
    plan_chunks(o, ch->size);
    copy_in(o, 0);
    step(o);
    for (; o->c < o->chunks; o->c++) {
        copy_in(o, o->c + 1);
        step(o);
        CKC_AWAIT(o, all_stepped(o, o->c ? 2 * o->c : 1));
        piece(o, ch->rank, o->c, &begin);
        reduce_chunk(o, o->c, o->out + bytes_of(o, begin), 1);
        step(o);
        CKC_AWAIT(o, all_stepped(o, 2 * o->c + 3));
        copy_out(o, o->c);
    }
    CKC_END(o);
}

/* call.count is the whole input's; out has the own part. */
static int reduce_scatter(ckc_op *o) {
    ckc_channel *ch = o->on;
    CKC_BEGIN(o);
    arrive(o, o->in, inlines(o, o->call.count) ? bytes_of(o, o->call.count) : 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    if (inlines(o, o->call.count)) {
        reduce_inlined(o, o->begins[ch->rank], o->begins[ch->rank + 1] - o->begins[ch->rank]);
        return CKC_DONE;
    }
    if (all_in_place(o)) {
        reduce_in_place(o, 0);
        step(o);
        CKC_AWAIT(o, all_stepped(o, 1));
        return CKC_DONE;
    }
    plan_chunks(o, ch->size);
    copy_in(o, 0);
    step(o);
    for (; o->c < o->chunks; o->c++) {
        CKC_AWAIT(o, all_stepped(o, o->c + 1));
        reduce_chunk(o, o->c, o->out + bytes_of(o, o->c * o->chunk), 0);
        /* The stage of chunk c + 1 was last read by the peers' reduction of chunk c - 1, before they copied in c. */
        copy_in(o, o->c + 1);
        step(o);
    }
    CKC_END(o);
}

/* call.count is the whole output's; in has the own part, and is often its place in the output. */
static int all_gather(ckc_op *o) {
    ckc_channel *ch = o->on;
    int64_t own, count;
    CKC_BEGIN(o);
    own = o->begins[ch->rank];
    count = o->begins[ch->rank + 1] - own;
    arrive(o, o->in, inlines(o, o->call.count) ? bytes_of(o, count) : 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    own = o->begins[ch->rank];
    count = o->begins[ch->rank + 1] - own;
    if (o->out + bytes_of(o, own) != o->in) memcpy(o->out + bytes_of(o, own), o->in, (size_t)bytes_of(o, count));
    if (inlines(o, o->call.count)) {
        for (int r = 0; r < ch->size; r++)
            if (r != ch->rank)
                memcpy(o->out + bytes_of(o, o->begins[r]), slot(ch, r, o->seq),
                       (size_t)bytes_of(o, o->begins[r + 1] - o->begins[r]));
        return CKC_DONE;
    }
    if (all_in_place(o)) {
        for (int d = 1; d < ch->size; d++) {        /* each begins with its neighbour: not all read from rank 0 first */
            const int r = (ch->rank + d) % ch->size;
            memcpy(o->out + bytes_of(o, o->begins[r]), in_place(o, r),
                   (size_t)bytes_of(o, o->begins[r + 1] - o->begins[r]));
        }
        step(o);
        CKC_AWAIT(o, all_stepped(o, 1));
        return CKC_DONE;
    }
    plan_chunks(o, 1);
    for (; o->c < o->chunks; o->c++) {
        /* Written again two chunks later: the peers read this one before they step for the next. */
        count = piece(o, ch->rank, o->c, &own);
        memcpy(stage(ch, ch->rank, o->c), o->in + bytes_of(o, o->c * o->chunk), (size_t)(count > 0 ? bytes_of(o, count) : 0));
        step(o);
        CKC_AWAIT(o, all_stepped(o, o->c + 1));
        for (int r = 0; r < ch->size; r++) {
            count = piece(o, r, o->c, &own);
            if (r != ch->rank && count > 0)
                memcpy(o->out + bytes_of(o, own), stage(ch, r, o->c), (size_t)bytes_of(o, count));
        }
    }
    CKC_END(o);
}

static int broadcast(ckc_op *o) {
    ckc_channel *ch = o->on;
    int64_t bytes, begin;
    const int is_root = ch->rank == o->call.root;
    CKC_BEGIN(o);
    arrive(o, o->in, is_root && inlines(o, o->call.count) ? bytes_of(o, o->call.count) : 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    bytes = bytes_of(o, o->call.count);
    if (inlines(o, o->call.count)) {
        if (!is_root) memcpy(o->out, slot(ch, o->call.root, o->seq), (size_t)bytes);
        return CKC_DONE;
    }
    if (in_place(o, o->call.root) != NULL) {
        if (!is_root) memcpy(o->out, in_place(o, o->call.root), (size_t)bytes);
        step(o);
        CKC_AWAIT(o, all_stepped(o, 1));
        return CKC_DONE;
    }
    o->chunks = (bytes + ch->stage_bytes - 1) / ch->stage_bytes;
    /* All step twice per chunk: the root when it is in the stage and at once again, the others when they wait for it
     * and when they have read it. The root writes a stage again when all have read what was there two chunks ago. */
    for (o->c = 0; o->c < o->chunks; o->c++) {
        if (is_root) {
            CKC_AWAIT(o, o->c < 2 || all_stepped(o, 2 * (o->c - 1)));
            begin = o->c * ch->stage_bytes;
            memcpy(stage(ch, ch->rank, o->c), o->in + begin,
                   (size_t)least(ch->stage_bytes, bytes_of(o, o->call.count) - begin));
            CKC_PUT(ch->tick, ch->tick + 1);
            step(o);
        } else {
            CKC_AWAIT(o, atomic_load_explicit(&head(ch, o->call.root)->tick, memory_order_acquire) >=
                             o->base + (uint64_t)(2 * o->c + 2));
            begin = o->c * ch->stage_bytes;
            memcpy(o->out + begin, stage(ch, o->call.root, o->c),
                   (size_t)least(ch->stage_bytes, bytes_of(o, o->call.count) - begin));
            CKC_PUT(ch->tick, ch->tick + 1);
            step(o);
        }
    }
    CKC_END(o);
}

static int64_t input_of(const ckc_op *o, int r) {
    const ckc_channel *ch = o->on;
    return ckc_parts_of(ch, r, o->seq)->begins[ch->size];
}

/* Rank r's input of an all_to_all where this process can read it: in its slot, or in a shared arena; else NULL. */
static const char *whole_input(const ckc_op *o, int r) {
    return inlines(o, input_of(o, r)) ? slot(o->on, r, o->seq) : in_place(o, r);
}

static int all_in_slots(const ckc_op *o) {
    const ckc_channel *ch = o->on;
    for (int r = 0; r < ch->size; r++)
        if (!inlines(o, input_of(o, r))) return 0;
    return 1;
}

static int all_whole(const ckc_op *o) {
    const ckc_channel *ch = o->on;
    for (int r = 0; r < ch->size; r++)
        if (whole_input(o, r) == NULL) return 0;
    return 1;
}

/* call.count is the length of the own input; inputs and parts may have any length. Where every input can be read whole, each
 * rank takes its parts from there; with all of them in slots, which the next operation leaves alone, that is all. */
static int all_to_all(ckc_op *o) {
    ckc_channel *ch = o->on;
    CKC_BEGIN(o);
    arrive(o, o->in, inlines(o, o->call.count) ? bytes_of(o, o->call.count) : 0);
    CKC_AWAIT_CHECKED(o, all_arrived(o));
    memcpy(o->out + bytes_of(o, o->received[ch->rank]), o->in + bytes_of(o, o->begins[ch->rank]),
           (size_t)bytes_of(o, length(o->begins, ch->rank)));
    if (all_whole(o)) {
        for (int d = 1; d < ch->size; d++) {
            const int r = (ch->rank + d) % ch->size;
            memcpy(o->out + bytes_of(o, o->received[r]),
                   whole_input(o, r) + bytes_of(o, ckc_parts_of(ch, r, o->seq)->begins[ch->rank]),
                   (size_t)bytes_of(o, length(o->received, r)));
        }
        if (all_in_slots(o)) return CKC_DONE;
        step(o);
        CKC_AWAIT(o, all_stepped(o, 1));
        return CKC_DONE;
    }
    plan_chunks(o, ch->size);
    for (; o->c < o->chunks; o->c++) {
        copy_in(o, o->c);
        step(o);
        CKC_AWAIT(o, all_stepped(o, o->c + 1));
        copy_out(o, o->c);
    }
    CKC_END(o);
}

int (*const ckc_shm_advance[])(ckc_op *) = {barrier, all_reduce, reduce_scatter, all_gather, broadcast, all_to_all};
