/* Sending to one client, and the calls that a program makes with one.
 *
 * Contract: on the thread of the server; nothing blocks.
 */
#ifndef APACHEWS_CLIENT_H
#define APACHEWS_CLIENT_H

#include "state.h"

/* Return the errno for a message: 0, EILSEQ (text that is not UTF-8) or EINVAL (its type). */
int client_check_message(apachews_type type, const void *data, size_t length);

/* Send or queue a frame that was made for several clients. */
bool client_send_frame(struct apachews_client *client, struct frame *frame);
/* Send or queue a control frame, in any state. */
bool client_write(struct apachews_client *client, int first, const void *payload, size_t length);
/* Make the client's own connection its lane; false: the connection has ended. */
bool client_leave_channel(struct apachews_client *client);
/* Send or queue a CLOSE, once; a client in ASKED is rejected instead.  False: it is too late.
 * The caller has validated code and reason. */
bool client_send_close(struct apachews_client *client, int code, const char *reason);
/* Send or queue a MOVE, once; a client in ASKED is rejected instead. */
void client_send_move(struct apachews_client *client);

#endif
