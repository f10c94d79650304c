#include "system.h"

#include "client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "answer.h"
#include "channel.h"
#include "connection.h"
#include "error.h"
#include "utf8.h"

/* The HTTP status for a client that is closed before it is accepted. */
#define CLOSED_STATUS 503

static bool after_write(struct apachews_client *client, enum queue_result result)
{
    if (result == QUEUE_NO_MEMORY) {
        /* Half a frame may be sent: no other frame can follow it. */
        queue_clear(&client->queue);
        connection_end(client, WIRE_INTERNAL_ERROR, "the producer is out of memory");
        errno = ENOMEM;
        return false;
    }
    connection_update(client);
    return true;
}

bool client_write(struct apachews_client *client, int first, const void *payload, size_t length)
{
    if (client->fd < 0) {
        errno = EPIPE;
        return false;
    }
    return after_write(client, queue_write(&client->queue, client->fd, first, payload, length));
}

bool client_leave_channel(struct apachews_client *client)
{
    static const unsigned char payload[] = {WIRE_LANE_OWN};
    bool is_on_channel = client->lane == LANE_CHANNEL;
    channel_forget(client);
    return !is_on_channel ||
           client_write(client, WIRE_FIN | WIRE_OP_LANE, payload, sizeof payload);
}

/* The same, for a client that sends CLOSE or MOVE: it does not join again. */
static bool quit_channel(struct apachews_client *client)
{
    bool is_sent = client_leave_channel(client);
    channel_release(client);
    return is_sent;
}

/* Send a frame on the channel of a client that is on one; false: use its own connection. */
static bool send_on_channel(struct apachews_client *client, int first, const void *payload,
                            size_t length)
{
    if (client->lane == LANE_JOINING) {
        client->lane = LANE_STALE; /* READY comes too late now */
    }
    if (client->lane != LANE_CHANNEL || !connection_is_sending(client)) {
        return false;
    }
    if (channel_accepts(client->bridge, length + WIRE_MAX_HEADER)) {
        channel_unicast(client, first, payload, length);
        return true;
    }
    client_leave_channel(client);
    return false;
}

/* Return whether a message can be sent; close a client whose queue is full. */
static bool can_send(struct apachews_client *client)
{
    if (!connection_is_sending(client) || client->fd < 0) {
        errno = EPIPE;
        return false;
    }
    if (client->queue.bytes > client->server->max_queue_bytes) {
        queue_drop(&client->queue);
        client_send_close(client, WIRE_TRY_AGAIN_LATER, "too slow: the send queue is full");
        connection_end(client, WIRE_TRY_AGAIN_LATER, "too slow: the send queue was full");
        errno = ENOBUFS;
        return false;
    }
    return true;
}

/* Send or queue a frame to a client in a state that takes messages. */
static bool send_frame(struct apachews_client *client, int first, const void *payload, size_t length)
{
    if (client->lane != LANE_OWN && send_on_channel(client, first, payload, length)) {
        return true;
    }
    return can_send(client) && client_write(client, first, payload, length);
}

bool client_send_frame(struct apachews_client *client, struct frame *frame)
{
    if (client->lane != LANE_OWN) {
        struct wire_header header = {0};
        const char *problem;
        /* Cannot fail: frame_new() encoded the header. */
        (void)wire_decode_header(frame->bytes, frame->size, &header, &problem);
        if (send_on_channel(client, header.first, frame->bytes + header.size,
                            (size_t)header.length)) {
            return true;
        }
    }
    return can_send(client) &&
           after_write(client, queue_write_frame(&client->queue, client->fd, frame));
}

static bool send_answer(struct apachews_client *client, const struct answer *answer,
                        apachews_error *error)
{
    struct json_text text = {0};
    bool is_sent = false;
    if (answer_encode(answer, &text, error)) {
        if (!client->request->facts.answer_required) {
            error_set(error, APACHEWS_NOT_WAITING, 0,
                      "Apache does not wait for an answer to this client: it accepts clients "
                      "itself without SetEnv APACHEWS_ACCEPT producer");
        } else if (client->state != ASKED) {
            error_set(error, APACHEWS_NOT_WAITING, 0,
                      "Apache does not wait for an answer to this client any more: it was "
                      "answered, or the wait timed out");
        } else {
            client->state = answer->accepts ? OPEN : CLOSING;
            client->was_rejected = !answer->accepts;
            is_sent = client_write(client, WIRE_FIN | WIRE_OP_ANSWER, text.data, text.length);
            if (!is_sent) {
                error_set(error, APACHEWS_SYSTEM_ERROR, errno, "out of memory for the answer");
            }
        }
    }
    free(text.data);
    return is_sent;
}

bool client_send_close(struct apachews_client *client, int code, const char *reason)
{
    unsigned char payload[WIRE_MAX_CONTROL];
    size_t length = strlen(reason);
    if (client->state == ASKED) {
        return send_answer(client, &(struct answer){.status = CLOSED_STATUS}, NULL);
    }
    if (!connection_is_sending(client) || client->state == PARTING) {
        errno = EPIPE;
        return false;
    }
    if (!quit_channel(client)) {
        return false;
    }
    payload[0] = (unsigned char)(code >> 8);
    payload[1] = (unsigned char)code;
    memcpy(payload + 2, reason, length);
    /* The bridge sends nothing after its MOVE: do not wait for an answer. */
    client->state = client->has_moved ? CLOSED : CLOSING;
    return client_write(client, WIRE_FIN | WIRE_OP_CLOSE, payload, length + 2);
}

void client_send_move(struct apachews_client *client)
{
    if (client->state == ASKED) {
        client_send_close(client, WIRE_GOING_AWAY, "the server closes");
    } else if (client->state == OPEN && quit_channel(client)) {
        client->state = MOVING;
        client_write(client, WIRE_FIN | WIRE_OP_MOVE, NULL, 0);
    }
    /* A client in CONNECTING comes back here when its OPEN is read. */
}

bool apachews_is_utf8(const void *data, size_t length)
{
    return utf8_is_valid(data, length);
}

int client_check_message(apachews_type type, const void *data, size_t length)
{
    if (type != APACHEWS_TEXT && type != APACHEWS_BINARY) {
        return EINVAL;
    }
    return type == APACHEWS_TEXT && !utf8_is_valid(data, length) ? EILSEQ : 0;
}

bool apachews_send(apachews_client *client, apachews_type type, const void *data, size_t length)
{
    errno = client_check_message(type, data, length);
    return errno == 0 && send_frame(client, WIRE_FIN | (int)type, data, length);
}

bool apachews_send_text(apachews_client *client, const char *text)
{
    return apachews_send(client, APACHEWS_TEXT, text, strlen(text));
}

bool apachews_ping(apachews_client *client)
{
    if (getrandom(client->ping, sizeof client->ping, GRND_NONBLOCK) < 0) {
        /* The payload need not be unpredictable, only different from the last one. */
        client->ping[0]++;
    }
    client->pinged_at_ns = clock_ns();
    return send_frame(client, WIRE_FIN | WIRE_OP_PING, client->ping, sizeof client->ping);
}

bool apachews_close(apachews_client *client, int code, const char *reason)
{
    const char *text = reason != NULL ? reason : "";
    size_t length = strlen(text);
    if (!wire_is_sendable(code) || length > WIRE_MAX_REASON || !utf8_is_valid(text, length)) {
        errno = EINVAL;
        return false;
    }
    return client_send_close(client, code, text);
}

bool apachews_accept(apachews_client *client, const char *subprotocol,
                     const apachews_pair *headers, size_t header_count, apachews_error *error)
{
    const apachews_request *request = &client->request->facts;
    if (!request->answer_required && (subprotocol != NULL || header_count > 0)) {
        error_set(error, APACHEWS_NOT_ASKED, 0,
                  "to accept with a subprotocol or headers needs SetEnv APACHEWS_ACCEPT producer "
                  "in Apache's configuration");
        return false;
    }
    bool is_offered = subprotocol == NULL;
    for (size_t i = 0; i < request->offered_count && !is_offered; i++) {
        is_offered = strcmp(request->offered[i], subprotocol) == 0;
    }
    if (!is_offered) {
        error_set(error, APACHEWS_BAD_ANSWER, 0, "the client did not offer \"%.80s\"", subprotocol);
        return false;
    }
    const struct answer answer = {
        .accepts = true,
        .subprotocol = subprotocol,
        .headers = headers,
        .header_count = header_count,
    };
    return send_answer(client, &answer, error);
}

bool apachews_reject(apachews_client *client, int status, const char *body,
                     const apachews_pair *headers, size_t header_count, apachews_error *error)
{
    if (!client->request->facts.answer_required) {
        error_set(error, APACHEWS_NOT_ASKED, 0,
                  "to reject needs SetEnv APACHEWS_ACCEPT producer in Apache's configuration");
        return false;
    }
    const struct answer answer = {
        .status = status,
        .body = body,
        .headers = headers,
        .header_count = header_count,
    };
    return send_answer(client, &answer, error);
}

const apachews_request *apachews_client_request(const apachews_client *client)
{
    return &client->request->facts;
}

void *apachews_client_data(const apachews_client *client)
{
    return client->data;
}

void apachews_client_set_data(apachews_client *client, void *data)
{
    client->data = data;
}

bool apachews_client_has_ended(const apachews_client *client)
{
    return client->state >= PARTING;
}

size_t apachews_client_queued_bytes(const apachews_client *client)
{
    size_t on_channel = client->lane == LANE_CHANNEL ? client->bridge->queue.bytes : 0;
    return client->queue.bytes + on_channel;
}
