# What ranks wait in and where they differed, for each other to see (csrc/world.h: ckc_waiting, ckc_difference); a part of
# _engine.pyx.

def show_wait(World world, uint64_t group, uint64_t whole, uint64_t number, int lane, needs, held, bint certain, call):
    """What this rank's caller waits in, as `waits` gives it to the others; sets are integers with a bit per seat."""
    cdef ckc_waiting wait
    cdef int i
    memset(&wait, 0, sizeof(wait))
    wait.group, wait.whole, wait.number, wait.lane, wait.certain = group, whole, number, lane, certain
    for i in range(CKC_MAX_RANKS // 64):
        wait.needs[i] = (needs >> (64 * i)) & 0xffffffffffffffff
        wait.held[i] = (held >> (64 * i)) & 0xffffffffffffffff
    wait.kind, wait.dtype, wait.op, wait.root, wait.count, wait.extra = call
    ckc_show_waiting(world.w.seats[world.w.local_rank], &wait)


def hide_wait(World world):
    """It does not wait any more."""
    cdef ckc_waiting wait
    memset(&wait, 0, sizeof(wait))
    ckc_show_waiting(world.w.seats[world.w.local_rank], &wait)


def waits(World world):
    """What the others wait in, as far as they show it: (seat, group, whole, number, lane, needs, held, certain,
    call)."""
    cdef ckc_waiting wait
    cdef int seat, i
    found = []
    for seat in range(world.w.local_size):
        if seat == world.w.local_rank or not ckc_read_waiting(world.w.seats[seat], &wait) or wait.group == 0:
            continue
        needs, held = 0, 0
        for i in range(CKC_MAX_RANKS // 64):
            needs |= <object> wait.needs[i] << (64 * i)
            held |= <object> wait.held[i] << (64 * i)
        call = (wait.kind, wait.dtype, wait.op, wait.root, wait.count, wait.extra)
        found.append((seat, wait.group, wait.whole, wait.number, wait.lane, needs, held, bool(wait.certain), call))
    return found


def tell(World world):
    """Send what this rank shows to the ranks of other nodes, now."""
    with nogil:
        ckc_tell(world.w)


cdef void fill_told(ckc_told *told, call):
    told.kind, told.dtype, told.op, told.root, told.count, told.extra = call


cdef tuple call_of(const ckc_told *told):
    return told.kind, told.dtype, told.op, told.root, told.count, told.extra


def show_difference(World world, uint64_t group, uint64_t whole, int lane, uint64_t number, mine, int seat, theirs):
    """Tell all ranks that this one calls `mine` where the rank in `seat` calls `theirs`, unless it told of another one."""
    cdef ckc_difference difference
    memset(&difference, 0, sizeof(difference))
    difference.group, difference.whole, difference.number = group, whole, number
    difference.lane, difference.seat = lane, seat
    fill_told(&difference.mine, mine)
    fill_told(&difference.theirs, theirs)
    ckc_show_difference(world.w.seats[world.w.local_rank], &difference)
    tell(world)


def differences(World world):
    """What other ranks have told so: (seat, group, whole, lane, number, mine, the other seat, theirs)."""
    cdef const ckc_difference *d
    cdef int seat
    found = []
    for seat in range(world.w.local_size):
        d = ckc_difference_of(world.w.seats[seat])
        if seat != world.w.local_rank and d != NULL:
            found.append((seat, d.group, d.whole, d.lane, d.number, call_of(&d.mine), d.seat, call_of(&d.theirs)))
    return found
