/* Accepting from the listening socket.
 *
 * Contract: accept_start() and accept_stop() frame the time in which the server accepts.  An
 * accept error pauses accepting for a second and is left in server->accept_error for the next
 * event.  Nothing blocks.
 */
#ifndef APACHEWS_ACCEPT_H
#define APACHEWS_ACCEPT_H

#include "state.h"

/* Add the listening socket to epoll; false: errno. */
bool accept_start(apachews_server *server);
/* Close the listening socket and remove its file. */
void accept_stop(apachews_server *server);
/* Accept the clients in the backlog. */
void accept_clients(apachews_server *server);
/* End a pause whose time is over. */
void accept_resume(apachews_server *server, int64_t now_ms);

#endif
