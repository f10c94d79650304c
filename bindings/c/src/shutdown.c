/* Draining and stopping a server.
 *
 * How apachews_server_drain() loses no message (docs/reference/wire.md, Moving): each client is sent a MOVE.
 * Until the bridge answers with its own MOVE, messages flow in both directions as before.  The
 * bridge's MOVE becomes the close event, so it comes after the client's last message.  When the
 * program asks for the event after that one, it has handled all messages: what it sent is
 * flushed, and the socket is closed.  The listening socket stays open until all clients have
 * moved, although its file is removed: a client that connected just before the removal is still
 * accepted, and moved like the others.
 */
#include "system.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

#include "accept.h"
#include "channel.h"
#include "client.h"
#include "connection.h"
#include "lanes.h"
#include "notify.h"

/* How long apachews_server_stop() waits for queued frames, the CLOSE frames included. */
#define FLUSH_TIMEOUT_MS 1000

static void announce_end(apachews_server *server)
{
    if (server->is_announced) {
        server->is_announced = false;
        notify_stopping();
    }
}

void apachews_server_drain(apachews_server *server, int timeout_ms)
{
    if (server->is_stopped || server->is_draining) {
        return;
    }
    server->is_draining = true;
    server->drain_deadline_ms = clock_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    announce_end(server);
    socket_file_remove(&server->file);
    accept_clients(server);
    if (server->file.is_inherited) {
        /* Other processes accept from the same socket: new clients are theirs. */
        accept_stop(server);
    }
    struct apachews_client *client = server->first;
    while (client != NULL) {
        struct apachews_client *next = client->next;
        if (client->state == PUBLISHING) {
            connection_remove(client); /* the publisher connects to the next producer */
        } else {
            client_send_move(client);
        }
        client = next;
    }
}

/* Wait until a client or a channel with a queue is writable; false: timeout, no queues, or out of
 * memory. */
static bool wait_writable(apachews_server *server, int wait_ms)
{
    nfds_t count = 0;
    struct apachews_client *client;
    struct bridge *bridge;
    for (client = server->first; client != NULL; client = client->next) {
        count += client->queue.first != NULL;
    }
    for (bridge = server->bridges; bridge != NULL; bridge = bridge->next) {
        count += bridge->queue.first != NULL;
    }
    struct pollfd *polled = count > 0 ? calloc(count, sizeof *polled) : NULL;
    if (polled == NULL) {
        return false;
    }
    count = 0;
    for (client = server->first; client != NULL; client = client->next) {
        if (client->queue.first != NULL) {
            polled[count++] = (struct pollfd){.fd = client->fd, .events = POLLOUT};
        }
    }
    for (bridge = server->bridges; bridge != NULL; bridge = bridge->next) {
        if (bridge->queue.first != NULL) {
            polled[count++] = (struct pollfd){.fd = bridge->fd, .events = POLLOUT};
        }
    }
    int ready = poll(polled, count, wait_ms);
    free(polled);
    return ready > 0 || (ready < 0 && errno == EINTR);
}

static void flush_queues(apachews_server *server)
{
    int64_t deadline = clock_ms() + FLUSH_TIMEOUT_MS;
    int64_t wait = FLUSH_TIMEOUT_MS;
    while (wait > 0 && wait_writable(server, (int)wait)) {
        for (struct apachews_client *client = server->first; client != NULL;
             client = client->next) {
            queue_flush(&client->queue, client->fd);
        }
        for (struct bridge *bridge = server->bridges; bridge != NULL; bridge = bridge->next) {
            channel_flush(bridge);
        }
        wait = deadline - clock_ms();
    }
}

void apachews_server_stop(apachews_server *server)
{
    if (server->is_stopped) {
        return;
    }
    if (server->delivered != NULL) {
        connection_finish_move(server->delivered);
    }
    announce_end(server);
    accept_stop(server);
    server->is_stopped = true;
    struct apachews_client *client = server->first;
    while (client != NULL) {
        struct apachews_client *next = client->next;
        client_send_close(client, WIRE_GOING_AWAY, "the server closes");
        client = next;
    }
    flush_queues(server);
    connections_abandon(server, WIRE_GOING_AWAY, "the server closed");
    lanes_close_all(server);
    server->ready_at = server->ready_count = 0;
}
