/* Sending one message to many clients: broadcast, groups, publishers on the wire. */
#ifndef APACHEWS_PUBLISH_H
#define APACHEWS_PUBLISH_H

#include "state.h"

/* Deliver a publisher's message, and answer with the numbers of reached and skipped clients. */
void publish_receive(struct apachews_client *publisher, const struct wire_item *item);

#endif
