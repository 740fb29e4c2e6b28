/* The checks at the door. Messages name the op, the argument and both numbers; on success nothing is
 * allocated. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include "kernels.h"
#include "runtime.h"
#include "door_functions.h"

static int bf16_type_num = -1;  /* numpy's number for ml_dtypes.bfloat16, learnt from the first array of it */

/* numpy has no bfloat16: ml_dtypes registers one, which is known here by its name, so ml_dtypes is never
 * imported. */
static int is_bf16(PyArrayObject *array) {
    const int type_num = PyArray_TYPE(array);
    if (type_num == bf16_type_num) return 1;
    if (PyArray_ITEMSIZE(array) != 2 || type_num < NPY_USERDEF) return 0;
    PyObject *name = PyObject_GetAttrString((PyObject *)PyArray_DESCR(array), "name");
    const int yes = name != NULL && PyUnicode_Check(name)
        && PyUnicode_CompareWithASCIIString(name, "bfloat16") == 0;
    Py_XDECREF(name);
    PyErr_Clear();
    if (yes) bf16_type_num = type_num;
    return yes;
}

static const char *allowed_dtypes(unsigned allowed) {
    if ((allowed & CK_IS_REAL) == CK_IS_REAL) return "float32 or bfloat16";
    return allowed & CK_IS_F32 ? "float32" : allowed & CK_IS_BF16 ? "bfloat16" : allowed & CK_IS_U8 ? "uint8"
                                                                                             : "int32";
}

static int refuse(const char *op, const char *name, PyArrayObject *array, const char *problem,
                  const char *remedy) {
    PyObject *shape = PyObject_GetAttrString((PyObject *)array, "shape");
    PyObject *dtype = (PyObject *)PyArray_DESCR(array);
    if (shape != NULL)
        PyErr_Format(PyExc_ValueError, "[kernels.%s] %s has shape %R and dtype %S: %s. %s", op, name, shape,
                     dtype, problem, remedy);
    Py_XDECREF(shape);
    return -1;
}

int ck_take(ck_array *out, PyObject *object, const char *op, const char *name, unsigned allowed) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_ValueError, "[kernels.%s] %s is of type %s, not a numpy array. Pass a %s array.",
                     op, name, Py_TYPE(object)->tp_name, allowed_dtypes(allowed));
        return -1;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    const int type_num = PyArray_TYPE(array), dims = PyArray_NDIM(array);
    const int least = allowed >> 16 & 15, most = allowed >> 20 & 15;
    out->dtype = type_num == NPY_FLOAT32 ? CK_F32
               : type_num == NPY_INT32   ? CK_I32
               : type_num == NPY_UINT8   ? CK_U8
               : is_bf16(array)          ? CK_BF16
                                         : -1;
    if (out->dtype < 0 || !(allowed >> out->dtype & 1)) {
        char problem[80];
        snprintf(problem, sizeof problem, "the dtype must be %s", allowed_dtypes(allowed));
        return refuse(op, name, array, problem, "Convert it, or use the reference kernels for fp64.");
    }
    if (dims < least || dims > most) {
        char problem[80];
        if (least == most)
            snprintf(problem, sizeof problem, "it must have %d dimensions, not %d", least, dims);
        else
            snprintf(problem, sizeof problem, "it must have %d to %d dimensions, not %d", least, most, dims);
        return refuse(op, name, array, problem, "Reshape it.");
    }
    const int flags = PyArray_FLAGS(array);
    if (!(flags & NPY_ARRAY_ALIGNED) || !PyArray_ISNOTSWAPPED(array))
        return refuse(op, name, array, "it is not aligned or not in native byte order",
                      "Pass a copy made with np.array.");
    if ((allowed & CK_IS_WRITTEN) && !(flags & NPY_ARRAY_WRITEABLE))
        return refuse(op, name, array, "it is read-only, but it is an output", "Pass a writable array.");
    if ((allowed & CK_IS_PACKED) && !(flags & NPY_ARRAY_C_CONTIGUOUS))
        return refuse(op, name, array, "it must be C-contiguous",
                      "Pass a copy made with np.ascontiguousarray.");
    const npy_intp size = PyArray_ITEMSIZE(array);
    out->data = PyArray_DATA(array);
    out->dims = dims;
    for (int i = 0; i < dims; i++) {
        out->shape[i] = PyArray_DIM(array, i);
        const npy_intp stride = PyArray_STRIDE(array, i);
        if (stride % size != 0)
            return refuse(op, name, array, "a stride is no multiple of the element's size",
                          "Pass a copy made with np.array.");
        out->stride[i] = stride / size;
    }
    if (dims > 0 && out->stride[dims - 1] != 1 && out->shape[dims - 1] > 1 && PyArray_SIZE(array) > 0)
        return refuse(op, name, array, "its last dimension must be contiguous",
                      "Pass a copy made with np.ascontiguousarray.");
    return 0;
}

int ck_match(const ck_array *array, const char *op, const char *name, int axis, int64_t wanted,
             const char *source) {
    if (array->shape[axis] == wanted) return 0;
    PyErr_Format(PyExc_ValueError,
                 "[kernels.%s] %s has %lld elements along axis %d, but %s asks for %lld. Pass %s with %lld.",
                 op, name, (long long)array->shape[axis], axis, source, (long long)wanted, name,
                 (long long)wanted);
    return -1;
}

int ck_same_dtype(const ck_array *array, const char *op, const char *name, const ck_array *other,
                  const char *other_name) {
    static const char *const names[] = {"float32", "bfloat16", "int32", "uint8"};
    if (array->dtype == other->dtype) return 0;
    PyErr_Format(PyExc_ValueError, "[kernels.%s] %s is %s, but %s is %s. Convert one of them.", op, name,
                 names[array->dtype], other_name, names[other->dtype]);
    return -1;
}

int ck_in_range(const ck_array *array, const char *op, const char *name, int64_t limit) {
    const int32_t *values = array->data;
    int32_t least = 0, most = -1;
    for (int64_t i = 0; i < array->shape[0]; i++) {
        least = values[i] < least ? values[i] : least;
        most = values[i] > most ? values[i] : most;
    }
    if (least >= 0 && most < limit) return 0;
    int64_t at = 0;
    while (values[at] >= 0 && values[at] < limit) at++;
    PyErr_Format(PyExc_ValueError,
                 "[kernels.%s] %s[%lld] is %d, outside [0, %lld). Check where the %s come from.", op, name,
                 (long long)at, (int)values[at], (long long)limit, name);
    return -1;
}

int ck_door_open(void) {
    import_array1(-1);
    return 0;
}
