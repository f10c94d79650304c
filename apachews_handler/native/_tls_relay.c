/* The extension _tls_relay: what Python calls of the relay; its docstrings are in _tls_relay.pyi.
 *
 * Contract: see native/tls_relay.py.  Built if there is a compiler, on the stable ABI.  What it
 * calls of OpenSSL are addresses that it is given: it is not linked with any libssl.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000 /* Python 3.10 */
#include <Python.h>

#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "_tls_relay.h"

static PyObject *py_open(PyObject *module, PyObject *args)
{
    void *addresses[sizeof(struct openssl) / sizeof(void *)];
    struct openssl functions;
    const size_t expected = sizeof addresses / sizeof *addresses;
    size_t i;

    (void)module;
    if ((size_t)PyTuple_Size(args) != expected)
        return PyErr_Format(PyExc_TypeError, "open() takes %zu arguments", expected);
    for (i = 0; i < expected; i++) {
        addresses[i] = PyLong_AsVoidPtr(PyTuple_GetItem(args, (Py_ssize_t)i));
        if (addresses[i] == NULL) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "function %zu is NULL", i);
            return NULL;
        }
    }
    memcpy(&functions, addresses, sizeof functions);
    if (relay_open(&functions) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong(relay_descriptor());
}

static PyObject *py_add(PyObject *module, PyObject *args)
{
    PyObject *address;
    struct client *client;
    void *ssl;
    int tcp, pair;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oii", &address, &tcp, &pair))
        return NULL;
    ssl = PyLong_AsVoidPtr(address);
    if (ssl == NULL || relay_descriptor() < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "the SSL is NULL, or open() was not called");
        return NULL;
    }
    client = relay_add(ssl, tcp, pair);
    return client ? PyLong_FromVoidPtr(client) : PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *py_start(PyObject *module, PyObject *handle)
{
    struct client *client = PyLong_AsVoidPtr(handle);

    (void)module;
    if (client == NULL)
        return NULL;
    relay_start(client);
    Py_RETURN_NONE;
}

static PyObject *py_withdraw(PyObject *module, PyObject *handle)
{
    struct client *client = PyLong_AsVoidPtr(handle);

    (void)module;
    if (client == NULL)
        return NULL;
    relay_withdraw(client);
    Py_RETURN_NONE;
}

static PyObject *py_turn(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    relay_turn(0);
    return PyLong_FromLong(relay_wait_ms(-1));
}

static PyObject *py_count(PyObject *module, PyObject *none)
{
    (void)module;
    (void)none;
    return PyLong_FromSize_t(relay_count());
}

static PyObject *py_descriptors(PyObject *module, PyObject *none)
{
    size_t room = 2 * relay_count(), found, i;
    int *fds = PyMem_Malloc(room * sizeof *fds + 1);
    PyObject *list;

    (void)module;
    (void)none;
    if (fds == NULL)
        return PyErr_NoMemory();
    found = relay_client_descriptors(fds, room);
    list = PyList_New((Py_ssize_t)found);
    for (i = 0; list && i < found; i++) {
        PyObject *fd = PyLong_FromLong(fds[i]);

        if (fd == NULL || PyList_SetItem(list, (Py_ssize_t)i, fd) < 0) {
            Py_DECREF(list);
            list = NULL;
        }
    }
    PyMem_Free(fds);
    return list;
}

static PyObject *py_run(PyObject *module, PyObject *args)
{
    int signals, is_stopping;

    (void)module;
    if (!PyArg_ParseTuple(args, "ip", &signals, &is_stopping))
        return NULL;
    if (relay_descriptor() < 0) {
        PyErr_SetString(PyExc_ValueError, "open() was not called");
        return NULL;
    }
    prctl(PR_SET_NAME, "apachews-relay", 0, 0, 0);
    /* From here on Python does not run in this process.  Its library's data has the type of
     * types. */
    cold_memory_store((uintptr_t)&PyType_Type);
    relay_run(signals, is_stopping);
    _exit(0);
}

static PyMethodDef methods[] = {
    {"open", py_open, METH_VARARGS, NULL},
    {"add", py_add, METH_VARARGS, NULL},
    {"start", py_start, METH_O, NULL},
    {"withdraw", py_withdraw, METH_O, NULL},
    {"turn", py_turn, METH_NOARGS, NULL},
    {"count", py_count, METH_NOARGS, NULL},
    {"descriptors", py_descriptors, METH_NOARGS, NULL},
    {"run", py_run, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_tls_relay", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__tls_relay(void)
{
    return PyModule_Create(&definition);
}
