/* The producer's answer to OPEN, with APACHEWS_ACCEPT producer.
 *
 * Contract: answer_encode() validates an answer and encodes it as the payload of ANSWER, or sets
 * *error.  No I/O.
 *
 * Sources: docs/reference/wire.md; RFC 9110 5.1, 5.5 (field names and values), 15. (status).
 */
#ifndef APACHEWS_ANSWER_H
#define APACHEWS_ANSWER_H

#include "apachews.h"
#include "json.h"

struct answer {
    bool accepts;
    const char *subprotocol; /* if accepts; or NULL */
    int status;              /* if not */
    const char *body;        /* if not; or NULL */
    const apachews_pair *headers;
    size_t header_count;
};

/* Write the payload to *text; the caller frees text->data, also on failure. */
bool answer_encode(const struct answer *answer, struct json_text *text, apachews_error *error);

#endif
