/* A strict reader of JSON (RFC 8259), for OPEN and PUBLISH; and a writer, for ANSWER.
 *
 * Contract: json_parse() takes a whole document, and json_free() what it gave, also where
 * it failed.  Values point into the document and live as long as it.  No I/O.
 *
 * Bounds: the caller's on the size; JSON_MAX_DEPTH and JSON_MAX_VALUES here.  The memory is
 * one of text, as large as the document, and one of values.
 *
 * What RFC 8259 leaves open is as in Python's json: of members of one name the last counts,
 * and an unpaired surrogate is no error.  It becomes U+FFFD, as UTF-8 has no form for it.
 */
#ifndef APACHEWS_JSON_H
#define APACHEWS_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* OPEN is four deep. */
#define JSON_MAX_DEPTH 32
/* A head of 100 headers, httpd's limit, has some 350. */
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
    bool is_integer;      /* a number that long long holds */
    uint32_t next;        /* the next one in the same array or object, or 0 */
    uint32_t count;       /* of an array: values; of an object: names and values */
    size_t length;        /* of a text; a NUL follows it */
    union {
        long long integer;
        const char *text;
        uint32_t first;   /* of an array or object; in an object each name is a value of its own */
    };
};

struct json_document {
    struct json_value *values; /* the first is the document's own; an empty place behind the last */
    uint32_t count;
    uint32_t capacity;
    char *text;
};

enum json_result json_parse(struct json_document *document, const void *data, size_t length);
void json_free(struct json_document *document);

/* The document's own value. */
const struct json_value *json_root(const struct json_document *document);
/* The first value of an array, the first name of an object; NULL for an empty one. */
const struct json_value *json_first(const struct json_document *document,
                                    const struct json_value *value);
/* What comes behind it in its array or object, or NULL. */
const struct json_value *json_next(const struct json_document *document,
                                   const struct json_value *value);
/* A member of an object; NULL where there is none, or value is NULL or no object. */
const struct json_value *json_member(const struct json_document *document,
                                     const struct json_value *value, const char *name);
/* What Python's bool() would say of it. */
bool json_is_true(const struct json_value *value);

/* Text that grows; once there was no memory nothing is added any more. */
struct json_text {
    char *data;
    size_t length;
    size_t capacity;
    bool has_failed;
};

void json_put(struct json_text *text, const char *literally);
/* A string of UTF-8, in quotes and in ASCII. */
void json_put_string(struct json_text *text, const char *string);

#endif
