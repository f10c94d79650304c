/* The interface of the first apachews in C, on top of libapachews.
 *
 * For programs that were written for that library: they compile as they stand, and are
 * linked with -lapachews.  New programs have apachews.h; a program may use both, as the
 * clients are the same.  docs/reference/c.md says what differs.
 *
 * Lifetimes: an event is the program's, until apachews_event_free().  A client lives until the
 * event whose apachews_event_read() gave ApacheWSConnectionClosed is freed and the next one
 * asked for.
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
/* Types, as the program may define the same ones again; or macros that it had before. */
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
    /* Given only to programs that define APACHEWS_CLOSE_EVENTS before they include this;
     * the others have an ApacheWSIOEvent, and read ApacheWSConnectionClosed from it. */
    ApacheWSCloseEvent
};

enum apachews_status {
    ApacheWSSuccess = 0,
    ApacheWSNoData = 1001, /* never given: an empty message is ApacheWSSuccess, length 0 */
    ApacheWSConnectionClosed,
    ApacheWSOutOfMemory,
    ApacheWSError,
    ApacheWSWouldBlock,
    ApacheWSOther
};

#ifndef __cplusplus
/* Numbers, so that a switch need not name them all, whichever version it was written for. */
typedef int apachews_event_type;
typedef int apachews_status;
#endif

typedef struct apachews_event apachews_event;
typedef struct apachews_context apachews_context;
typedef struct apachews_client apachews_client;
typedef struct apachews_stream apachews_stream;

/* Listen; NULL, and errno, where it fails. */
APACHEWS_API apachews_context *apachews_create(const char *path);
APACHEWS_API apachews_context *apachews_create_with_close_events(const char *path);
#ifdef APACHEWS_CLOSE_EVENTS
#define apachews_create apachews_create_with_close_events
#endif
/* What is behind it, for the calls of apachews.h; not to be stopped or freed by itself.  (New
 * here.) */
APACHEWS_API struct apachews_server *apachews_context_server(const apachews_context *context);
/* Close, and give everything back. */
APACHEWS_API void apachews_context_free(apachews_context *context);
/* Close a client, where it is not closed yet. */
APACHEWS_API void apachews_context_remove_client(apachews_context *context,
                                                 const apachews_client *client);

/* Wait for the next event; NULL where there is none any more, and where it fails. */
APACHEWS_API apachews_event *apachews_server_next_event(apachews_context *context);
/* Send to every client; the length, or -1. */
APACHEWS_API ssize_t apachews_server_broadcast(const apachews_context *context,
                                               const uint8_t *data, size_t length);
/* Say goodbye to every client, and remove the socket file; 0.  It may be called by a signal
 * handler: before apachews_server_next_event() has returned NULL, it is that, or
 * apachews_context_free(), which does it, and the former returns NULL. */
APACHEWS_API int apachews_server_close(apachews_context *context);

APACHEWS_API const apachews_context *apachews_event_get_context(const apachews_event *event);
APACHEWS_API apachews_client *apachews_event_get_client(const apachews_event *event);
APACHEWS_API apachews_event_type apachews_event_get_type(const apachews_event *event);
APACHEWS_API void apachews_event_free(apachews_event *event);
/* Give a copy of the message, which the caller frees with free(); a NUL follows it.  The length
 * is 0 for an empty message and for an event without one. */
APACHEWS_API apachews_status apachews_event_read(const apachews_event *event, uint8_t **data,
                                                 size_t *length);
/* Send to the client of the event: text where its message was text and this is UTF-8, else
 * binary; the length, or -1.  Length 0 sends an empty message, but nothing if the event has no
 * message. */
APACHEWS_API ssize_t apachews_event_respond(const apachews_event *event, const uint8_t *data,
                                            size_t length);

/* Send to a client: binary where that is what it sent last or where this is not UTF-8, else
 * text; the length, or -1. */
APACHEWS_API ssize_t apachews_client_send(const apachews_client *client, const void *data,
                                          size_t length);
/* Say goodbye (1000); 0, or -1 where it is gone already. */
APACHEWS_API int apachews_client_close(const apachews_client *client);
/* The language its browser prefers, as en-GB, or NULL. */
APACHEWS_API const char *apachews_client_get_language(const apachews_client *client);
/* The number of its descriptor, to tell clients apart; what passes there is framed.  It stays the
 * same when the connection ends, and no other client has it before the last event of this client
 * is freed. */
APACHEWS_API SOCKET apachews_client_get_socket(const apachews_client *client);
/* Close a client, where it is not closed yet; its memory is the library's to free. */
APACHEWS_API void apachews_client_free(apachews_client *client);

/* Bytes that grow.  0, or -1 where there is no memory. */
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
