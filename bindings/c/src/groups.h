/* Groups of clients, by name.  For server.c and client.c; nothing blocks.
 *
 * A group is there as long as it has a member.  They are in a balanced tree (tsearch(3)), so
 * that no choice of names makes looking one up slow. */
#ifndef APACHEWS_GROUPS_H
#define APACHEWS_GROUPS_H

#include "client.h"

/* End all memberships of a client. */
void groups_leave_all(struct apachews_client *client);
/* Send a frame to every member of a group but one, or NULL. */
apachews_delivery groups_send(apachews_server *server, const char *name, struct frame *frame,
                              const apachews_client *except);

#endif
