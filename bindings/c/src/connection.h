/* The lifecycle of a connection: added, closing, removed, freed.
 *
 * Contract: every change of state or queue ends with connection_update() or connection_end(),
 * so that epoll interest, closing deadline and removal follow.  Nothing blocks.
 */
#ifndef APACHEWS_CONNECTION_H
#define APACHEWS_CONNECTION_H

#include "state.h"

int64_t clock_ns(void);
int64_t clock_ms(void);

/* Whether messages can be sent to the client. */
bool connection_is_sending(const struct apachews_client *client);
/* Whether messages from the client become events. */
bool connection_is_receiving(const struct apachews_client *client);

/* Add an accepted socket; on failure close it and return false. */
bool connection_add(apachews_server *server, int fd);
/* Set the state to CLOSED and queue the close event, once.  Queued frames are still sent. */
void connection_end(struct apachews_client *client, int code, const char *reason);
/* Set the state to MOVED and queue the close event. */
void connection_moved(struct apachews_client *client);
/* Close the connection if the program has handled its close event after a move. */
void connection_finish_move(struct apachews_client *client);
/* Update epoll interest and closing deadline; remove a connection that has nothing to send. */
void connection_update(struct apachews_client *client);
/* Close the socket and unlink the connection, without an event; a second call does nothing. */
void connection_remove(struct apachews_client *client);
/* End and remove all connections without a CLOSE frame. */
void connections_abandon(apachews_server *server, int code, const char *reason);
/* Release the removed connections, when ready[] does not refer to them any more. */
void connections_free_deferred(apachews_server *server);

#endif
