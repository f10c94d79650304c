/* A strict JSON parser (RFC 8259), for OPEN and PUBLISH; and a writer, for ANSWER.
 *
 * Contract: json_parse() parses a whole document; json_free() frees it, also after a failure.
 * Values point into the document and are valid as long as it.  No I/O.
 *
 * Limits: the caller limits the size; JSON_MAX_DEPTH and JSON_MAX_VALUES limit the rest.  A
 * document uses one buffer for strings, as large as its source, and one for values.
 *
 * RFC 8259 leaves some cases open; they are handled as in Python's json: of members with the same
 * name the last one counts, and an unpaired surrogate is valid.  It becomes U+FFFD, because UTF-8
 * cannot encode it.
 */
#ifndef APACHEWS_JSON_H
#define APACHEWS_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* OPEN has a depth of four. */
#define JSON_MAX_DEPTH 32
/* A request with 100 headers, httpd's limit, has some 350. */
#define JSON_MAX_VALUES 100000

enum json_type {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
};

enum json_result { JSON_OK, JSON_BAD, JSON_NO_MEMORY };

struct json_value {
    enum json_type type;
    bool is_integer;      /* a number that fits into long long */
    uint32_t next;        /* index of the next value in the same array or object, or 0 */
    uint32_t count;       /* values of an array; names and values of an object */
    size_t length;        /* of a string; a NUL follows it */
    union {
        long long integer;
        const char *text;
        uint32_t first;   /* index in an array or object; in an object names are values too */
    };
};

struct json_document {
    struct json_value *values; /* the first is the root */
    uint32_t count;
    uint32_t capacity;
    char *text;
};

enum json_result json_parse(struct json_document *document, const void *data, size_t length);
void json_free(struct json_document *document);

/* The root value. */
const struct json_value *json_root(const struct json_document *document);
/* The first value of an array, or the first name of an object; NULL: it is empty. */
const struct json_value *json_first(const struct json_document *document,
                                    const struct json_value *value);
/* The next value in the same array or object, or NULL. */
const struct json_value *json_next(const struct json_document *document,
                                   const struct json_value *value);
/* A member of an object; NULL: not found, or value is NULL or not an object. */
const struct json_value *json_member(const struct json_document *document,
                                     const struct json_value *value, const char *name);
/* The truth value, as Python's bool(). */
bool json_is_true(const struct json_value *value);

/* A growing text; after a failed allocation it does not grow any more. */
struct json_text {
    char *data;
    size_t length;
    size_t capacity;
    bool has_failed;
};

/* Append literally. */
void json_put(struct json_text *text, const char *literally);
/* Append a UTF-8 string, quoted and escaped to ASCII. */
void json_put_string(struct json_text *text, const char *string);

#endif
