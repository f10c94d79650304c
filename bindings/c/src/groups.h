/* Groups of clients, by name: their members.  publish.c sends to them.
 *
 * A group exists as long as it has a member.  A balanced tree (tsearch(3)) holds the groups, so
 * that lookups stay fast whatever names clients choose.  Nothing blocks. */
#ifndef APACHEWS_GROUPS_H
#define APACHEWS_GROUPS_H

#include "state.h"

/* Remove a client from all of its groups. */
void groups_leave_all(struct apachews_client *client);
/* The members in the order of joining; NULL: no (more) members.  A membership is valid until its
 * client leaves the group. */
const struct membership *groups_first_member(const apachews_server *server, const char *name);
const struct membership *groups_next_member(const struct membership *membership);
struct apachews_client *groups_client(const struct membership *membership);
/* The group's numbers on channels, as a list; NULL: it has no members there. */
const struct channel_group *groups_channels(const apachews_server *server, const char *name);

#endif
