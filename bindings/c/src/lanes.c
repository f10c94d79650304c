#include "system.h"

#include "lanes.h"

#include <unistd.h>

#include "channel.h"
#include "client.h"
#include "connection.h"

#define FIRST (WIRE_FIN | WIRE_OP_LANE)
/* A bridge that does not answer ASK, because it has no descriptor left, is asked again. */
#define ASK_AGAIN_MS 1000

void lanes_set_bridge(struct apachews_client *client, const char *id)
{
    /* Later a MOVE or a CLOSE is sent, and nothing goes on a channel after it. */
    if (client->state != ASKED && client->state != OPEN) {
        return;
    }
    if (!client_leave_channel(client)) {
        return;
    }
    channel_release(client);
    if (id != NULL) {
        /* Without memory for it, the client has only its own connection. */
        client->bridge = channel_find(client->server, id);
        if (client->bridge != NULL) {
            client->bridge->references++;
        }
    }
}

void lanes_offer(struct apachews_client *client, uint32_t key)
{
    int fd = client->offered_fd;
    client->offered_fd = -1;
    client->expects_channel = false;
    if (fd < 0) {
        return; /* this process had no descriptor left for it: a later broadcast asks again */
    }
    if (client->bridge == NULL) {
        close(fd); /* the client closes or moves */
    } else {
        channel_open(client->bridge, fd, key);
    }
}

static void leave(struct apachews_client *client)
{
    client_leave_channel(client);
}

void lanes_ready(struct bridge *bridge, uint32_t events)
{
    if (events & EPOLLOUT) {
        channel_flush(bridge);
    }
    /* Checked here: the channel may have been closed after epoll reported it. */
    if (bridge->fd >= 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        channel_receive(bridge, leave);
    }
}

static void ask(struct apachews_client *client)
{
    struct bridge *bridge = client->bridge;
    int64_t now = clock_ms();
    bool was_asked = bridge->asked_at_ms != 0 && now - bridge->asked_at_ms < ASK_AGAIN_MS;
    if (!bridge->is_lost && !was_asked) {
        static const unsigned char payload[] = {WIRE_LANE_ASK};
        bridge->asked_at_ms = now;
        client->expects_channel = true;
        client_write(client, FIRST, payload, sizeof payload);
    }
}

void lanes_join(struct apachews_client *client, size_t frame_size)
{
    unsigned char payload[9];
    /* A client with a queue reads slowly, or not at all. */
    if (client->bridge == NULL || client->lane != LANE_OWN || client->state != OPEN ||
        client->queue.first != NULL) {
        return;
    }
    if (client->bridge->fd < 0) {
        ask(client);
    } else if (channel_accepts(client->bridge, frame_size) && channel_join(client, payload)) {
        client_write(client, FIRST, payload, sizeof payload);
    }
}

void lanes_end_failed(apachews_server *server)
{
    while (server->has_bridge_to_end) {
        server->has_bridge_to_end = false;
        for (struct bridge *bridge = server->bridges; bridge != NULL; bridge = bridge->next) {
            if (!bridge->has_failed || bridge->fd < 0) {
                continue;
            }
            struct apachews_client *client = server->first;
            while (client != NULL) {
                struct apachews_client *next = client->next;
                if (client->bridge == bridge && client->lane == LANE_CHANNEL) {
                    connection_end(client, WIRE_INTERNAL_ERROR, "the producer is out of memory");
                }
                client = next;
            }
            channel_close(bridge);
        }
        /* In the next round if a channel was closed in this one. */
        if (!server->has_bridge_to_end) {
            channel_free_unused(server);
        }
    }
}

void lanes_close_all(apachews_server *server)
{
    for (struct bridge *bridge = server->bridges; bridge != NULL; bridge = bridge->next) {
        channel_close(bridge);
    }
    channel_free_unused(server);
}
