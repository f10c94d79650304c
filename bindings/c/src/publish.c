#include "system.h"

#include "publish.h"

#include <errno.h>
#include <stdio.h>

#include "channel.h"
#include "client.h"
#include "groups.h"
#include "lanes.h"

/* One message for several clients. */
struct broadcast {
    apachews_server *server;
    const char *group; /* NULL: all clients */
    struct frame *frame;
    const apachews_client *exclude; /* or NULL */
    size_t reached;
    size_t skipped;
    size_t count;  /* of receivers without a channel that has the message */
    bool may_join; /* the receivers may ask to go on a channel */
};

/* Call a function with each receiver whose lane is not a channel that has the message. */
static void for_each_other(struct broadcast *broadcast,
                           void handle(struct broadcast *broadcast, apachews_client *client))
{
    const struct membership *member = NULL;
    struct apachews_client *client = NULL;
    if (broadcast->group == NULL) {
        client = broadcast->server->first;
    } else {
        member = groups_first_member(broadcast->server, broadcast->group);
    }
    while (client != NULL || member != NULL) {
        struct apachews_client *receiver = member != NULL ? groups_client(member) : client;
        /* Read first: a failed send can unlink this client and end this membership, and only
         * this one. */
        client = client != NULL ? client->next : NULL;
        member = member != NULL ? groups_next_member(member) : NULL;
        bool is_served = receiver->lane == LANE_CHANNEL && receiver->bridge->is_served;
        if (!is_served && receiver->request != NULL && receiver != broadcast->exclude) {
            handle(broadcast, receiver);
        }
    }
}

static void count_client(struct broadcast *broadcast, apachews_client *client)
{
    (void)client;
    broadcast->may_join = ++broadcast->count >= LANES_MIN_CLIENTS;
}

static void send_to_client(struct broadcast *broadcast, apachews_client *client)
{
    if (!client_send_frame(client, broadcast->frame)) {
        broadcast->skipped++;
        return;
    }
    broadcast->reached++;
    if (broadcast->may_join) {
        lanes_join(client, broadcast->frame->size);
    }
}

/* Send on a channel, if it has receivers. */
static void send_on_channel(struct broadcast *broadcast, struct bridge *bridge, uint32_t group,
                            size_t count)
{
    const apachews_client *exclude = broadcast->exclude;
    if (count == 0) {
        return;
    }
    broadcast->may_join = true;
    if (!channel_accepts(bridge, broadcast->frame->size)) {
        return; /* these clients get it on their own connections */
    }
    bool excludes = exclude != NULL && channel_has(bridge, group, exclude);
    bridge->is_served = true;
    if (count > excludes) {
        channel_multicast(bridge, group, broadcast->frame, excludes ? exclude : NULL);
        broadcast->reached += count - excludes;
    }
}

static void send_on_channels(struct broadcast *broadcast)
{
    struct bridge *bridge;
    for (bridge = broadcast->server->bridges; bridge != NULL; bridge = bridge->next) {
        bridge->is_served = false;
    }
    if (broadcast->group == NULL) {
        for (bridge = broadcast->server->bridges; bridge != NULL; bridge = bridge->next) {
            send_on_channel(broadcast, bridge, CHANNEL_ALL, bridge->client_count);
        }
        return;
    }
    for (const struct channel_group *found = groups_channels(broadcast->server, broadcast->group);
         found != NULL; found = found->next) {
        send_on_channel(broadcast, found->bridge, found->number, found->count);
    }
}

static apachews_delivery deliver(apachews_server *server, const char *group, int type,
                                 const void *data, size_t length, const apachews_client *exclude)
{
    struct broadcast broadcast = {.server = server, .group = group, .exclude = exclude};
    broadcast.frame = frame_new(WIRE_FIN | type, data, length);
    if (broadcast.frame == NULL) {
        errno = ENOMEM;
        return (apachews_delivery){0, 0};
    }
    send_on_channels(&broadcast);
    if (!broadcast.may_join) {
        for_each_other(&broadcast, count_client);
    }
    for_each_other(&broadcast, send_to_client);
    frame_release(broadcast.frame);
    errno = 0; /* failed sends are counted as skipped */
    return (apachews_delivery){broadcast.reached, broadcast.skipped};
}

apachews_delivery apachews_broadcast(apachews_server *server, apachews_type type,
                                     const void *data, size_t length)
{
    return apachews_group_send(server, NULL, type, data, length, NULL);
}

apachews_delivery apachews_group_send(apachews_server *server, const char *group,
                                      apachews_type type, const void *data, size_t length,
                                      const apachews_client *exclude)
{
    errno = client_check_message(type, data, length);
    if (errno != 0) {
        return (apachews_delivery){0, 0};
    }
    return deliver(server, group, (int)type, data, length, exclude);
}

void publish_receive(struct apachews_client *publisher, const struct wire_item *item)
{
    char answer[96];
    int type = item->kind == WIRE_TEXT ? WIRE_OP_TEXT : WIRE_OP_BINARY;
    apachews_delivery delivery = deliver(publisher->server, publisher->publishes_to, type, item->data,
                                         item->length, NULL);
    int length = snprintf(answer, sizeof answer, "{\"version\":1,\"reached\":%zu,\"skipped\":%zu}",
                          delivery.reached, delivery.skipped);
    client_write(publisher, WIRE_FIN | WIRE_OP_PUBLISH, answer, (size_t)length);
}
