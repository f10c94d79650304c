#include "system.h"

#include "publish.h"

#include <errno.h>
#include <stdio.h>

#include "client.h"
#include "groups.h"

static void deliver_to(apachews_delivery *delivery, struct apachews_client *client,
                       struct frame *frame)
{
    if (client_send_frame(client, frame)) {
        delivery->reached++;
    } else {
        delivery->skipped++;
    }
}

static apachews_delivery send_to_all(apachews_server *server, struct frame *frame,
                                     const apachews_client *exclude)
{
    apachews_delivery delivery = {0, 0};
    struct apachews_client *client = server->first;
    while (client != NULL) {
        /* Read first: a failed send can unlink this client, and only this one. */
        struct apachews_client *next = client->next;
        if (client->request != NULL && client != exclude) {
            deliver_to(&delivery, client, frame);
        }
        client = next;
    }
    return delivery;
}

static apachews_delivery send_to_group(apachews_server *server, const char *name,
                                       struct frame *frame, const apachews_client *exclude)
{
    apachews_delivery delivery = {0, 0};
    const struct membership *member = groups_first_member(server, name);
    while (member != NULL) {
        /* Read first: a failed send can end this membership, and only this one. */
        const struct membership *next = groups_next_member(member);
        struct apachews_client *client = groups_client(member);
        if (client != exclude) {
            deliver_to(&delivery, client, frame);
        }
        member = next;
    }
    return delivery;
}

static apachews_delivery deliver(apachews_server *server, const char *group, int type,
                                 const void *data, size_t length, const apachews_client *exclude)
{
    apachews_delivery delivery = {0, 0};
    struct frame *frame = frame_new(WIRE_FIN | type, data, length);
    if (frame == NULL) {
        errno = ENOMEM;
        return delivery;
    }
    delivery = group != NULL ? send_to_group(server, group, frame, exclude)
                             : send_to_all(server, frame, exclude);
    frame_release(frame);
    errno = 0; /* failed sends are counted as skipped */
    return delivery;
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
