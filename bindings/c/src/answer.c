#include "system.h"

#include "answer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "error.h"
#include "utf8.h"
#include "wire.h"

/* Headers that the handshake or httpd sets. */
static const char *const reserved[] = {
    "connection", "content-length", "date",    "keep-alive", "server", "te", "trailer",
    "transfer-encoding", "upgrade",
};

static bool is_token(const char *name)
{
    static const char others[] = "!#$%&'*+-.^_`|~";
    for (const char *p = name; *p != '\0'; p++) {
        bool is_letter = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z');
        if (!is_letter && !(*p >= '0' && *p <= '9') && strchr(others, *p) == NULL) {
            return false;
        }
    }
    return *name != '\0';
}

/* Visible ASCII, inner blanks, and obs-text (ISO 8859-1, as in OPEN). */
static bool is_value(const char *value)
{
    size_t length = strlen(value);
    bool is_blank = false;
    for (size_t at = 0; at < length;) {
        uint32_t character;
        size_t size = utf8_decode(value + at, length - at, &character);
        is_blank = character == ' ' || character == '\t';
        bool is_visible =
            (character > 0x20 && character < 0x7F) || (character >= 0x80 && character <= 0xFF);
        if (size == 0 || !(is_visible || (is_blank && at > 0))) {
            return false;
        }
        at += size;
    }
    return !is_blank;
}

static bool is_reserved(const char *name)
{
    for (size_t i = 0; i < sizeof reserved / sizeof reserved[0]; i++) {
        if (strcasecmp(name, reserved[i]) == 0) {
            return true;
        }
    }
    return strncasecmp(name, "sec-websocket-", 14) == 0;
}

static bool is_sendable(const struct answer *answer, apachews_error *error)
{
    if (answer->subprotocol != NULL && !is_token(answer->subprotocol)) {
        error_set(error, APACHEWS_BAD_ANSWER, 0, "invalid subprotocol \"%.80s\": it must be a token",
                  answer->subprotocol);
        return false;
    }
    if (!answer->accepts && (answer->status < 300 || answer->status > 599)) {
        error_set(error, APACHEWS_BAD_ANSWER, 0, "status %d cannot reject: use 300 to 599",
                  answer->status);
        return false;
    }
    if (answer->body != NULL && !utf8_is_valid(answer->body, strlen(answer->body))) {
        error_set(error, APACHEWS_BAD_ANSWER, 0, "the body is not UTF-8");
        return false;
    }
    for (size_t i = 0; i < answer->header_count; i++) {
        const apachews_pair *header = &answer->headers[i];
        if (!is_token(header->name) || !is_value(header->value)) {
            error_set(error, APACHEWS_BAD_ANSWER, 0,
                      "invalid header \"%.80s\": \"%.80s\"", header->name,
                      header->value);
            return false;
        }
        if (is_reserved(header->name)) {
            error_set(error, APACHEWS_BAD_ANSWER, 0, "the producer cannot set the header %.80s",
                      header->name);
            return false;
        }
    }
    return true;
}

bool answer_encode(const struct answer *answer, struct json_text *text, apachews_error *error)
{
    if (!is_sendable(answer, error)) {
        return false;
    }
    json_put(text, answer->accepts ? "{\"accept\":true,\"headers\":["
                                   : "{\"accept\":false,\"headers\":[");
    for (size_t i = 0; i < answer->header_count; i++) {
        json_put(text, i > 0 ? ",[" : "[");
        json_put_string(text, answer->headers[i].name);
        json_put(text, ",");
        json_put_string(text, answer->headers[i].value);
        json_put(text, "]");
    }
    if (answer->accepts) {
        json_put(text, "],\"subprotocol\":");
        if (answer->subprotocol != NULL) {
            json_put_string(text, answer->subprotocol);
        } else {
            json_put(text, "null");
        }
    } else {
        char status[32];
        snprintf(status, sizeof status, "],\"status\":%d,\"body\":", answer->status);
        json_put(text, status);
        json_put_string(text, answer->body != NULL ? answer->body : "");
    }
    json_put(text, "}");
    if (text->has_failed) {
        error_set(error, APACHEWS_SYSTEM_ERROR, ENOMEM, "out of memory for the answer");
        return false;
    }
    if (text->length > WIRE_MAX_ANSWER) {
        error_set(error, APACHEWS_BAD_ANSWER, 0, "the answer has %zu bytes; the limit is %u",
                  text->length, WIRE_MAX_ANSWER);
        return false;
    }
    return true;
}
