/* The interface of the first apachews in C: apache-ws-common.h, on top of apachews.h. */
#include "system.h"

#include "apache-ws-common.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <strings.h>

#include "client.h"
#include "language.h"
#include "utf8.h"

/* The smallest step by which a stream grows. */
#define STREAM_STEP 4096

struct apachews_context {
    apachews_server *server;
    bool gives_close_events;
    /* apachews_server_next_event() was called and has not returned NULL: a signal handler may
     * interrupt the library, so closing is deferred. */
    volatile sig_atomic_t is_running;
    volatile sig_atomic_t is_closing; /* the deferred close, perhaps set by a signal handler */
};

/* The apachews_event of the program: it owns the message and a reference to the client. */
struct original_event {
    apachews_event event;
    apachews_context *context;
    apachews_event_type type; /* stored: the context may be freed before the event */
    char message[];
};

struct apachews_stream {
    uint8_t *data;
    size_t length;
    size_t capacity;
};

static struct original_event *whole(const apachews_event *event)
{
    return (struct original_event *)(uintptr_t)event;
}

static apachews_client *writable(const apachews_client *client)
{
    return (apachews_client *)(uintptr_t)client;
}

#undef apachews_create

static apachews_context *create(const char *path, bool gives_close_events)
{
    static const int numbers[] = {
        [APACHEWS_PATH_TOO_LONG] = ENAMETOOLONG,
        [APACHEWS_NOT_A_SOCKET] = ENOTSOCK,
        [APACHEWS_IN_USE] = EADDRINUSE,
        [APACHEWS_BAD_ANSWER] = EINVAL,
    };
    apachews_error error;
    apachews_context *context = calloc(1, sizeof *context);
    if (context == NULL) {
        return NULL;
    }
    context->gives_close_events = gives_close_events;
    context->server = apachews_server_open(path, NULL, &error);
    if (context->server == NULL) {
        free(context);
        errno = error.number != 0 ? error.number : numbers[error.code];
        return NULL;
    }
    context->server->keeps_fds = true; /* such a program identifies clients by fd number */
    return context;
}

apachews_context *apachews_create(const char *path)
{
    return create(path, false);
}

apachews_context *apachews_create_with_close_events(const char *path)
{
    return create(path, true);
}

struct apachews_server *apachews_context_server(const apachews_context *context)
{
    return context->server;
}

void apachews_context_free(apachews_context *context)
{
    if (context != NULL) {
        apachews_server_free(context->server);
        free(context);
    }
}

void apachews_context_remove_client(apachews_context *context, const apachews_client *client)
{
    (void)context;
    apachews_client_close(client);
}

static apachews_event_type type_of(const apachews_context *context, const apachews_event *event)
{
    switch (event->kind) {
    case APACHEWS_OPEN:
        return ApacheWSAcceptEvent;
    case APACHEWS_CLOSE:
        return context->gives_close_events ? ApacheWSCloseEvent : ApacheWSIOEvent;
    default:
        return ApacheWSIOEvent;
    }
}

/* Copy an event for the program. */
static apachews_event *make_event(apachews_context *context, const apachews_event *event)
{
    struct original_event *made = calloc(1, sizeof *made + event->length + 1);
    if (made == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    made->event = *event;
    made->context = context;
    made->type = type_of(context, event);
    if (event->length > 0) {
        memcpy(made->message, event->data, event->length);
    }
    made->event.data = made->message;
    made->event.reason = "";
    apachews_client_keep(event->client);
    return &made->event;
}

apachews_event *apachews_server_next_event(apachews_context *context)
{
    apachews_event event;
    apachews_event *made = NULL;
    context->is_running = 1;
    while (made == NULL && !context->is_closing &&
           apachews_server_next(context->server, -1, &event)) {
        if (event.kind == APACHEWS_OPEN || event.kind == APACHEWS_MESSAGE ||
            event.kind == APACHEWS_CLOSE) {
            if (event.kind == APACHEWS_OPEN &&
                apachews_client_request(event.client)->answer_required) {
                /* The first interface has no call for accepting. */
                apachews_accept(event.client, NULL, NULL, 0, NULL);
            }
            made = make_event(context, &event);
            if (made == NULL) {
                break;
            }
        }
    }
    if (context->is_closing) {
        apachews_server_stop(context->server);
    }
    context->is_running = made != NULL;
    return made;
}

/* The type for a message of unspecified type. */
static apachews_type type_for(const apachews_client *client, bool is_utf8)
{
    return is_utf8 && !client->sends_binary ? APACHEWS_TEXT : APACHEWS_BINARY;
}

/* Send to each client as its own type. */
static bool broadcast_by_type(apachews_server *server, const uint8_t *data, size_t length)
{
    struct frame *frames[APACHEWS_BINARY + 1] = {NULL}; /* per type, one for all clients */
    bool has_memory = true;
    apachews_client *client = server->first;
    while (client != NULL && has_memory) {
        apachews_client *next = client->next;
        struct frame **frame = &frames[type_for(client, true)];
        if (*frame == NULL) {
            *frame = frame_new(WIRE_FIN | (int)type_for(client, true), data, length);
        }
        has_memory = *frame != NULL;
        if (has_memory && client->request != NULL) {
            /* A failure has its own close event. */
            client_send_frame(client, *frame);
        }
        client = next;
    }
    frame_release(frames[APACHEWS_TEXT]);
    frame_release(frames[APACHEWS_BINARY]);
    errno = has_memory ? 0 : ENOMEM;
    return has_memory;
}

ssize_t apachews_server_broadcast(const apachews_context *context, const uint8_t *data,
                                  size_t length)
{
    apachews_server *server = context->server;
    bool is_utf8 = utf8_is_valid(data, length);
    bool has_binary = false;
    for (apachews_client *client = server->first; client != NULL; client = client->next) {
        has_binary = has_binary || client->sends_binary;
    }
    if (is_utf8 && has_binary) {
        return broadcast_by_type(server, data, length) ? (ssize_t)length : -1;
    }
    /* One type for all clients: one message on each channel. */
    apachews_broadcast(server, is_utf8 ? APACHEWS_TEXT : APACHEWS_BINARY, data, length);
    return errno == 0 ? (ssize_t)length : -1;
}

int apachews_server_close(apachews_context *context)
{
    if (context->is_running) {
        context->is_closing = 1;
        apachews_server_wake(context->server);
    } else {
        apachews_server_stop(context->server);
    }
    return 0;
}

const apachews_context *apachews_event_get_context(const apachews_event *event)
{
    return whole(event)->context;
}

apachews_client *apachews_event_get_client(const apachews_event *event)
{
    return event->client;
}

apachews_event_type apachews_event_get_type(const apachews_event *event)
{
    return whole(event)->type;
}

void apachews_event_free(apachews_event *event)
{
    if (event != NULL) {
        apachews_client_release(event->client);
        free(whole(event));
    }
}

apachews_status apachews_event_read(const apachews_event *event, uint8_t **data, size_t *length)
{
    *data = NULL;
    *length = 0;
    if (event->kind == APACHEWS_CLOSE) {
        return ApacheWSConnectionClosed;
    }
    *data = malloc(event->length + 1);
    if (*data == NULL) {
        return ApacheWSOutOfMemory;
    }
    memcpy(*data, event->data, event->length + 1);
    *length = event->length;
    return ApacheWSSuccess;
}

static ssize_t send_as(apachews_client *client, apachews_type type, const void *data,
                       size_t length)
{
    return apachews_send(client, type, data, length) ? (ssize_t)length : -1;
}

ssize_t apachews_event_respond(const apachews_event *event, const uint8_t *data, size_t length)
{
    if (event->kind != APACHEWS_MESSAGE) {
        return length > 0 ? apachews_client_send(event->client, data, length) : 0;
    }
    bool is_text = event->type == APACHEWS_TEXT && utf8_is_valid(data, length);
    return send_as(event->client, is_text ? APACHEWS_TEXT : APACHEWS_BINARY, data, length);
}

ssize_t apachews_client_send(const apachews_client *client, const void *data, size_t length)
{
    apachews_type type = type_for(client, utf8_is_valid(data, length));
    return send_as(writable(client), type, data, length);
}

int apachews_client_close(const apachews_client *client)
{
    return apachews_close(writable(client), WIRE_NORMAL, "") ? 0 : -1;
}

const char *apachews_client_get_language(const apachews_client *client)
{
    const char *header = apachews_request_header(&client->request->facts, "accept-language");
    if (client->language == NULL && header != NULL) {
        writable(client)->language = preferred_language(header);
    }
    return client->language;
}

SOCKET apachews_client_get_socket(const apachews_client *client)
{
    return client->number;
}

void apachews_client_free(apachews_client *client)
{
    if (client != NULL) {
        apachews_client_close(client);
    }
}

apachews_stream *apachews_stream_new(void)
{
    return calloc(1, sizeof(apachews_stream));
}

int apachews_stream_resize(apachews_stream *stream, size_t hint)
{
    if (hint > SIZE_MAX - STREAM_STEP) {
        errno = ENOMEM;
        return -1;
    }
    size_t capacity = (hint / STREAM_STEP + 1) * STREAM_STEP;
    uint8_t *data = realloc(stream->data, capacity);
    if (data == NULL) {
        return -1;
    }
    stream->data = data;
    stream->capacity = capacity;
    if (stream->length > capacity) {
        stream->length = capacity;
    }
    return 0;
}

void apachews_stream_free(apachews_stream *stream)
{
    if (stream != NULL) {
        free(stream->data);
        free(stream);
    }
}

int apachews_stream_append(apachews_stream *stream, const char *what, size_t length)
{
    if (length > SIZE_MAX / 2 - stream->length) {
        errno = ENOMEM;
        return -1;
    }
    size_t needed = stream->length + length;
    /* Doubled, so that many small appends do not copy the data each time. */
    if (needed > stream->capacity && apachews_stream_resize(stream, needed * 2) != 0) {
        return -1;
    }
    if (length > 0) {
        memcpy(stream->data + stream->length, what, length);
    }
    stream->length = needed;
    return 0;
}

uint8_t *apachews_stream_data(const apachews_stream *stream)
{
    return stream->data;
}

size_t apachews_stream_length(const apachews_stream *stream)
{
    return stream->length;
}

void apachews_initialize_os(void)
{
}
