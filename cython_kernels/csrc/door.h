/* The checks at the door: a Python object becomes a described array, or a ValueError says what is wrong. */
#ifndef CK_DOOR_H
#define CK_DOOR_H

#include <stdint.h>

typedef struct {
    void *data;
    int64_t shape[4], stride[4];    /* strides in elements */
    int dims, dtype;                /* CK_F32, CK_BF16, CK_I32, CK_U8 */
} ck_array;

/* What an array may be: one or more dtypes, | its least and greatest number of dimensions, | flags. */
#define CK_IS_F32 (1u << CK_F32)
#define CK_IS_BF16 (1u << CK_BF16)
#define CK_IS_I32 (1u << CK_I32)
#define CK_IS_U8 (1u << CK_U8)
#define CK_IS_REAL (CK_IS_F32 | CK_IS_BF16)
#define CK_IS_WRITTEN (1u << 8)     /* must be writable */
#define CK_IS_PACKED (1u << 9)      /* contiguous in all dimensions, not in the last alone */
#define CK_DIMS(least, most) ((unsigned)(least) << 16 | (unsigned)(most) << 20)

#endif
