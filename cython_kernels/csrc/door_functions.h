/* door.c's functions, for _runtime alone; the other modules reach them through ck_runtime. */
#ifndef CK_DOOR_FUNCTIONS_H
#define CK_DOOR_FUNCTIONS_H

#include <Python.h>

#include "door.h"

int ck_take(ck_array *out, PyObject *object, const char *op, const char *name, unsigned allowed);
int ck_match(const ck_array *array, const char *op, const char *name, int axis, int64_t wanted,
             const char *source);
int ck_same_dtype(const ck_array *array, const char *op, const char *name, const ck_array *other,
                  const char *other_name);
int ck_in_range(const ck_array *array, const char *op, const char *name, int64_t limit);
int ck_door_open(void);  /* imports numpy's C API; -1 with an exception set */

#endif
