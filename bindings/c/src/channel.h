/* The channel to one bridge process: which clients and groups are on it, and its frames.
 *
 * Contract: a client's messages go by its lane, its own connection or the channel.  channel.c
 * writes and reads the channel; lanes.c writes to the clients' own connections, and decides when
 * a lane changes.  Nothing blocks.  A channel that is out of memory sets has_failed, and accepts
 * and discards frames until lanes_end_failed() ends its clients.
 *
 * How a client's messages stay in order: a lane changes only when no message can overtake another.
 * - To the channel: JOIN follows a message on the connection.  The bridge answers READY on the
 *   channel when it has read the JOIN.  If no message has followed the JOIN meanwhile, the client
 *   is on the channel, and ADD tells the bridge so.
 * - To the connection: OFF follows the last message on the channel, and OWN precedes the next one
 *   on the connection.  The bridge reads no further than OWN before it has read OFF.
 *
 * Sources: docs/reference/wire.md, "Groups at the edge".
 */
#ifndef APACHEWS_CHANNEL_H
#define APACHEWS_CHANNEL_H

#include "state.h"

/* The group of all clients that are on the channel. */
#define CHANNEL_ALL 0

/* Return the bridge process of this id, a new one if it is unknown; NULL: out of memory. */
struct bridge *channel_find(apachews_server *server, const char *id);
/* Free the bridge processes without clients and without a channel. */
void channel_free_unused(apachews_server *server);

/* Own the descriptor of an OFFER. */
void channel_open(struct bridge *bridge, int fd, uint32_t key);
/* Close the channel; its clients get their own connections as lanes. */
void channel_close(struct bridge *bridge);
/* Send as much of the queue as the kernel takes. */
void channel_flush(struct bridge *bridge);
/* Read the channel: process READY, and report the clients that a SLOW names. */
void channel_receive(struct bridge *bridge, void (*on_slow)(struct apachews_client *client));

/* Write the payload of the client's next JOIN, 9 bytes; false: out of memory, send none. */
bool channel_join(struct apachews_client *client, unsigned char *payload);
/* Remove a client from the channel, or make its JOIN void. */
void channel_forget(struct apachews_client *client);
/* The same, for a client that never joins again; it does not refer to the bridge process then. */
void channel_release(struct apachews_client *client);

/* Tell the bridge that the client of a membership is in the group, if it is on the channel; false:
 * out of memory. */
bool channel_add(struct membership *membership);
/* Tell the bridge that the client of a membership leaves the group, if it is on the channel. */
void channel_remove(struct membership *membership);

/* Whether a client is on the channel and in the group of this number. */
bool channel_has(const struct bridge *bridge, uint32_t group,
                 const struct apachews_client *client);
/* Whether the channel accepts a frame of this size, with its header, for clients. */
bool channel_accepts(const struct bridge *bridge, size_t frame_size);
/* Send a frame to a client on the channel. */
void channel_unicast(struct apachews_client *client, int first, const void *payload,
                     size_t length);
/* Send a frame to the members of a group on the channel, or with group 0 to all clients there.
 * The excluded client is one of them, and does not get it; or NULL. */
void channel_multicast(struct bridge *bridge, uint32_t group, const struct frame *frame,
                       const struct apachews_client *excluded);

#endif
