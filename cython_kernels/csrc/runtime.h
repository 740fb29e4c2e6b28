/* What the _runtime module lends to the modules of the ops, in a capsule: the table in force, the pool,
 * the checks. */
#ifndef CK_RUNTIME_H
#define CK_RUNTIME_H

#include <Python.h>

#include "kernels.h"
#include "door.h"

typedef struct {
    const ck_table *table;  /* set by load(); the last one loaded wins */
    /* Run kernel(args) on a team as large as `work` is worth; `size` is that of the struct of arguments. */
    void (*run)(ck_kernel kernel, const void *args, size_t size, int64_t work);
    /* Describe `object`, the argument `name` of `op`. 0, or -1 with a ValueError set. */
    int (*take)(ck_array *array, PyObject *object, const char *op, const char *name, unsigned allowed);
    /* Dimension `axis` of `array` must be `wanted`, which comes from `source`. */
    int (*match)(const ck_array *array, const char *op, const char *name, int axis, int64_t wanted,
                 const char *source);
    /* The two arrays must share a dtype. */
    int (*same_dtype)(const ck_array *array, const char *op, const char *name, const ck_array *other,
                      const char *other_name);
    /* All of a 1-dimensional int32 array must be in [0, limit). */
    int (*in_range)(const ck_array *array, const char *op, const char *name, int64_t limit);
} ck_runtime;

#endif
