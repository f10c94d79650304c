/* libapachews: the producer's library of apachews, in C.
 *
 * A program listens on a Unix socket that is a .ws file in Apache's document root, and
 * Apache bridges every WebSocket that asks for that file to it.  This header is all of
 * the interface; docs/reference/c.md has it with examples, docs/reference/wire.md what passes underneath.
 *
 *     apachews_server *server = apachews_server_open(path, NULL, &error);
 *     apachews_event event;
 *     while (apachews_server_next(server, -1, &event))
 *         if (event.kind == APACHEWS_MESSAGE)
 *             apachews_send(event.client, event.type, event.data, event.length);
 *     apachews_server_free(server);
 *
 * Threads.  A server and its clients are for one thread; servers share nothing, so several of
 * them can have a thread each.  apachews_server_wake() alone is for any
 * thread, and for signal handlers.
 *
 * Blocking.  Nothing waits but apachews_server_next(), for as long as it was told to,
 * and apachews_server_stop(), for at most a second.  Where another program keeps a lock
 * (flock(2)) on the directory of the socket file, to open, to drain and to stop take a second
 * more.
 *
 * Lifetimes.
 * - What an event points to lives until the next apachews_server_next() of the server.
 * - A client lives from its APACHEWS_OPEN until the apachews_server_next() that follows
 *   its APACHEWS_CLOSE.  Whoever wants to hold it for longer says
 *   apachews_client_keep(), and apachews_client_release() in the end; whatever is called
 *   with a client that has ended does nothing, and says so by returning false.
 * - What was asked of a client (its request and everything in that) lives as long as it.
 * - apachews_server_free() ends all of these, but for clients that are kept.
 * - What is passed in is copied or sent before the call returns.
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

/* What went wrong with a call that has one of these. */
typedef enum apachews_error_code {
    APACHEWS_NO_ERROR = 0,
    APACHEWS_SYSTEM_ERROR,  /* of the operating system: number says which */
    APACHEWS_PATH_TOO_LONG, /* a Unix socket's has at most 107 bytes */
    APACHEWS_NOT_A_SOCKET,  /* the path holds something else, which is left alone */
    APACHEWS_IN_USE,        /* with exclusive: another producer listens there */
    APACHEWS_NO_GROUP,      /* there is no group of that name */
    APACHEWS_NOT_ASKED,     /* Apache accepts by itself: see apachews_accept() */
    APACHEWS_NOT_WAITING,   /* nobody waits for the answer any more */
    APACHEWS_BAD_ANSWER     /* an answer that may not be sent */
} apachews_error_code;

typedef struct apachews_error {
    apachews_error_code code;
    int number;     /* errno, where code is APACHEWS_SYSTEM_ERROR; else 0 */
    char text[400]; /* what was wrong, and what to do: for people */
} apachews_error;

/* How to listen; all zero is the default.  Members that are added later will be so as well. */
typedef struct apachews_options {
    /* Permissions of the socket file, 0660; Apache's user needs the right to write. */
    unsigned mode;
    /* Name or number of the group that the file is given to, or NULL to leave it. */
    const char *group;
    /* The longest message taken, 16 MiB; a client that sends more is closed with 1009. */
    size_t max_message_bytes;
    /* What may wait for a client that does not read, 4 MiB; one for whom more waits when
     * another message is sent is closed with 1013.  One for whom half of it waits is not
     * read from, so that a program that answers what it is asked slows its clients down
     * instead of losing them. */
    size_t max_queue_bytes;
    /* Fail where another producer listens on the path, instead of taking it over. */
    bool exclusive;
    void *reserved[4];
} apachews_options;

/* What kind of message: the numbers are the opcodes of RFC 6455. */
typedef enum apachews_type { APACHEWS_TEXT = 1, APACHEWS_BINARY = 2 } apachews_type;

typedef enum apachews_kind {
    /* The time is over, and nothing has happened. */
    APACHEWS_TIMEOUT = 0,
    /* apachews_server_wake() was called; or a signal handler ran meanwhile, or the program was
     * stopped and continued: so look whether there is anything to do. */
    APACHEWS_WAKE,
    /* A client connected; or asks to: apachews_request.answer_required. */
    APACHEWS_OPEN,
    /* A message: type, data, length. */
    APACHEWS_MESSAGE,
    /* The client answered apachews_ping(): latency_s. */
    APACHEWS_PONG,
    /* The connection is gone: code, reason.  The last of every client, and there is
     * exactly one.  Code 1006: it broke off; 1005: the client gave none; 1012: it went to
     * the next producer (apachews_server_drain()), and can be sent to until the next
     * apachews_server_next(). */
    APACHEWS_CLOSE,
    /* Somebody connected who does not speak the wire: code, reason; there is no client. */
    APACHEWS_INVALID,
    /* Something is wrong with the server itself: code is errno, reason says what.  It
     * goes on; there is no client. */
    APACHEWS_ERROR
} apachews_kind;

typedef struct apachews_event {
    apachews_kind kind;
    apachews_type type;      /* MESSAGE */
    apachews_client *client; /* NULL where there is none */
    const char *data;        /* MESSAGE; a NUL follows it, which is not counted */
    size_t length;
    int code;           /* CLOSE, INVALID, ERROR */
    const char *reason; /* the same; never NULL */
    double latency_s;   /* PONG: seconds from the ping to its answer */
} apachews_event;

/* A header or a variable.  A value may hold a NUL: then length is more than strlen(). */
typedef struct apachews_pair {
    const char *name;
    const char *value;
    size_t length;
} apachews_pair;

/* What Apache says of a client; for OPEN of docs/reference/wire.md. */
typedef struct apachews_request {
    const char *id; /* unique; stays the same when the client is resumed */
    const char *method;
    const char *uri;          /* path and query as they stand in the request line */
    const char *rewritten_query; /* that Apache gave the request (RewriteRule), or NULL */
    const char *scheme;       /* "ws" or "wss" */
    const char *vhost;        /* ServerName */
    const char *user;         /* REMOTE_USER, or NULL */
    const char *subprotocol;  /* that Apache chose, or NULL */
    const char *remote_host;  /* address of the client */
    const char *local_host;   /* and of Apache */
    int remote_port;          /* 0: not known (RemoteIPHeader) */
    int local_port;
    /* With wss: OpenSSL's names.  NULL with ws, and where there is none. */
    const char *tls_version;
    const char *tls_cipher;
    const char *tls_server_name;
    const char *tls_client_subject;
    const apachews_pair *headers; /* names in lower case */
    size_t header_count;
    const char *const *offered; /* subprotocols */
    size_t offered_count;
    const apachews_pair *env; /* what APACHEWS_PASS_ENV names */
    size_t env_count;
    bool resumed;         /* another producer had this client before */
    bool answer_required; /* with APACHEWS_ACCEPT producer: accept or reject it */
} apachews_request;

/* Whom a message was sent to or queued for; and who was gone, being closed, or closed just
 * now with 1013. */
typedef struct apachews_delivery {
    size_t reached;
    size_t skipped;
} apachews_delivery;

/* The version of the library that is loaded: APACHEWS_VERSION of when it was built. */
APACHEWS_API const char *apachews_version(void);

/* ---- The server ---- */

/* Listen on a socket file.
 *
 * A file that a dead producer left is replaced.  One on which another producer listens is
 * taken over without a gap: new clients come here, the other keeps those it has.  Where
 * systemd has made the socket (LISTEN_FDS) that one is used, and its file left alone.
 *
 * options NULL: the defaults.  NULL where it fails; error, where it is not NULL, says why.
 */
APACHEWS_API apachews_server *apachews_server_open(const char *path,
                                                   const apachews_options *options,
                                                   apachews_error *error);

/* Wait for the next event, at most timeout_ms milliseconds; 0 does not wait, -1 waits for ever.
 *
 * True: *event says what happened.  False: the server was stopped or is drained, and all of
 * its events were taken; free it. */
APACHEWS_API bool apachews_server_next(apachews_server *server, int timeout_ms,
                                       apachews_event *event);

/* Have apachews_server_next() return APACHEWS_WAKE, at once where it waits.  For any
 * thread, and for signal handlers; the server must not be freed meanwhile. */
APACHEWS_API void apachews_server_wake(apachews_server *server);

/* A descriptor for a loop of one's own: readable when apachews_server_next(server, 0, …)
 * has something to do, which is not always an event.  Call that until it says
 * APACHEWS_TIMEOUT; also after at most apachews_server_timeout() milliseconds (-1: only when
 * readable), and after whatever else the program did with the server or its clients. */
APACHEWS_API int apachews_server_fd(const apachews_server *server);
APACHEWS_API int apachews_server_timeout(const apachews_server *server);

/* Hand every client on to the producer that listens next, losing nothing.
 *
 * Returns at once; go on with apachews_server_next() until it returns false.  No new client
 * comes, and the socket file is removed where it is still this server's.  Events go on until
 * a client has moved: that is its APACHEWS_CLOSE with code 1012.  Who is still here after
 * timeout_ms is left without a word: Apache hands these on as well, but what was on its way
 * to this producer is lost, and so is what waited for a client that is slow.  Where nobody
 * listens, Apache holds the clients for APACHEWS_HOLD.  Draining again does nothing. */
APACHEWS_API void apachews_server_drain(apachews_server *server, int timeout_ms);

/* Say goodbye to every client (1001), and remove the socket file if it is still this
 * server's.  Waits at most a second for the goodbyes to leave.  Each client still has its
 * APACHEWS_CLOSE.  Stopping again does nothing. */
APACHEWS_API void apachews_server_stop(apachews_server *server);

/* Stop, and give everything back; NULL does nothing. */
APACHEWS_API void apachews_server_free(apachews_server *server);

/* Store at most capacity clients, those that are connected and accepted, the oldest first;
 * return how many there are.  apachews_server_clients(server, NULL, 0) counts. */
APACHEWS_API size_t apachews_server_clients(apachews_server *server, apachews_client **clients,
                                            size_t capacity);

/* ---- Sending ---- */

/* Send a message; never waits.  True: sent, or queued for a client that is slow.  False, and
 * errno says why:
 * EPIPE   the client is gone, being closed or not accepted yet;
 * ENOBUFS more than max_queue_bytes wait for it: this cost it the connection, with 1013;
 * EILSEQ  a text that is not UTF-8; nothing was sent;
 * EINVAL  a type that is none;
 * ENOMEM  no memory to queue it: this cost it the connection, and its APACHEWS_CLOSE says 1011.
 *         (Apache, which is told nothing, takes it for one whose producer died.) */
APACHEWS_API bool apachews_send(apachews_client *client, apachews_type type, const void *data,
                                size_t length);

/* The same with a string. */
APACHEWS_API bool apachews_send_text(apachews_client *client, const char *text);

/* Whether it is UTF-8, and may be sent as text. */
APACHEWS_API bool apachews_is_utf8(const void *data, size_t length);

/* Ask for a sign of life: APACHEWS_PONG tells how long it took.  (Apache pings every client
 * by itself.)  False, and errno, as apachews_send(). */
APACHEWS_API bool apachews_ping(apachews_client *client);

/* Say goodbye; an APACHEWS_CLOSE follows.  What is queued goes first, as far as the client
 * takes it within 10 s.  Code: 1000-1003, 1007-1014 or 3000-4999; reason: at most 123 bytes of
 * UTF-8, or NULL.  To a client that was not accepted yet it is a reject with 503.
 * False: errno is EINVAL for a code or reason that may not be sent, EPIPE for a client that
 * is gone or being closed already. */
APACHEWS_API bool apachews_close(apachews_client *client, int code, const char *reason);

/* Send a message to every client.  Where it cannot go to anybody errno says why: EILSEQ, EINVAL
 * or ENOMEM; else it is 0. */
APACHEWS_API apachews_delivery apachews_broadcast(apachews_server *server, apachews_type type,
                                                  const void *data, size_t length);

/* ---- Where Apache leaves it to the producer whom to let in ----
 *
 * That is with SetEnv APACHEWS_ACCEPT producer, and request->answer_required tells.  Until it
 * is answered the client has no response, and nothing can be sent to it. */

/* Let the client in, with one of the subprotocols it offered or NULL, and with headers to add
 * to the response (pair.length is not looked at).  False, and *error unless error is NULL:
 * what was wrong with the answer; or nobody waits for it, as it was answered, Apache gave up
 * (APACHEWS_CONNECT_TIMEOUT, 5 s), or Apache lets in whoever comes. */
APACHEWS_API bool apachews_accept(apachews_client *client, const char *subprotocol,
                                  const apachews_pair *headers, size_t header_count,
                                  apachews_error *error);

/* Refuse it with an HTTP response: status 300 to 599, body a text or NULL.  An APACHEWS_CLOSE
 * follows.  False as apachews_accept(). */
APACHEWS_API bool apachews_reject(apachews_client *client, int status, const char *body,
                                  const apachews_pair *headers, size_t header_count,
                                  apachews_error *error);

/* ---- Groups: rooms, channels, topics ----
 *
 * A group is there as long as it has a member; a client leaves its groups by itself when its
 * connection ends. */

/* Become a member; again does nothing.  False: errno is EPIPE for a client that has ended,
 * ENOMEM. */
APACHEWS_API bool apachews_group_join(apachews_client *client, const char *group);
/* False where it was no member. */
APACHEWS_API bool apachews_group_leave(apachews_client *client, const char *group);
/* Send a message to every member, with group NULL to every client, but for one if except is not
 * NULL; errno as apachews_broadcast(). */
APACHEWS_API apachews_delivery apachews_group_send(apachews_server *server, const char *group,
                                                   apachews_type type, const void *data,
                                                   size_t length, const apachews_client *except);
/* Store at most capacity members, in the order in which they came; return how many there are. */
APACHEWS_API size_t apachews_group_members(apachews_server *server, const char *group,
                                           apachews_client **members, size_t capacity);

/* ---- A client ---- */

APACHEWS_API const apachews_request *apachews_client_request(const apachews_client *client);
/* A request header by its name in any case; a variable by its name; NULL where there is none. */
APACHEWS_API const char *apachews_request_header(const apachews_request *request,
                                                 const char *name);
APACHEWS_API const char *apachews_request_env(const apachews_request *request, const char *name);
/* A variable of the URI's query, decoded, the first of that name: stored as by snprintf(3),
 * and the length that it has is returned; -1 where there is none.  It is what a stranger
 * sent: it may be no UTF-8, and may hold a NUL. */
APACHEWS_API long apachews_request_query(const apachews_request *request, const char *name,
                                         char *value, size_t capacity);
/* The program's own: whatever it wants to know of a client; NULL at first. */
APACHEWS_API void *apachews_client_data(const apachews_client *client);
APACHEWS_API void apachews_client_set_data(apachews_client *client, void *data);
/* Whether nothing can be sent any more, because it is gone or being closed. */
APACHEWS_API bool apachews_client_has_ended(const apachews_client *client);
/* What waits for the client to read, beside what the kernel and Apache have. */
APACHEWS_API size_t apachews_client_queued_bytes(const apachews_client *client);
/* Hold a client for longer than its connection, and let go of it; calls are counted. */
APACHEWS_API apachews_client *apachews_client_keep(apachews_client *client);
APACHEWS_API void apachews_client_release(apachews_client *client);

#ifdef __cplusplus
}
#endif

#endif
