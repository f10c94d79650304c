/* Reading from clients: bytes become items, items become events.
 *
 * Contract: receive_ready() reads a socket that epoll reports; receive_next_event() processes
 * the items of the current turn until one is an event.  Nothing blocks.
 *
 * How turns work: in a round, each client that is ready has one turn: at most READ_BYTES are
 * read into the buffer of the server, and at most TURN_ITEMS of their items are processed.  If
 * bytes are left, they move to memory of the client.  The client is then queued for a turn in
 * the next round, and its socket is not read before that turn is over.  So a client that floods
 * delays another client by TURN_ITEMS messages, and the memory per client is bounded: one
 * unfinished message and one read.  An event points to a message in the buffer, without a copy,
 * if the message was read whole.
 */
#ifndef APACHEWS_RECEIVE_H
#define APACHEWS_RECEIVE_H

#include "state.h"

/* Handle the epoll events of a client's socket. */
void receive_ready(struct apachews_client *client, uint32_t events);
/* Continue the current turn; return whether *event is set. */
bool receive_next_event(apachews_server *server, apachews_event *event);
/* Start the turn of the client that has waited longest. */
void receive_resume(apachews_server *server);

#endif
