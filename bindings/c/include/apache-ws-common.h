/* The interface of the first apachews in C, on top of libapachews.
 *
 * For programs that were written for that library: they compile unchanged, and are linked with
 * -lapachews.  New programs use apachews.h; a program can use both, because the clients are the
 * same.  docs/reference/c.md lists the differences.
 *
 * Lifetimes: the program owns an event until apachews_event_free().  A client is valid until the
 * program frees the event whose apachews_event_read() returned ApacheWSConnectionClosed and
 * requests the next one.
 */
#ifndef APACHE_WS_COMMON_H
#define APACHE_WS_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef APACHEWS_API
#define APACHEWS_API __attribute__((visibility("default")))
#endif

#ifndef EXPORT
#define EXPORT APACHEWS_API
#endif
/* Types, because a program may repeat a typedef; not if it defined a macro before. */
#ifndef SOCKET
typedef int SOCKET;
#endif
#ifndef BOOL
typedef bool BOOL;
#endif
#ifndef DWORD
typedef int32_t DWORD;
#endif
#ifndef INVALID_SOCKET
#define INVALID_SOCKET (-1)
#endif
#ifndef SOCKET_ERROR
#define SOCKET_ERROR (-1)
#endif
#ifndef SOCKET_DISCONNECTED
#define SOCKET_DISCONNECTED 0
#endif
#ifndef closesocket
#define closesocket(x) close(x)
#endif

enum apachews_event_type {
    ApacheWSInvalidEvent = 8000,
    ApacheWSAcceptEvent,
    ApacheWSIOEvent,
    /* Only for programs that define APACHEWS_CLOSE_EVENTS before they include this header;
     * others get an ApacheWSIOEvent, and read ApacheWSConnectionClosed from it. */
    ApacheWSCloseEvent
};

enum apachews_status {
    ApacheWSSuccess = 0,
    ApacheWSNoData = 1001, /* not used: an empty message is ApacheWSSuccess, length 0 */
    ApacheWSConnectionClosed,
    ApacheWSOutOfMemory,
    ApacheWSError,
    ApacheWSWouldBlock,
    ApacheWSOther
};

#ifndef __cplusplus
/* Integers, so that compilers do not warn about a switch that lacks a newer enumerator. */
typedef int apachews_event_type;
typedef int apachews_status;
#endif

typedef struct apachews_event apachews_event;
typedef struct apachews_context apachews_context;
typedef struct apachews_client apachews_client;
typedef struct apachews_stream apachews_stream;

/* Listen; NULL, with errno, on failure. */
APACHEWS_API apachews_context *apachews_create(const char *path);
APACHEWS_API apachews_context *apachews_create_with_close_events(const char *path);
#ifdef APACHEWS_CLOSE_EVENTS
#define apachews_create apachews_create_with_close_events
#endif
/* The server of the context, for the calls of apachews.h; do not stop or free it.  (This call
 * is an addition to the first interface.) */
APACHEWS_API struct apachews_server *apachews_context_server(const apachews_context *context);
/* Close the server and free the context. */
APACHEWS_API void apachews_context_free(apachews_context *context);
/* Close a client if it is not closed yet. */
APACHEWS_API void apachews_context_remove_client(apachews_context *context,
                                                 const apachews_client *client);

/* Wait for the next event; NULL after the last one, and on failure. */
APACHEWS_API apachews_event *apachews_server_next_event(apachews_context *context);
/* Send to every client; return the length, or -1. */
APACHEWS_API ssize_t apachews_server_broadcast(const apachews_context *context,
                                               const uint8_t *data, size_t length);
/* Close every client, and remove the socket file; return 0.  Signal handlers may call it: until
 * apachews_server_next_event() has returned NULL, it only sets a flag, and
 * apachews_server_next_event() or apachews_context_free() closes. */
APACHEWS_API int apachews_server_close(apachews_context *context);

APACHEWS_API const apachews_context *apachews_event_get_context(const apachews_event *event);
APACHEWS_API apachews_client *apachews_event_get_client(const apachews_event *event);
APACHEWS_API apachews_event_type apachews_event_get_type(const apachews_event *event);
APACHEWS_API void apachews_event_free(apachews_event *event);
/* Store a copy of the message, with a NUL after it; the caller frees it with free().  The length
 * is 0 for an empty message and for an event without a message. */
APACHEWS_API apachews_status apachews_event_read(const apachews_event *event, uint8_t **data,
                                                 size_t *length);
/* Send to the client of the event: as text if its message was text and data is UTF-8, else as
 * binary; return the length, or -1.  Length 0 sends an empty message, unless the event has no
 * message. */
APACHEWS_API ssize_t apachews_event_respond(const apachews_event *event, const uint8_t *data,
                                            size_t length);

/* Send to a client: as binary if its last message was binary or data is not UTF-8, else as
 * text; return the length, or -1. */
APACHEWS_API ssize_t apachews_client_send(const apachews_client *client, const void *data,
                                          size_t length);
/* Close the client with 1000; return 0, or -1 if it has ended already. */
APACHEWS_API int apachews_client_close(const apachews_client *client);
/* The preferred language of the browser, such as en-GB, or NULL. */
APACHEWS_API const char *apachews_client_get_language(const apachews_client *client);
/* The number of the client's file descriptor, to identify the client; the data on it is framed.
 * It does not change when the connection ends, and is not reused before the last event of this
 * client is freed. */
APACHEWS_API SOCKET apachews_client_get_socket(const apachews_client *client);
/* Close a client if it is not closed yet; the library frees its memory. */
APACHEWS_API void apachews_client_free(apachews_client *client);

/* A growing buffer.  The int results are 0, or -1 if memory is exhausted. */
APACHEWS_API apachews_stream *apachews_stream_new(void);
APACHEWS_API int apachews_stream_resize(apachews_stream *stream, size_t hint);
APACHEWS_API void apachews_stream_free(apachews_stream *stream);
APACHEWS_API int apachews_stream_append(apachews_stream *stream, const char *what,
                                        size_t length);
APACHEWS_API uint8_t *apachews_stream_data(const apachews_stream *stream);
APACHEWS_API size_t apachews_stream_length(const apachews_stream *stream);

/* Does nothing here. */
APACHEWS_API void apachews_initialize_os(void);

#ifdef __cplusplus
}
#endif

#endif
