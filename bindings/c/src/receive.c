#include "system.h"

#include "receive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"
#include "connection.h"
#include "lanes.h"
#include "publish.h"
#include "utf8.h"

/* Items of one client in a turn.  An echo takes some 3 us for each, so ten clients that flood
 * delay the next one by 2 ms; with fewer, the cost of epoll_wait() in each round would show. */
#define TURN_ITEMS 64

#define HUNG_UP (EPOLLHUP | EPOLLERR)

/* ---- Items ---- */

static void handle_eof(struct apachews_client *client)
{
    bool may_leave = client->state == CONNECTING || client->state == PUBLISHING;
    /* An end of file before OPEN is a probe: another producer, or a tool, tested whether a
     * producer listens.  It has no event. */
    if (!may_leave || !wire_reader_is_idle(&client->reader)) {
        connection_end(client, WIRE_ABNORMAL,
                       client->was_rejected ? "it was refused" : "the connection broke off");
    }
    connection_remove(client);
}

static void handle_move(struct apachews_client *client)
{
    client->has_moved = true;
    if (connection_is_receiving(client)) {
        connection_moved(client);
    } else if (client->state == CLOSING) {
        /* The bridge sends nothing after its MOVE, so no answer to our CLOSE will come. */
        connection_end(client, WIRE_ABNORMAL, "the close came too late to be answered");
    } else {
        connection_update(client);
    }
}

static void handle_violation(struct apachews_client *client, const struct wire_item *item)
{
    if (connection_is_receiving(client)) {
        size_t length = utf8_truncate(item->text, strlen(item->text), WIRE_MAX_REASON);
        char reason[WIRE_MAX_REASON + 1];
        memcpy(reason, item->text, length);
        reason[length] = '\0';
        queue_drop(&client->queue);
        client_send_close(client, item->code, reason);
    }
    connection_end(client, item->code, item->text);
}

static bool handle_open(struct apachews_client *client, struct wire_item *item,
                        apachews_event *event)
{
    client->request = item->request;
    client->state = item->request->facts.answer_required ? ASKED : OPEN;
    lanes_set_bridge(client, item->request->bridge);
    *event = (apachews_event){.kind = APACHEWS_OPEN, .client = client, .reason = ""};
    if (client->server->is_draining) {
        client_send_move(client);
    }
    return true;
}

static bool handle_message(struct apachews_client *client, const struct wire_item *item,
                           apachews_event *event)
{
    if (client->state == PUBLISHING) {
        publish_receive(client, item);
    }
    if (!connection_is_receiving(client)) {
        free(item->owned);
        return false;
    }
    client->server->delivered_data = item->owned;
    client->sends_binary = item->kind == WIRE_BINARY;
    *event = (apachews_event){
        .kind = APACHEWS_MESSAGE,
        .type = item->kind == WIRE_TEXT ? APACHEWS_TEXT : APACHEWS_BINARY,
        .client = client,
        .data = (const char *)item->data,
        .length = item->length,
        .reason = "",
    };
    return true;
}

static bool handle_pong(struct apachews_client *client, const struct wire_item *item,
                        apachews_event *event)
{
    if (client->pinged_at_ns == 0 || item->length != sizeof client->ping ||
        memcmp(item->data, client->ping, sizeof client->ping) != 0 ||
        !connection_is_receiving(client)) {
        return false;
    }
    *event = (apachews_event){
        .kind = APACHEWS_PONG,
        .client = client,
        .reason = "",
        .latency_s = (double)(clock_ns() - client->pinged_at_ns) / 1e9,
    };
    client->pinged_at_ns = 0;
    return true;
}

/* Process an item; return whether it is an event. */
static bool handle_item(struct apachews_client *client, struct wire_item *item,
                        apachews_event *event)
{
    switch (item->kind) {
    case WIRE_TEXT:
    case WIRE_BINARY:
        return handle_message(client, item, event);
    case WIRE_OPEN:
        return handle_open(client, item, event);
    case WIRE_PONG:
        return handle_pong(client, item, event);
    case WIRE_OFFER:
        lanes_offer(client, item->key);
        return false;
    case WIRE_BRIDGE:
        lanes_set_bridge(client, item->text);
        return false;
    case WIRE_PUBLISH:
        client->state = PUBLISHING;
        client->publishes_to = item->group;
        return false;
    case WIRE_CLOSE:
        if (client->state == PUBLISHING) {
            connection_remove(client);
        } else {
            /* The browser has closed: it would discard the queued messages. */
            queue_drop(&client->queue);
            connection_end(client, item->code, item->text);
        }
        return false;
    case WIRE_MOVE:
        handle_move(client);
        return false;
    default:
        handle_violation(client, item);
        free(item->owned);
        return false;
    }
}

/* ---- Turns ---- */

static void start_turn(struct apachews_client *client)
{
    client->server->current = client;
    client->server->turn_items = 0;
}

static void add_to_waiting(apachews_server *server, struct apachews_client *client)
{
    apachews_client_keep(client);
    client->waiting_next = NULL;
    *(server->waiting_last ? &server->waiting_last->waiting_next : &server->waiting_first) = client;
    server->waiting_last = client;
    server->waiting_count++;
}

void receive_resume(apachews_server *server)
{
    struct apachews_client *client = server->waiting_first;
    server->waiting_first = client->waiting_next;
    if (server->waiting_first == NULL) {
        server->waiting_last = NULL;
    }
    server->waiting_count--;
    if (client->fd >= 0) { /* else it was removed while it waited */
        start_turn(client);
    }
    apachews_client_release(client);
}

/* End a turn after TURN_ITEMS: save the unread bytes and queue the client for another turn.  The
 * turn continues if no bytes are left (wire_reader_next() then returns WIRE_NOTHING, which ends
 * it), or if there is not enough memory for them. */
static void end_turn(apachews_server *server, struct apachews_client *client)
{
    server->turn_items = 0;
    size_t size = wire_reader_unread(&client->reader);
    if (size == 0) {
        return;
    }
    if (client->unread == NULL) {
        client->unread = malloc(size + 1);
        if (client->unread == NULL) {
            return;
        }
        wire_reader_move(&client->reader, client->unread);
    }
    server->current = NULL;
    add_to_waiting(server, client);
}

bool receive_next_event(apachews_server *server, apachews_event *event)
{
    while (server->current != NULL) {
        struct apachews_client *client = server->current;
        struct wire_item item;
        if (server->turn_items++ == TURN_ITEMS) {
            end_turn(server, client);
            continue;
        }
        wire_reader_next(&client->reader, &item);
        if (item.kind == WIRE_NOTHING) {
            server->current = NULL;
            free(client->unread);
            client->unread = NULL;
        } else if (handle_item(client, &item, event)) {
            return true;
        }
    }
    return false;
}

/* ---- Sockets ---- */

/* Read bytes, and the descriptor that comes with an OFFER. */
static ssize_t receive_with_descriptor(struct apachews_client *client)
{
    union {
        struct cmsghdr head; /* aligns the bytes */
        unsigned char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {client->server->buffer, READ_BYTES};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    ssize_t size = recvmsg(client->fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *head = size >= 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (head == NULL || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) {
        return size;
    }
    /* With the padding there is room for two. */
    size_t count = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(head) + i * sizeof fd, sizeof fd);
        if (client->offered_fd < 0) {
            client->offered_fd = fd;
        } else {
            close(fd);
        }
    }
    return size;
}

static void read_socket(struct apachews_client *client)
{
    apachews_server *server = client->server;
    ssize_t size;
    do {
        size = client->expects_channel ? receive_with_descriptor(client)
                                       : recv(client->fd, server->buffer, READ_BYTES, 0);
    } while (size < 0 && errno == EINTR);
    if (size > 0) {
        wire_reader_feed(&client->reader, server->buffer, (size_t)size);
        start_turn(client);
    } else if (size == 0 || (errno != EAGAIN && errno != EWOULDBLOCK)) {
        handle_eof(client);
    }
}

void receive_ready(struct apachews_client *client, uint32_t events)
{
    if (client->fd >= 0 && (events & EPOLLOUT)) {
        queue_flush(&client->queue, client->fd);
        connection_update(client);
    }
    /* Checked again: the flush may have removed the connection. */
    if (client->fd < 0 || !(events & (EPOLLIN | HUNG_UP))) {
        return;
    }
    if (client->unread != NULL) {
        return; /* queued for a turn; level-triggered epoll reports the socket again after it */
    }
    if (!client->has_moved) {
        read_socket(client);
    } else if (events & HUNG_UP) {
        /* The bridge closed after its MOVE.  handle_eof() queues the close event of a client that
         * left in ASKED; all others had theirs with the MOVE. */
        handle_eof(client);
    }
}
