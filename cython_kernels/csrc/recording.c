#include "recording.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "split.h"

/* Arguments begin where any type may. */
#define CK_ARGUMENTS_ALIGNED 16

int ck_recording_add(ck_recording *r, ck_kernel kernel, const void *args, size_t size, int64_t work) {
    if (r->count == r->room) {
        const int64_t room = ck_max(64, 2 * r->room);
        ck_call *calls = realloc(r->calls, (size_t)room * sizeof *calls);
        if (calls == NULL) return ENOMEM;
        r->calls = calls;
        r->room = room;
    }
    const size_t at = (size_t)ck_round_up((int64_t)r->used, CK_ARGUMENTS_ALIGNED);
    if (at + size > r->reserved) {
        const size_t reserved = 2 * (at + size) + 4096;
        char *arguments = realloc(r->arguments, reserved);
        if (arguments == NULL) return ENOMEM;
        r->arguments = arguments;
        r->reserved = reserved;
    }
    memcpy(r->arguments + at, args, size);
    r->used = at + size;
    r->calls[r->count++] = (ck_call){kernel, work, at, size};
    return 0;
}

int ck_recording_is_last(const ck_recording *r, const void *args) {
    const ck_call *last = &r->calls[r->count - 1];
    return memcmp(r->arguments + last->at, args, last->size) == 0;
}

void ck_recording_clear(ck_recording *r) {
    free(r->calls);
    free(r->arguments);
    *r = (ck_recording){0};
}
