/* Unmasking (RFC 6455 5.3), eight bytes at a time; unmask_in_python in mask.py is the fallback.
 *
 * Contract: unmask(data: bytes, mask: bytes) -> bytes; the mask has four bytes, rotated
 * to the data's position in the payload.  The function keeps the GIL: a buffer of data takes
 * less time than a release of the GIL.  Built if there is a compiler, on the stable ABI.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000 /* Python 3.10 */
#include <Python.h>

#include <stdint.h>
#include <string.h>

static PyObject *unmask(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *data, *mask, *to;
    Py_ssize_t length, mask_length, at = 0;
    uint64_t key, word;
    PyObject *result;

    (void)module;
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "unmask() takes 2 arguments (%zd given)", count);
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &data, &length) < 0 ||
        PyBytes_AsStringAndSize(args[1], &mask, &mask_length) < 0)
        return NULL;
    if (mask_length != 4) {
        PyErr_Format(PyExc_ValueError, "mask must have 4 bytes, not %zd", mask_length);
        return NULL;
    }
    result = PyBytes_FromStringAndSize(NULL, length);
    if (result == NULL)
        return NULL;
    to = PyBytes_AsString(result);
    memcpy(&key, mask, 4);
    memcpy((char *)&key + 4, mask, 4);
    for (; at + 8 <= length; at += 8) {
        memcpy(&word, data + at, 8);
        word ^= key;
        memcpy(to + at, &word, 8);
    }
    for (; at < length; at++)
        to[at] = data[at] ^ mask[at % 4];
    return result;
}

static PyMethodDef methods[] = {
    {"unmask", (PyCFunction)(void (*)(void))unmask, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_mask", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__mask(void)
{
    return PyModule_Create(&definition);
}
