/* A Python module whose only content is `table`, a capsule with the kernels of one instruction set. Before
 * this, define CK_ISA_NAME and CK_MODULE_INIT. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "table.h"

CK_TABLE(CK_ISA_NAME);

static int fill_module(PyObject *module) {
    PyObject *capsule = PyCapsule_New((void *)&table, CK_TABLE_CAPSULE, NULL);
    if (capsule == NULL) return -1;
    if (PyModule_AddObject(module, "table", capsule) < 0) {
        Py_DECREF(capsule);
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "isa_" CK_ISA_NAME, .m_slots = slots};

PyMODINIT_FUNC CK_MODULE_INIT(void) { return PyModuleDef_Init(&definition); }
