/* Decoding the payloads of OPEN and PUBLISH.  docs/reference/wire.md lists their members.  No I/O.
 *
 * A string with U+0000 in OPEN is an error, because a C string would end there and differ
 * ("ann\0…").  Only the values of headers and variables may contain it: these have a length.
 */
#ifndef APACHEWS_REQUEST_H
#define APACHEWS_REQUEST_H

#include <stddef.h>

#include "apachews.h"

enum request_result { REQUEST_OK, REQUEST_BAD, REQUEST_NO_MEMORY };

struct request {
    apachews_request facts; /* points into text, and into memory after this structure */
    const char *bridge; /* id of the bridge process if it has channels, or NULL */
    char *text;
};

/* Decode the payload of OPEN; unknown members are ignored.  The caller frees *request with
 * request_free(). */
enum request_result request_decode(const void *payload, size_t length, struct request **request,
                                   const char **problem);
void request_free(struct request *request);

/* Decode the payload of PUBLISH: *group is for free() by the caller; NULL: all clients. */
enum request_result publish_decode(const void *payload, size_t length, char **group,
                                   const char **problem);

#endif
