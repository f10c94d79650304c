/* The producer's answer to OPEN, where Apache leaves the decision to it.
 *
 * Contract: an answer is checked and becomes the payload of an ANSWER, or *error says what
 * may not be sent.  No I/O.
 *
 * Sources: docs/reference/wire.md; RFC 9110 5.1, 5.5 (field names and values), 15. (status).
 */
#ifndef APACHEWS_ANSWER_H
#define APACHEWS_ANSWER_H

#include "apachews.h"
#include "json.h"

struct answer {
    bool accepts;
    const char *subprotocol; /* with yes, or NULL */
    int status;              /* with no */
    const char *body;        /* with no, or NULL */
    const apachews_pair *headers;
    size_t header_count;
};

/* Write it to a text, whose data the caller frees, also where it fails. */
bool answer_encode(const struct answer *answer, struct json_text *text, apachews_error *error);

#endif
