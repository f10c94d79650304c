/* What OPEN and PUBLISH say: their payloads, read.  docs/reference/wire.md has their members.  No I/O.
 *
 * A text of OPEN that holds U+0000 is refused, because a string of C would end there and say
 * something else ("ann\0…"); only the values of headers and variables may have it, as these
 * come with a length.
 */
#ifndef APACHEWS_REQUEST_H
#define APACHEWS_REQUEST_H

#include <stddef.h>

#include "apachews.h"

enum request_result { REQUEST_OK, REQUEST_BAD, REQUEST_NO_MEMORY };

struct request {
    apachews_request facts; /* points into text, and into what follows this */
    char *text;
};

/* Read the payload of OPEN; members that are not known are ignored.  What is given is the
 * caller's, who ends it with request_free(). */
enum request_result request_decode(const void *payload, size_t length, struct request **request,
                                   const char **problem);
void request_free(struct request *request);

/* Read the payload of PUBLISH: the group, which the caller frees, or NULL for all clients. */
enum request_result publish_decode(const void *payload, size_t length, char **group,
                                   const char **problem);

#endif
