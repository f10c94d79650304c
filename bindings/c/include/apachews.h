/* libapachews: the producer's library of apachews, in C.
 *
 * A program listens on a Unix socket that is a .ws file in Apache's document root, and
 * Apache bridges every WebSocket that requests this file to it.  This header is the whole
 * interface; docs/reference/c.md explains it with examples, docs/reference/wire.md the protocol underneath.
 *
 *     apachews_server *server = apachews_server_open(path, NULL, &error);
 *     apachews_event event;
 *     while (apachews_server_next(server, -1, &event))
 *         if (event.kind == APACHEWS_MESSAGE)
 *             apachews_send(event.client, event.type, event.data, event.length);
 *     apachews_server_free(server);
 *
 * Threads.  One thread uses a server and its clients; servers share nothing, so each can have
 * its own thread.  Only apachews_server_wake() may be called from any thread and from signal
 * handlers.
 *
 * Blocking.  Only apachews_server_next() waits, for at most its timeout, and
 * apachews_server_stop(), for at most a second.  If another program keeps a lock (flock(2)) on
 * the directory of the socket file, opening, draining and stopping take a second longer.
 *
 * Lifetimes.
 * - The pointers in an event are valid until the next apachews_server_next() of the server.
 * - A client is valid from its APACHEWS_OPEN until the apachews_server_next() after its
 *   APACHEWS_CLOSE.  apachews_client_keep() keeps it valid until apachews_client_release().
 *   Calls with a client that has ended do nothing and return false.
 * - A client's request, with everything in it, is valid as long as the client.
 * - apachews_server_free() ends all of these, except clients that are kept.
 * - Arguments are copied or sent before the call returns.
 *
 * Text is UTF-8 everywhere, and strings end with a NUL.
 */
#ifndef APACHEWS_H
#define APACHEWS_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef APACHEWS_API
#define APACHEWS_API __attribute__((visibility("default")))
#endif

#define APACHEWS_VERSION "0.1.0"

typedef struct apachews_server apachews_server;
typedef struct apachews_client apachews_client;

/* Why a call with an apachews_error argument failed. */
typedef enum apachews_error_code {
    APACHEWS_NO_ERROR = 0,
    APACHEWS_SYSTEM_ERROR,  /* of the operating system: number is errno */
    APACHEWS_PATH_TOO_LONG, /* the path of a Unix socket has at most 107 bytes */
    APACHEWS_NOT_A_SOCKET,  /* the path is another kind of file, which is left alone */
    APACHEWS_IN_USE,        /* with exclusive: another producer listens there */
    APACHEWS_NO_GROUP,      /* options.group does not exist */
    APACHEWS_NOT_ASKED,     /* Apache accepts clients itself: see apachews_accept() */
    APACHEWS_NOT_WAITING,   /* Apache does not wait for an answer (any more) */
    APACHEWS_BAD_ANSWER     /* the answer is invalid */
} apachews_error_code;

typedef struct apachews_error {
    apachews_error_code code;
    int number;     /* errno if code is APACHEWS_SYSTEM_ERROR; else 0 */
    char text[400]; /* for people: what was wrong, and what to do */
} apachews_error;

/* How to listen.  Zero is the default of every member, also of members that are added later. */
typedef struct apachews_options {
    /* Permissions of the socket file; default 0660.  Apache's user needs write permission. */
    unsigned mode;
    /* Name or number of the file's group; NULL: the process's group. */
    const char *group;
    /* The longest message of a client; default 16 MiB.  A longer one closes it with 1009. */
    size_t max_message_bytes;
    /* The limit of a client's send queue; default 4 MiB.  Sending to a client whose queue is
     * longer closes it with 1013.  A client whose queue is longer than half of the limit is not
     * read from, so that a program that answers each message slows a client down instead of
     * losing it. */
    size_t max_queue_bytes;
    /* Fail if another producer listens on the path, instead of replacing it. */
    bool exclusive;
    void *reserved[4];
} apachews_options;

/* The type of a message; the values are the opcodes of RFC 6455. */
typedef enum apachews_type { APACHEWS_TEXT = 1, APACHEWS_BINARY = 2 } apachews_type;

typedef enum apachews_kind {
    /* The timeout passed without an event. */
    APACHEWS_TIMEOUT = 0,
    /* apachews_server_wake() was called, a signal handler ran, or the process was stopped and
     * continued: check for other work. */
    APACHEWS_WAKE,
    /* A client connected, or waits to be accepted: apachews_request.answer_required. */
    APACHEWS_OPEN,
    /* A message: type, data, length. */
    APACHEWS_MESSAGE,
    /* The client answered apachews_ping(): latency_s. */
    APACHEWS_PONG,
    /* The connection has ended: code, reason.  Exactly one per client, its last event.
     * Code 1006: the connection broke off; 1005: the client closed without a code; 1012: the
     * client moved to the next producer (apachews_server_drain()), and messages can be sent to
     * it until the next apachews_server_next(). */
    APACHEWS_CLOSE,
    /* A peer connected that does not follow docs/reference/wire.md: code, reason; client is NULL. */
    APACHEWS_INVALID,
    /* The server itself has an error: code is errno, reason the text; client is NULL.  The
     * server continues, unless the reason says that it has stopped. */
    APACHEWS_ERROR
} apachews_kind;

typedef struct apachews_event {
    apachews_kind kind;
    apachews_type type;      /* MESSAGE */
    apachews_client *client; /* NULL for the kinds without a client */
    const char *data;        /* MESSAGE; followed by a NUL that length does not count */
    size_t length;
    int code;           /* CLOSE, INVALID, ERROR */
    const char *reason; /* of the same kinds; never NULL */
    double latency_s;   /* PONG: seconds from the ping to its answer */
} apachews_event;

/* A header or a variable.  A value may contain a NUL: length counts all of its bytes. */
typedef struct apachews_pair {
    const char *name;
    const char *value;
    size_t length;
} apachews_pair;

/* The HTTP request of a client, as Apache reports it: OPEN in docs/reference/wire.md. */
typedef struct apachews_request {
    const char *id; /* unique; stays the same when the client is resumed */
    const char *method;
    const char *uri;          /* path and query of the request line, undecoded */
    const char *rewritten_query; /* the query if Apache changed it (RewriteRule), or NULL */
    const char *scheme;       /* "ws" or "wss" */
    const char *vhost;        /* ServerName */
    const char *user;         /* REMOTE_USER, or NULL */
    const char *subprotocol;  /* the one that Apache chose, or NULL */
    const char *remote_host;  /* address of the client */
    const char *local_host;   /* address of Apache */
    int remote_port;          /* 0: unknown (RemoteIPHeader) */
    int local_port;
    /* With wss: the names that OpenSSL gives.  NULL with ws, and if the client sent none. */
    const char *tls_version;
    const char *tls_cipher;
    const char *tls_server_name;
    const char *tls_client_subject;
    const apachews_pair *headers; /* names in lower case */
    size_t header_count;
    const char *const *offered; /* subprotocols */
    size_t offered_count;
    const apachews_pair *env; /* the variables that APACHEWS_PASS_ENV lists */
    size_t env_count;
    bool resumed;         /* another producer had this client before */
    bool answer_required; /* APACHEWS_ACCEPT producer: accept or reject the client */
} apachews_request;

/* How many clients a message was sent to or queued for; and how many were skipped: they had
 * ended, were being closed, or were closed by this message with 1013. */
typedef struct apachews_delivery {
    size_t reached;
    size_t skipped;
} apachews_delivery;

/* The version of the loaded library: APACHEWS_VERSION of its own header. */
APACHEWS_API const char *apachews_version(void);

/* ---- The server ---- */

/* Listen on a socket file.
 *
 * The file of a producer that has died is replaced.  The file of a live producer is replaced
 * without a gap: new clients connect here, the other producer keeps its clients.  If systemd
 * has created the socket (LISTEN_FDS), that socket is used, and its file is left alone.
 *
 * options NULL: the defaults.  Returns NULL on failure, and sets *error unless error is NULL.
 */
APACHEWS_API apachews_server *apachews_server_open(const char *path,
                                                   const apachews_options *options,
                                                   apachews_error *error);

/* Wait for the next event, at most timeout_ms milliseconds; 0: do not wait, -1: no timeout.
 *
 * True: *event is the event.  False: the server is stopped or drained, and all events were
 * delivered; free it. */
APACHEWS_API bool apachews_server_next(apachews_server *server, int timeout_ms,
                                       apachews_event *event);

/* Make apachews_server_next() return APACHEWS_WAKE, at once if it is waiting.  For any thread
 * and signal handlers; the server must not be freed at the same time. */
APACHEWS_API void apachews_server_wake(apachews_server *server);

/* A file descriptor for the program's own event loop: readable when the server has work, which
 * is not always an event.  Call apachews_server_next(server, 0, …) until it returns
 * APACHEWS_TIMEOUT: when the descriptor is readable, after at most apachews_server_timeout()
 * milliseconds (-1: no limit), and after other calls with the server or its clients. */
APACHEWS_API int apachews_server_fd(const apachews_server *server);
APACHEWS_API int apachews_server_timeout(const apachews_server *server);

/* Move every client to the next producer, without losing messages.
 *
 * Returns at once; continue to call apachews_server_next() until it returns false.  The server
 * accepts no new clients, and removes the socket file if it is still its own.  Each client's
 * events continue until it has moved: its APACHEWS_CLOSE has code 1012.  After timeout_ms the
 * connections of the remaining clients are closed: Apache moves these too, but messages on
 * their way to this producer, and messages queued for slow clients, are lost.  If no producer
 * listens, Apache holds the clients for APACHEWS_HOLD.  A second call does nothing. */
APACHEWS_API void apachews_server_drain(apachews_server *server, int timeout_ms);

/* Close every client with 1001, and remove the socket file if it is still this server's.
 * Waits at most a second for queued messages to be sent.  Each client's APACHEWS_CLOSE follows.
 * A second call does nothing. */
APACHEWS_API void apachews_server_stop(apachews_server *server);

/* Stop the server and free it; NULL does nothing. */
APACHEWS_API void apachews_server_free(apachews_server *server);

/* Store at most capacity of the clients that are connected and accepted, the oldest first;
 * return their total.  apachews_server_clients(server, NULL, 0) only counts. */
APACHEWS_API size_t apachews_server_clients(apachews_server *server, apachews_client **clients,
                                            size_t capacity);

/* ---- Sending ---- */

/* Send a message; never waits.  True: sent, or queued for a slow client.  False, and errno:
 * EPIPE   the client has ended, is being closed or is not accepted yet;
 * ENOBUFS more than max_queue_bytes are queued: this call closes the client with 1013;
 * EILSEQ  a text that is not UTF-8; nothing is sent;
 * EINVAL  an unknown type;
 * ENOMEM  no memory for the queue: this call ends the connection, and its APACHEWS_CLOSE has
 *         code 1011.  (Apache gets no CLOSE and handles it like the death of the producer.) */
APACHEWS_API bool apachews_send(apachews_client *client, apachews_type type, const void *data,
                                size_t length);

/* Send a string as text. */
APACHEWS_API bool apachews_send_text(apachews_client *client, const char *text);

/* Whether data is UTF-8 and can be sent as text. */
APACHEWS_API bool apachews_is_utf8(const void *data, size_t length);

/* Send a PING; the client's answer is APACHEWS_PONG with the latency.  (Apache also pings every
 * client.)  Returns false and sets errno like apachews_send(). */
APACHEWS_API bool apachews_ping(apachews_client *client);

/* Close the connection; an APACHEWS_CLOSE follows.  Queued messages are sent first, within
 * 10 s.  Code: 1000-1003, 1007-1014 or 3000-4999; reason: at most 123 bytes of UTF-8, or NULL.
 * A client that is not accepted yet is rejected with 503.
 * False: errno is EINVAL for an invalid code or reason, EPIPE for a client that has ended or is
 * being closed. */
APACHEWS_API bool apachews_close(apachews_client *client, int code, const char *reason);

/* Send a message to every client.  errno is EILSEQ, EINVAL or ENOMEM if it was not sent at all,
 * else 0. */
APACHEWS_API apachews_delivery apachews_broadcast(apachews_server *server, apachews_type type,
                                                  const void *data, size_t length);

/* ---- Accepting clients: with SetEnv APACHEWS_ACCEPT producer ----
 *
 * request->answer_required is true then.  Until the producer answers, the client has no HTTP
 * response, and messages cannot be sent to it. */

/* Accept the client, with one of the subprotocols it offered or NULL, and with headers for the
 * response (pair.length is ignored).  On failure returns false and sets *error unless error is
 * NULL: the answer is invalid, or Apache does not wait for it: the client was answered, the wait
 * timed out (APACHEWS_CONNECT_TIMEOUT, 5 s), or Apache accepts clients itself. */
APACHEWS_API bool apachews_accept(apachews_client *client, const char *subprotocol,
                                  const apachews_pair *headers, size_t header_count,
                                  apachews_error *error);

/* Reject the client with an HTTP response: status 300 to 599, body a text or NULL.  An
 * APACHEWS_CLOSE follows.  Fails like apachews_accept(). */
APACHEWS_API bool apachews_reject(apachews_client *client, int status, const char *body,
                                  const apachews_pair *headers, size_t header_count,
                                  apachews_error *error);

/* ---- Groups: rooms, channels, topics ----
 *
 * A group exists as long as it has a member; a client leaves its groups when its connection
 * ends. */

/* Add a client to a group; true also if it is a member already.  False: errno is EPIPE for a
 * client that has ended, or ENOMEM. */
APACHEWS_API bool apachews_group_join(apachews_client *client, const char *group);
/* Remove a client from a group; false if it is not a member. */
APACHEWS_API bool apachews_group_leave(apachews_client *client, const char *group);
/* Send a message to every member of a group (NULL: to every client), but not to exclude, which
 * may be NULL; errno like apachews_broadcast(). */
APACHEWS_API apachews_delivery apachews_group_send(apachews_server *server, const char *group,
                                                   apachews_type type, const void *data,
                                                   size_t length, const apachews_client *exclude);
/* Store at most capacity members, in the order of joining; return their total. */
APACHEWS_API size_t apachews_group_members(apachews_server *server, const char *group,
                                           apachews_client **members, size_t capacity);

/* ---- A client ---- */

APACHEWS_API const apachews_request *apachews_client_request(const apachews_client *client);
/* A request header by its name, case-insensitive; a variable by its name; NULL: not found. */
APACHEWS_API const char *apachews_request_header(const apachews_request *request,
                                                 const char *name);
APACHEWS_API const char *apachews_request_env(const apachews_request *request, const char *name);
/* Store the first variable of this name in the URI's query, decoded and truncated like
 * snprintf(3); return its full length, or -1 if it is not in the query.  The value is untrusted:
 * it may be invalid UTF-8 and may contain a NUL. */
APACHEWS_API long apachews_request_query(const apachews_request *request, const char *name,
                                         char *value, size_t capacity);
/* A pointer of the program's own for each client; NULL at first. */
APACHEWS_API void *apachews_client_data(const apachews_client *client);
APACHEWS_API void apachews_client_set_data(apachews_client *client, void *data);
/* Whether messages cannot be sent any more: the client has ended or is being closed. */
APACHEWS_API bool apachews_client_has_ended(const apachews_client *client);
/* Bytes that wait to be sent to the client, without those in the kernel and in Apache.  Clients of
 * one Apache child can share a queue, whose bytes count for each of them. */
APACHEWS_API size_t apachews_client_queued_bytes(const apachews_client *client);
/* Keep a client valid after its connection has ended, and release it; calls are counted. */
APACHEWS_API apachews_client *apachews_client_keep(apachews_client *client);
APACHEWS_API void apachews_client_release(apachews_client *client);

#ifdef __cplusplus
}
#endif

#endif
