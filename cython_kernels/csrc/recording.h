/* A list of kernel calls with copies of their arguments, to be made again in this order (ck_pool_replay). */
#ifndef CK_RECORDING_H
#define CK_RECORDING_H

#include "kernels.h"

typedef struct { ck_kernel kernel; int64_t work; size_t at, size; } ck_call;

typedef struct {
    ck_call *calls;
    int64_t count, room;        /* calls, and for how many there is memory */
    char *arguments;            /* of call i from calls[i].at on */
    size_t used, reserved;      /* bytes of the arguments */
} ck_recording;

/* Adds a call; 0, or ENOMEM. */
int ck_recording_add(ck_recording *r, ck_kernel kernel, const void *args, size_t size, int64_t work);

/* Whether the arguments of the last call still are what was copied: a kernel that changes them returns something. */
int ck_recording_is_last(const ck_recording *r, const void *args);

/* Gives back all memory. */
void ck_recording_clear(ck_recording *r);

#endif
