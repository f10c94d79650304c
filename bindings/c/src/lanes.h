/* The changes of clients' lanes; channel.h explains lanes.
 *
 * Contract: for the server loop and for publish.c.  A program that never sends to several clients
 * never has a channel.  Nothing blocks.
 */
#ifndef APACHEWS_LANES_H
#define APACHEWS_LANES_H

#include "state.h"

/* Fewer receivers do not lead to a channel: it would cost more than it saves. */
#define LANES_MIN_CLIENTS 4

/* Note which bridge process has a client; NULL: one that offers no channel. */
void lanes_set_bridge(struct apachews_client *client, const char *id);
/* Use the channel of an OFFER that the client's connection has received. */
void lanes_offer(struct apachews_client *client, uint32_t key);
/* Handle the epoll events of a channel. */
void lanes_ready(struct bridge *bridge, uint32_t events);

/* After a message of this size on the client's own connection: send JOIN, or ASK if the channel is
 * not open. */
void lanes_join(struct apachews_client *client, size_t frame_size);

/* End the clients of channels that are out of memory, and free unused bridge processes. */
void lanes_end_failed(apachews_server *server);
/* Close all channels. */
void lanes_close_all(apachews_server *server);

#endif
