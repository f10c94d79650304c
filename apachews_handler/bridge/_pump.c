/* The calls that every message needs, without an object of Python for each of them.
 *
 * Contract: pump.py describes the three functions.  Descriptors are non-blocking sockets of the
 * loop's thread, and nothing here blocks: each call has MSG_DONTWAIT, and MSG_NOSIGNAL against
 * SIGPIPE.  Built if there is a compiler, on the stable ABI.
 *
 * relay_client and relay_producer keep the GIL, because a release costs as much as a short call.
 * That also protects the buffers, which all calls share: while one of them is in use, only bytes
 * and ints are created.  (An exception or a tuple may begin a garbage collection, and finalizers
 * run Python code, which passes the GIL on.)  send_to_all releases the GIL: it takes milliseconds,
 * and touches no object of Python meanwhile.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030a0000 /* Python 3.10 */
#include <Python.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#define FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL)
/* A message of 64 KiB with its header; APACHEWS_MAX_BUFFER may be longer, and is read in parts. */
#define BUFFER_BYTES (65536 + 14)
/* Clients of one send_to_all: a millisecond or so. */
#define MAX_FDS 1024
/* A read with more frames is left to Python, which divides the turn between busy clients. */
#define MAX_FRAMES 16
#define WHOLE_TEXT 0x81
#define WHOLE_BINARY 0x82
#define MASKED 0x80
#define SKIPPED (-2)

static unsigned char input[BUFFER_BYTES], output[BUFFER_BYTES];

static PyObject *send_to_all(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    char *fds, *frame;
    Py_ssize_t fds_bytes, length, number, index, found = 0, at;
    ssize_t sent;
    int fd;
    int late[MAX_FDS];
    ssize_t taken[MAX_FDS];
    PyObject *result, *item;

    (void)module;
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "send_to_all() takes 2 arguments (%zd given)", count);
        return NULL;
    }
    if (PyBytes_AsStringAndSize(args[0], &fds, &fds_bytes) < 0 ||
        PyBytes_AsStringAndSize(args[1], &frame, &length) < 0)
        return NULL;
    number = fds_bytes / (Py_ssize_t)sizeof(int);
    if (fds_bytes % (Py_ssize_t)sizeof(int) || number > MAX_FDS) {
        PyErr_Format(PyExc_ValueError, "fds must be at most %d ints, not %zd bytes", MAX_FDS,
                     fds_bytes);
        return NULL;
    }
    /* The caller's references keep both bytes objects, which never change. */
    Py_BEGIN_ALLOW_THREADS
    for (index = 0; index < number; index++) {
        memcpy(&fd, fds + index * (Py_ssize_t)sizeof(int), sizeof fd);
        if (fd < 0) {
            sent = SKIPPED;
        } else {
            sent = send(fd, frame, (size_t)length, FLAGS);
            if (sent == length)
                continue;
            if (sent < 0)
                sent = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
        }
        late[found] = (int)index;
        taken[found++] = sent;
    }
    Py_END_ALLOW_THREADS
    result = PyList_New(2 * found);
    if (result == NULL)
        return NULL;
    for (at = 0; at < 2 * found; at++) {
        item = PyLong_FromSsize_t(at % 2 ? (Py_ssize_t)taken[at / 2] : (Py_ssize_t)late[at / 2]);
        if (item == NULL) {
            Py_DECREF(result);
            return NULL;
        }
        PyList_SetItem(result, at, item); /* steals item; cannot fail for a new list */
    }
    return result;
}

/* Read the arguments: two descriptors and two sizes, all ints. */
static int read_arguments(const char *name, PyObject *const *args, Py_ssize_t count, long *values)
{
    Py_ssize_t at;

    if (count != 4) {
        PyErr_Format(PyExc_TypeError, "%s() takes 4 arguments (%zd given)", name, count);
        return -1;
    }
    for (at = 0; at < 4; at++) {
        values[at] = PyLong_AsLong(args[at]);
        if (values[at] == -1 && PyErr_Occurred())
            return -1;
    }
    return 0;
}

/* Receive into ``input``; return how many bytes, or set what the function returns instead. */
static ssize_t receive(long fd, long size, PyObject **instead)
{
    ssize_t length = -1;

    if (size > BUFFER_BYTES)
        size = BUFFER_BYTES;
    if (size > 0)
        length = recv((int)fd, input, (size_t)size, MSG_DONTWAIT);
    else
        errno = EAGAIN; /* 0 bytes would look like the end of file */
    *instead = NULL;
    if (length < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        Py_INCREF(Py_None);
        *instead = Py_None;
    } else if (length <= 0) {
        *instead = PyBytes_FromStringAndSize(NULL, 0);
    }
    return length;
}

/* Send; return the numbers of messages and bytes as one int, or with what was not sent. */
static PyObject *forward(long fd, const unsigned char *data, Py_ssize_t length, int64_t messages,
                         int64_t payload_bytes)
{
    ssize_t sent = send((int)fd, data, (size_t)length, FLAGS);
    int64_t counts = messages << 32 | payload_bytes;
    PyObject *rest;

    if (sent == length)
        return PyLong_FromLongLong(counts);
    if (sent < 0)
        sent = 0; /* the caller sends again, and handles the error */
    rest = PyBytes_FromStringAndSize((const char *)data, length); /* before the tuple: see above */
    if (rest == NULL)
        return NULL;
    return Py_BuildValue("(LNn)", (long long)counts, rest, (Py_ssize_t)sent);
}

/* Unmask into ``to``; return whether any byte is not ASCII. */
static int unmask(unsigned char *to, const unsigned char *from, Py_ssize_t length,
                  const unsigned char *mask)
{
    uint64_t key, word, all = 0;
    unsigned char rest = 0;
    Py_ssize_t at = 0;

    memcpy(&key, mask, 4);
    memcpy((char *)&key + 4, mask, 4);
    for (; at + 8 <= length; at += 8) {
        memcpy(&word, from + at, 8);
        word ^= key;
        all |= word;
        memcpy(to + at, &word, 8);
    }
    for (; at < length; at++) {
        to[at] = from[at] ^ mask[at % 4];
        rest |= to[at];
    }
    return (all & UINT64_C(0x8080808080808080)) != 0 || (rest & 0x80) != 0;
}

/* Tell whether text is UTF-8 (RFC 3629 4.). */
static int is_utf8(const unsigned char *text, Py_ssize_t length)
{
    Py_ssize_t at = 0, more;
    unsigned char first, low, high;

    while (at < length) {
        first = text[at++];
        if (first < 0x80)
            continue;
        if (first < 0xC2 || first > 0xF4)
            return 0;
        more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
        if (more > length - at)
            return 0;
        /* The second byte excludes longer forms, surrogates and what is above U+10FFFF. */
        low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
        high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
        for (; more > 0; more--, at++) {
            if (text[at] < low || text[at] > high)
                return 0;
            low = 0x80;
            high = 0xBF;
        }
    }
    return 1;
}

/* Read the header of a whole message that ends before ``end``; return the payload's position,
 * or 0 for anything else.  ``extra``: the bytes of the mask, 4 or 0. */
static Py_ssize_t read_header(Py_ssize_t at, Py_ssize_t end, Py_ssize_t extra, Py_ssize_t *size)
{
    Py_ssize_t payload_at = at + 2 + extra;
    int length;

    if (payload_at > end || (input[at] != WHOLE_TEXT && input[at] != WHOLE_BINARY))
        return 0;
    length = input[at + 1];
    if (((length & MASKED) != 0) != (extra != 0))
        return 0;
    length &= MASKED - 1;
    *size = length;
    if (length == 127)
        return 0;
    if (length == 126) {
        payload_at += 2;
        if (payload_at > end)
            return 0;
        *size = (Py_ssize_t)input[at + 2] << 8 | input[at + 3];
        if (*size < 126)
            return 0; /* not in its shortest form */
    }
    return *size <= end - payload_at ? payload_at : 0;
}

static PyObject *relay_client(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    long values[4];
    Py_ssize_t end, at = 0, to = 0, size = 0, payload_at, header;
    int64_t messages = 0, payload_bytes = 0;
    PyObject *instead;

    (void)module;
    if (read_arguments("relay_client", args, count, values) < 0)
        return NULL;
    end = receive(values[0], values[2], &instead);
    if (end <= 0)
        return instead;
    while (at < end) {
        payload_at = read_header(at, end, 4, &size);
        if (payload_at == 0 || size > values[3] || ++messages > MAX_FRAMES)
            return PyBytes_FromStringAndSize((char *)input, end);
        /* The header without the mask: 2 or 4 bytes.  So the output is shorter than the input. */
        header = payload_at - 4 - at;
        output[to] = input[at];
        output[to + 1] = input[at + 1] & (MASKED - 1);
        if (header == 4)
            memcpy(output + to + 2, input + at + 2, 2);
        to += header;
        if (unmask(output + to, input + payload_at, size, input + payload_at - 4) &&
            input[at] == WHOLE_TEXT && !is_utf8(output + to, size))
            return PyBytes_FromStringAndSize((char *)input, end);
        to += size;
        at = payload_at + size;
        payload_bytes += size;
    }
    return forward(values[1], output, to, messages, payload_bytes);
}

static PyObject *relay_producer(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    long values[4];
    Py_ssize_t end, at = 0, size = 0, payload_at;
    int64_t messages = 0, payload_bytes = 0;
    PyObject *instead;

    (void)module;
    if (read_arguments("relay_producer", args, count, values) < 0)
        return NULL;
    end = receive(values[0], values[2], &instead);
    if (end <= 0)
        return instead;
    while (at < end) {
        payload_at = read_header(at, end, 0, &size);
        if (payload_at == 0 || size > values[3] || ++messages > MAX_FRAMES)
            return PyBytes_FromStringAndSize((char *)input, end);
        at = payload_at + size;
        payload_bytes += size;
    }
    return forward(values[1], input, end, messages, payload_bytes);
}

#define FAST(function) (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL

static PyMethodDef methods[] = {
    {"send_to_all", FAST(send_to_all)},
    {"relay_client", FAST(relay_client)},
    {"relay_producer", FAST(relay_producer)},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_pump", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__pump(void)
{
    return PyModule_Create(&definition);
}
