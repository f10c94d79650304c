#include "system.h"

#include "connection.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "channel.h"
#include "groups.h"
#include "utf8.h"

/* Time for the closing handshake.  Apache's side gives the browser the same
 * (APACHEWS_CLOSE_TIMEOUT). */
#define CLOSE_TIMEOUT_MS 10000

int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_ms(void)
{
    return clock_ns() / 1000000;
}

bool connection_is_sending(const struct apachews_client *client)
{
    return client->state >= OPEN && client->state <= PARTING;
}

bool connection_is_receiving(const struct apachews_client *client)
{
    return client->state == OPEN || client->state == MOVING;
}

/* Backpressure: a client with half a queue is not read from until it reads.  After the bridge's
 * MOVE only the end of file is left, which epoll reports as EPOLLHUP without EPOLLIN. */
static bool wants_reading(const struct apachews_client *client)
{
    return client->queue.bytes <= client->server->max_queue_bytes / 2 && !client->has_moved;
}

/* ---- Lists ---- */

static void link_connection(apachews_server *server, struct apachews_client *client)
{
    client->previous = server->last;
    *(server->last ? &server->last->next : &server->first) = client;
    server->last = client;
}

static void unlink_connection(apachews_server *server, struct apachews_client *client)
{
    *(client->previous ? &client->previous->next : &server->first) = client->next;
    *(client->next ? &client->next->previous : &server->last) = client->previous;
    client->previous = client->next = NULL;
}

/* All deadlines have the same timeout, so appending keeps the list sorted by deadline. */
static void set_deadline(apachews_server *server, struct apachews_client *client)
{
    client->deadline_ms = clock_ms() + CLOSE_TIMEOUT_MS;
    client->closing_previous = server->closing_last;
    *(server->closing_last ? &server->closing_last->closing_next : &server->closing_first) = client;
    server->closing_last = client;
}

static void cancel_deadline(apachews_server *server, struct apachews_client *client)
{
    if (client->deadline_ms == 0) {
        return;
    }
    *(client->closing_previous ? &client->closing_previous->closing_next
                               : &server->closing_first) = client->closing_next;
    *(client->closing_next ? &client->closing_next->closing_previous : &server->closing_last) =
        client->closing_previous;
}

static void queue_close_event(struct apachews_client *client, int code, const char *reason)
{
    apachews_server *server = client->server;
    client->close_code = code;
    size_t length = utf8_truncate(reason, strlen(reason), sizeof client->close_reason - 1);
    memcpy(client->close_reason, reason, length);
    client->close_reason[length] = '\0';
    apachews_client_keep(client);
    *(server->ended_last ? &server->ended_last->ended_next : &server->ended_first) = client;
    server->ended_last = client;
}

/* ---- Life and death ---- */

bool connection_add(apachews_server *server, int fd)
{
    struct apachews_client *client = calloc(1, sizeof *client);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    if (client == NULL || epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        free(client);
        close(fd);
        return false;
    }
    client->server = server;
    client->references = 1;
    client->fd = client->number = fd;
    client->interest = EPOLLIN;
    client->offered_fd = -1;
    wire_reader_init(&client->reader, server->max_message_bytes);
    link_connection(server, client);
    return true;
}

void connection_remove(struct apachews_client *client)
{
    apachews_server *server = client->server;
    if (client->fd < 0) {
        return;
    }
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, client->fd, NULL);
    if (server->keeps_fds) {
        client->keeps_fd = true;
        shutdown(client->fd, SHUT_RDWR);
    } else {
        close(client->fd);
    }
    if (client->offered_fd >= 0) {
        close(client->offered_fd);
        client->offered_fd = -1;
    }
    client->fd = -1;
    client->state = CLOSED;
    queue_clear(&client->queue);
    wire_reader_free(&client->reader);
    channel_release(client);
    groups_leave_all(client);
    cancel_deadline(server, client);
    unlink_connection(server, client);
    if (server->current == client) {
        server->current = NULL;
    }
    /* Not freed here: ready[] may hold a pointer to it, and the caller may iterate over it. */
    client->deferred_next = server->deferred;
    server->deferred = client;
}

void connections_free_deferred(apachews_server *server)
{
    while (server->deferred != NULL) {
        struct apachews_client *client = server->deferred;
        server->deferred = client->deferred_next;
        /* The last event may have pointed into these bytes, so they live until now. */
        free(client->unread);
        client->unread = NULL;
        apachews_client_release(client);
    }
}

void connection_end(struct apachews_client *client, int code, const char *reason)
{
    enum state before = client->state;
    client->state = CLOSED;
    /* In MOVED and PARTING the close event was queued by connection_moved(). */
    if (before != MOVED && before != PARTING && before != CLOSED) {
        queue_close_event(client, code, reason);
    }
    channel_release(client);
    groups_leave_all(client);
    connection_update(client);
}

void connection_moved(struct apachews_client *client)
{
    client->state = MOVED;
    queue_close_event(client, WIRE_SERVICE_RESTART, "moved to another producer");
    connection_update(client);
}

void connection_finish_move(struct apachews_client *client)
{
    if (client->state == PARTING) {
        client->state = CLOSED;
        channel_release(client);
        groups_leave_all(client);
        connection_update(client);
    }
}

void connection_update(struct apachews_client *client)
{
    apachews_server *server = client->server;
    if (client->fd < 0) {
        return;
    }
    if (client->state == CLOSED && client->queue.first == NULL) {
        connection_remove(client);
        return;
    }
    if (client->deadline_ms == 0 && client->state >= CLOSING) {
        set_deadline(server, client);
    }
    uint32_t interest = 0;
    /* A stopped server only flushes: it must not receive messages that it would not report. */
    if (wants_reading(client) && !server->is_stopped) {
        interest |= EPOLLIN;
    }
    if (client->queue.first != NULL) {
        interest |= EPOLLOUT;
    }
    /* Compared first: most updates change nothing, and the system call would cost more than the
     * rest of an echo's bookkeeping. */
    if (interest != client->interest) {
        struct epoll_event event = {.events = interest, .data.ptr = client};
        client->interest = interest;
        epoll_ctl(server->epoll_fd, EPOLL_CTL_MOD, client->fd, &event);
    }
}

void connections_abandon(apachews_server *server, int code, const char *reason)
{
    while (server->first != NULL) {
        struct apachews_client *client = server->first;
        /* Without a request it was not a client, and has no close event. */
        if (client->request != NULL && client->state != MOVED && client->state != PARTING) {
            connection_end(client, code, reason);
        }
        connection_remove(client);
    }
}

apachews_client *apachews_client_keep(apachews_client *client)
{
    client->references++;
    return client;
}

void apachews_client_release(apachews_client *client)
{
    if (client != NULL && --client->references == 0) {
        if (client->keeps_fd) {
            close(client->number);
        }
        request_free(client->request);
        free(client->publishes_to);
        free(client->language);
        free(client);
    }
}
