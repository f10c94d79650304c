#include "system.h"

#include "channel.h"

#include <errno.h>
#include <search.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRST (WIRE_FIN | WIRE_OP_LANE)
/* With more bytes in its queue a channel accepts no message, and its clients get their own
 * connections as lanes.  (A bridge reads its channels at once, so it is busy then.) */
#define MAX_QUEUE (256u * 1024)
/* The longest payload from the bridge: READY or SLOW. */
#define MAX_PAYLOAD (1 + 4 * WIRE_MAX_LANE_NUMBERS)

/* ---- Writing ---- */

static void watch(struct bridge *bridge)
{
    uint32_t interest = bridge->queue.first != NULL ? EPOLLIN | EPOLLOUT : EPOLLIN;
    if (interest != bridge->interest) {
        struct epoll_event event = {.events = interest, .data.ptr = bridge};
        bridge->interest = interest;
        epoll_ctl(bridge->server->epoll_fd, EPOLL_CTL_MOD, bridge->fd, &event);
    }
}

static void fail(struct bridge *bridge)
{
    bridge->has_failed = true;
    bridge->server->has_bridge_to_end = true;
    queue_clear(&bridge->queue);
}

/* Send or queue a frame of the channel.  If the bridge has gone, the frame is discarded: the end
 * of file decides about the clients. */
static void write_pieces(struct bridge *bridge, const void *head, size_t head_size,
                         const void *tail, size_t tail_size)
{
    if (bridge->fd < 0 || bridge->has_failed) {
        return;
    }
    if (queue_write_pieces(&bridge->queue, bridge->fd, head, head_size, tail, tail_size) ==
        QUEUE_NO_MEMORY) {
        fail(bridge);
    }
    watch(bridge);
}

static void write_payload(struct bridge *bridge, const void *payload, size_t length)
{
    unsigned char header[WIRE_MAX_HEADER];
    size_t size = wire_encode_header(header, FIRST, length);
    write_pieces(bridge, header, size, payload, length);
}

/* Write an ADD or REMOVE of one client. */
static void write_member(struct bridge *bridge, int kind, uint32_t group, uint32_t number)
{
    unsigned char payload[9] = {(unsigned char)kind};
    wire_put_number(payload + 1, group);
    wire_put_number(payload + 5, number);
    write_payload(bridge, payload, sizeof payload);
}

void channel_flush(struct bridge *bridge)
{
    if (bridge->fd >= 0) {
        queue_flush(&bridge->queue, bridge->fd);
        watch(bridge);
    }
}

/* ---- Clients by number: a tree of pointers to their lane_number ---- */

static int compare(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one;
    uint32_t b = *(const uint32_t *)other;
    return a < b ? -1 : a > b;
}

/* Return the client of a node of the tree. */
static struct apachews_client *client_at(void *node)
{
    char *number = *(char **)node;
    return (struct apachews_client *)(void *)(number -
                                              offsetof(struct apachews_client, lane_number));
}

static struct apachews_client *find_client(const struct bridge *bridge, uint32_t number)
{
    void *node = tfind(&number, (void *const *)&bridge->numbers, compare);
    return node != NULL ? client_at(node) : NULL;
}

bool channel_join(struct apachews_client *client, unsigned char *payload)
{
    struct bridge *bridge = client->bridge;
    uint32_t number = bridge->last_number;
    do {
        number = number == UINT32_MAX ? 1 : number + 1;
    } while (find_client(bridge, number) != NULL);
    bridge->last_number = number;
    client->lane_number = number;
    if (tsearch(&client->lane_number, &bridge->numbers, compare) == NULL) {
        return false;
    }
    client->lane = LANE_JOINING;
    payload[0] = WIRE_LANE_JOIN;
    wire_put_number(payload + 1, bridge->key);
    wire_put_number(payload + 5, number);
    return true;
}

/* ---- Groups ---- */

static struct channel_group *find_group(const struct bridge *bridge, const struct group *group)
{
    struct channel_group *found = group->channels;
    while (found != NULL && found->bridge != bridge) {
        found = found->next;
    }
    return found;
}

/* Count the client of a membership as one on the channel; false: out of memory. */
static bool count_member(struct membership *membership)
{
    struct bridge *bridge = membership->client->bridge;
    struct group *group = membership->group;
    struct channel_group *found = find_group(bridge, group);
    if (found == NULL) {
        found = malloc(sizeof *found);
        if (found == NULL) {
            return false;
        }
        bridge->last_group = bridge->last_group == UINT32_MAX ? 1 : bridge->last_group + 1;
        *found = (struct channel_group){
            .bridge = bridge,
            .next = group->channels,
            .number = bridge->last_group,
        };
        group->channels = found;
    }
    found->count++;
    membership->channel_group = found;
    return true;
}

static void uncount_member(struct membership *membership)
{
    struct channel_group *counted = membership->channel_group;
    membership->channel_group = NULL;
    if (counted == NULL || --counted->count > 0) {
        return;
    }
    struct channel_group **link = &membership->group->channels;
    while (*link != counted) {
        link = &(*link)->next;
    }
    *link = counted->next;
    free(counted);
}

static void uncount_all(struct apachews_client *client)
{
    for (struct membership *one = client->memberships; one != NULL; one = one->of_client) {
        uncount_member(one);
    }
}

static bool count_all(struct apachews_client *client)
{
    for (struct membership *one = client->memberships; one != NULL; one = one->of_client) {
        if (!count_member(one)) {
            uncount_all(client);
            return false;
        }
    }
    return true;
}

bool channel_add(struct membership *membership)
{
    struct apachews_client *client = membership->client;
    if (client->lane != LANE_CHANNEL) {
        return true;
    }
    if (!count_member(membership)) {
        return false;
    }
    write_member(client->bridge, WIRE_LANE_ADD, membership->channel_group->number,
                 client->lane_number);
    return true;
}

void channel_remove(struct membership *membership)
{
    struct apachews_client *client = membership->client;
    if (membership->channel_group != NULL) {
        write_member(client->bridge, WIRE_LANE_REMOVE, membership->channel_group->number,
                     client->lane_number);
        uncount_member(membership);
    }
}

/* ---- Lanes ---- */

void channel_forget(struct apachews_client *client)
{
    struct bridge *bridge = client->bridge;
    if (client->lane == LANE_OWN) {
        return;
    }
    tdelete(&client->lane_number, &bridge->numbers, compare);
    if (client->lane == LANE_CHANNEL) {
        unsigned char payload[5] = {WIRE_LANE_OFF};
        wire_put_number(payload + 1, client->lane_number);
        write_payload(bridge, payload, sizeof payload);
        bridge->client_count--;
        uncount_all(client);
    }
    client->lane = LANE_OWN;
}

void channel_release(struct apachews_client *client)
{
    channel_forget(client);
    if (client->bridge != NULL && --client->bridge->references == 0) {
        client->bridge->server->has_bridge_to_end = true;
    }
    client->bridge = NULL;
}

/* Put a client on the channel whose READY has come; false: its JOIN is void. */
static bool put_on_channel(struct bridge *bridge, struct apachews_client *client)
{
    /* Without memory for its groups the client gets no ADD: the bridge ignores the JOIN then. */
    if (client->lane == LANE_JOINING && count_all(client)) {
        client->lane = LANE_CHANNEL;
        bridge->client_count++;
        return true;
    }
    if (client->lane != LANE_CHANNEL) {
        channel_forget(client);
    }
    return false;
}

/* Write an ADD for each group with the members that were collected in it. */
static void write_added(struct channel_group *first, unsigned char *payload)
{
    for (struct channel_group *group = first; group != NULL; group = group->added_next) {
        size_t length = 5;
        wire_put_number(payload + 1, group->number);
        for (struct membership *one = group->added; one != NULL; one = one->added_next) {
            wire_put_number(payload + length, one->client->lane_number);
            length += 4;
        }
        group->added = NULL;
        write_payload(group->bridge, payload, length);
    }
}

/* Process a READY: one ADD for all of its clients, and one for each of their groups. */
static void receive_ready_clients(struct bridge *bridge, const unsigned char *numbers, size_t count)
{
    unsigned char payload[5 + 4 * WIRE_MAX_LANE_NUMBERS] = {WIRE_LANE_ADD};
    struct channel_group *groups = NULL;
    size_t length = 5;
    for (size_t i = 0; i < count; i++) {
        struct apachews_client *client = find_client(bridge, wire_get_number(numbers + 4 * i));
        if (client == NULL || !put_on_channel(bridge, client)) {
            continue;
        }
        wire_put_number(payload + length, client->lane_number);
        length += 4;
        for (struct membership *one = client->memberships; one != NULL; one = one->of_client) {
            struct channel_group *group = one->channel_group;
            if (group->added == NULL) {
                group->added_next = groups;
                groups = group;
            }
            one->added_next = group->added;
            group->added = one;
        }
    }
    if (length > 5) {
        wire_put_number(payload + 1, CHANNEL_ALL);
        write_payload(bridge, payload, length);
        write_added(groups, payload);
    }
}

/* ---- Messages ---- */

bool channel_has(const struct bridge *bridge, uint32_t group, const struct apachews_client *client)
{
    if (client->lane != LANE_CHANNEL || client->bridge != bridge) {
        return false;
    }
    const struct membership *one = client->memberships;
    while (group != CHANNEL_ALL && one != NULL && one->channel_group->number != group) {
        one = one->of_client;
    }
    return one != NULL || group == CHANNEL_ALL;
}

bool channel_accepts(const struct bridge *bridge, size_t frame_size)
{
    return frame_size <= WIRE_MAX_LANE_FRAME && bridge->queue.bytes <= MAX_QUEUE;
}

void channel_unicast(struct apachews_client *client, int first, const void *payload, size_t length)
{
    unsigned char start[2 * WIRE_MAX_HEADER + 5];
    unsigned char header[WIRE_MAX_HEADER];
    size_t header_size = wire_encode_header(header, first, length);
    size_t size = wire_encode_header(start, FIRST, 5 + header_size + length);
    start[size++] = WIRE_LANE_UNICAST;
    wire_put_number(start + size, client->lane_number);
    size += 4;
    memcpy(start + size, header, header_size);
    write_pieces(client->bridge, start, size + header_size, payload, length);
}

void channel_multicast(struct bridge *bridge, uint32_t group, const struct frame *frame,
                       const struct apachews_client *excluded)
{
    unsigned char start[WIRE_MAX_HEADER + 11];
    bool excludes = excluded != NULL;
    size_t size = wire_encode_header(start, FIRST, (excludes ? 11 : 7) + frame->size);
    start[size++] = WIRE_LANE_MULTICAST;
    wire_put_number(start + size, group);
    size += 4;
    start[size++] = 0; /* the count has two bytes */
    start[size++] = excludes;
    if (excludes) {
        wire_put_number(start + size, excluded->lane_number);
        size += 4;
    }
    write_pieces(bridge, start, size, frame->bytes, frame->size);
}

/* ---- Reading ---- */

/* Process a frame of the bridge; false: it is invalid. */
static bool receive_frame(struct bridge *bridge, const unsigned char *payload, size_t length,
                          void (*on_slow)(struct apachews_client *client))
{
    size_t count = (length - 1) / 4;
    if (length % 4 != 1) {
        return false;
    }
    if (payload[0] == WIRE_LANE_READY) {
        receive_ready_clients(bridge, payload + 1, count);
        return true;
    }
    for (size_t i = 0; i < count && payload[0] == WIRE_LANE_SLOW; i++) {
        struct apachews_client *client = find_client(bridge, wire_get_number(payload + 1 + 4 * i));
        if (client != NULL && client->lane == LANE_CHANNEL) {
            on_slow(client);
        }
    }
    return payload[0] == WIRE_LANE_SLOW;
}

/* Process the whole frames; return the bytes that they take, or -1 if one is invalid. */
static ssize_t receive_frames(struct bridge *bridge, const unsigned char *data, size_t size,
                              void (*on_slow)(struct apachews_client *client))
{
    size_t at = 0;
    for (;;) {
        struct wire_header header;
        const char *problem;
        int result = at < size ? wire_decode_header(data + at, size - at, &header, &problem) : 0;
        if (result == 0) {
            return (ssize_t)at;
        }
        /* Before the frame is complete: the limit bounds the rest that is kept. */
        if (result < 0 || header.first != FIRST || header.length < 1 ||
            header.length > MAX_PAYLOAD) {
            return -1;
        }
        size_t length = (size_t)header.length;
        if (size - at < header.size + length) {
            return (ssize_t)at;
        }
        if (!receive_frame(bridge, data + at + header.size, length, on_slow)) {
            return -1;
        }
        at += header.size + length;
    }
}

void channel_receive(struct bridge *bridge, void (*on_slow)(struct apachews_client *client))
{
    /* Free between two turns of clients.  The rest has less than MAX_PAYLOAD and a header. */
    unsigned char *buffer = bridge->server->buffer;
    size_t size = bridge->rest_size;
    ssize_t received = recv(bridge->fd, buffer + size, READ_BYTES - size, MSG_DONTWAIT);
    if (received < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) {
        return;
    }
    if (received <= 0) {
        channel_close(bridge); /* the bridge process has ended */
        return;
    }
    if (size > 0) {
        memcpy(buffer, bridge->rest, size);
    }
    free(bridge->rest);
    bridge->rest = NULL;
    bridge->rest_size = 0;
    size += (size_t)received;
    ssize_t done = receive_frames(bridge, buffer, size, on_slow);
    if (done < 0) {
        channel_close(bridge); /* not a bridge */
    } else if ((size_t)done < size) {
        bridge->rest = malloc(size - (size_t)done);
        if (bridge->rest == NULL) {
            fail(bridge);
            return;
        }
        bridge->rest_size = size - (size_t)done;
        memcpy(bridge->rest, buffer + done, bridge->rest_size);
    }
}

/* ---- The life of a channel ---- */

struct bridge *channel_find(apachews_server *server, const char *id)
{
    size_t size = strlen(id) + 1;
    struct bridge *bridge = server->bridges;
    while (bridge != NULL && strcmp(bridge->id, id) != 0) {
        bridge = bridge->next;
    }
    if (bridge != NULL) {
        return bridge;
    }
    bridge = calloc(1, sizeof *bridge + size);
    if (bridge != NULL) {
        bridge->watched = WATCHED_CHANNEL;
        bridge->server = server;
        bridge->fd = -1;
        memcpy(bridge->id, id, size);
        bridge->next = server->bridges;
        server->bridges = bridge;
    }
    return bridge;
}

void channel_free_unused(apachews_server *server)
{
    struct bridge **link = &server->bridges;
    while (*link != NULL) {
        struct bridge *bridge = *link;
        if (bridge->references == 0 && bridge->fd < 0) {
            *link = bridge->next;
            free(bridge);
        } else {
            link = &bridge->next;
        }
    }
}

void channel_open(struct bridge *bridge, int fd, uint32_t key)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = bridge};
    /* Two connections may have asked; one channel is enough. */
    if (bridge->fd >= 0 || bridge->is_lost ||
        epoll_ctl(bridge->server->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0) {
        close(fd);
        return;
    }
    bridge->fd = fd;
    bridge->key = key;
    bridge->interest = EPOLLIN;
}

void channel_close(struct bridge *bridge)
{
    bridge->is_lost = true;
    if (bridge->fd < 0) {
        return;
    }
    epoll_ctl(bridge->server->epoll_fd, EPOLL_CTL_DEL, bridge->fd, NULL);
    close(bridge->fd);
    bridge->fd = -1;
    queue_clear(&bridge->queue);
    free(bridge->rest);
    bridge->rest = NULL;
    bridge->rest_size = 0;
    while (bridge->numbers != NULL) {
        channel_forget(client_at(bridge->numbers)); /* writes nothing any more */
    }
    bridge->server->has_bridge_to_end = true;
}
