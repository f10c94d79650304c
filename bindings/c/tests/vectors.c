/* The library's side of docs/reference/wire-vectors.json, for tests/c/test_wire.py: reads one request per
 * line and writes one answer per line.
 *
 *     read MAX HEX       the items of a stream to the producer, as a JSON array; split at each
 *                        position, and into single bytes, the result must be the same
 *     once MAX SEED HEX  the same, split at positions that the seed chooses
 *     frame FIRST HEX    a whole frame, in hexadecimal
 *     header FIRST LENGTH
 *     close HEX          the decoded payload of a CLOSE
 *     answer JSON        an ANSWER frame, in hexadecimal
 */
#include "system.h"

#include <string.h>

#include "answer.h"
#include "check.h"
#include "json.h"
#include "queue.h"
#include "wire.h"

static unsigned char *from_hex(const char *hex, size_t *length)
{
    *length = strlen(hex) / 2;
    unsigned char *data = malloc(*length + 1);
    CHECK(data != NULL);
    for (size_t i = 0; i < *length; i++) {
        unsigned byte;
        CHECK(sscanf(hex + 2 * i, "%2x", &byte) == 1);
        data[i] = (unsigned char)byte;
    }
    return data;
}

static void put_hex(struct json_text *out, const void *data, size_t length)
{
    const unsigned char *bytes = data;
    for (size_t i = 0; i < length; i++) {
        char digits[3];
        snprintf(digits, sizeof digits, "%02x", bytes[i]);
        json_put(out, digits);
    }
}

static void put_number(struct json_text *out, long number)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%ld", number);
    json_put(out, digits);
}

static void put_text(struct json_text *out, const char *name, const char *value)
{
    json_put(out, "\"");
    json_put(out, name);
    json_put(out, "\":");
    if (value != NULL) {
        json_put_string(out, value);
    } else {
        json_put(out, "null");
    }
    json_put(out, ",");
}

static void put_pairs(struct json_text *out, const char *name, const apachews_pair *pairs,
                      size_t count)
{
    json_put(out, "\"");
    json_put(out, name);
    json_put(out, "\":[");
    for (size_t i = 0; i < count; i++) {
        json_put(out, i > 0 ? ",[" : "[");
        json_put_string(out, pairs[i].name);
        json_put(out, ",\"");
        put_hex(out, pairs[i].value, pairs[i].length);
        json_put(out, "\"]");
    }
    json_put(out, "],");
}

static void put_request(struct json_text *out, const apachews_request *request)
{
    json_put(out, "{");
    put_text(out, "id", request->id);
    put_text(out, "method", request->method);
    put_text(out, "uri", request->uri);
    put_text(out, "rewritten_query", request->rewritten_query);
    put_text(out, "scheme", request->scheme);
    put_text(out, "vhost", request->vhost);
    put_text(out, "user", request->user);
    put_text(out, "subprotocol", request->subprotocol);
    put_text(out, "remote_host", request->remote_host);
    put_text(out, "local_host", request->local_host);
    put_text(out, "tls_version", request->tls_version);
    put_text(out, "tls_cipher", request->tls_cipher);
    put_text(out, "tls_server_name", request->tls_server_name);
    put_text(out, "tls_client_subject", request->tls_client_subject);
    put_pairs(out, "headers", request->headers, request->header_count);
    put_pairs(out, "env", request->env, request->env_count);
    json_put(out, "\"offered\":[");
    for (size_t i = 0; i < request->offered_count; i++) {
        json_put(out, i > 0 ? "," : "");
        json_put_string(out, request->offered[i]);
    }
    json_put(out, "],\"ports\":[");
    put_number(out, request->remote_port);
    json_put(out, ",");
    put_number(out, request->local_port);
    json_put(out, request->resumed ? "],\"resumed\":true" : "],\"resumed\":false");
    json_put(out, request->answer_required ? ",\"answer_required\":true}"
                                           : ",\"answer_required\":false}");
}

static void put_close(struct json_text *out, int code, const char *reason, size_t length)
{
    json_put(out, "[");
    put_number(out, code);
    json_put(out, ",\"");
    put_hex(out, reason, length);
    json_put(out, "\"]");
}

static void put_item(struct json_text *out, const struct wire_item *item)
{
    static const char *const names[] = {
        [WIRE_OPEN] = "open",   [WIRE_PUBLISH] = "publish", [WIRE_TEXT] = "text",
        [WIRE_BINARY] = "binary", [WIRE_PONG] = "pong",     [WIRE_CLOSE] = "close",
        [WIRE_MOVE] = "move",   [WIRE_OFFER] = "offer",     [WIRE_BRIDGE] = "bridge",
        [WIRE_VIOLATION] = "error",
    };
    json_put(out, out->length > 1 ? ",{\"" : "{\"");
    json_put(out, names[item->kind]);
    json_put(out, "\":");
    switch (item->kind) {
    case WIRE_OPEN:
        put_request(out, &item->request->facts);
        break;
    case WIRE_PUBLISH:
        if (item->group != NULL) {
            json_put_string(out, item->group);
        } else {
            json_put(out, "null");
        }
        break;
    case WIRE_TEXT:
    case WIRE_BINARY:
        CHECK(item->data[item->length] == '\0');
        /* fall through */
    case WIRE_PONG:
        json_put(out, "\"");
        put_hex(out, item->data, item->length);
        json_put(out, "\"");
        break;
    case WIRE_CLOSE:
        put_close(out, item->code, item->text, strlen(item->text));
        break;
    case WIRE_MOVE:
        json_put(out, "true");
        break;
    case WIRE_OFFER:
        put_number(out, item->key);
        break;
    case WIRE_BRIDGE:
        json_put_string(out, item->text);
        break;
    default:
        CHECK(item->text[0] != '\0');
        put_number(out, item->code);
        break;
    }
    json_put(out, "}");
}

struct run {
    struct wire_reader reader;
    struct json_text out;
};

static void run_begin(struct run *run, uint64_t max_message)
{
    *run = (struct run){.out = {0}};
    wire_reader_init(&run->reader, max_message);
    json_put(&run->out, "[");
}

/* Feed bytes in memory of exact size that is freed afterwards. */
static void run_feed(struct run *run, const unsigned char *data, size_t length)
{
    struct wire_item item;
    unsigned char *copy = malloc(length + 1);
    CHECK(copy != NULL);
    memcpy(copy, data, length);
    wire_reader_feed(&run->reader, copy, length);
    do {
        wire_reader_next(&run->reader, &item);
        if (item.kind != WIRE_NOTHING) {
            put_item(&run->out, &item);
        }
        request_free(item.request);
        free(item.group);
        free(item.owned);
    } while (item.kind != WIRE_NOTHING);
    CHECK(memcmp(copy, data, length) == 0); /* the NULs were undone */
    free(copy);
}

static char *run_end(struct run *run)
{
    json_put(&run->out, "]");
    wire_reader_free(&run->reader);
    CHECK(!run->out.has_failed);
    char *text = strndup(run->out.data, run->out.length);
    CHECK(text != NULL);
    free(run->out.data);
    return text;
}

static void do_read(uint64_t max_message, const char *hex)
{
    size_t length;
    unsigned char *data = from_hex(hex, &length);
    struct run run;
    run_begin(&run, max_message);
    for (size_t i = 0; i < length; i++) {
        run_feed(&run, data + i, 1);
    }
    char *expected = run_end(&run);
    for (size_t cut = 0; cut <= length; cut++) {
        run_begin(&run, max_message);
        run_feed(&run, data, cut);
        run_feed(&run, data + cut, length - cut);
        char *found = run_end(&run);
        if (strcmp(found, expected) != 0) {
            fprintf(stderr, "cut at %zu: %s instead of %s\n", cut, found, expected);
            abort();
        }
        free(found);
    }
    puts(expected);
    free(expected);
    free(data);
}

static void do_once(uint64_t max_message, unsigned seed, const char *hex)
{
    size_t length;
    unsigned char *data = from_hex(hex, &length);
    struct run run;
    run_begin(&run, max_message);
    for (size_t at = 0; at < length;) {
        seed = seed * 1103515245 + 12345;
        size_t size = 1 + (seed >> 16) % (seed & 1 ? 7 : 400);
        if (size > length - at) {
            size = length - at;
        }
        run_feed(&run, data + at, size);
        at += size;
    }
    char *found = run_end(&run);
    puts(found);
    free(found);
    free(data);
}

static void print_hex(const void *data, size_t length)
{
    struct json_text out = {0};
    put_hex(&out, data, length);
    printf("%.*s\n", (int)out.length, out.data);
    free(out.data);
}

static void do_close(const char *hex)
{
    size_t length;
    unsigned char *payload = from_hex(hex, &length);
    char reason[WIRE_MAX_CONTROL + 1];
    const char *problem = NULL;
    int code;
    int error = wire_decode_close(payload, length, &code, reason, &problem);
    struct json_text out = {0};
    if (error != 0) {
        CHECK(problem != NULL);
        put_number(&out, error);
    } else {
        put_close(&out, code, reason, strlen(reason));
    }
    printf("%.*s\n", (int)out.length, out.data);
    free(out.data);
    free(payload);
}

static void do_answer(const char *line)
{
    struct json_document document;
    CHECK(json_parse(&document, line, strlen(line)) == JSON_OK);
    const struct json_value *root = json_root(&document);
    const struct json_value *headers = json_member(&document, root, "headers");
    const struct json_value *subprotocol = json_member(&document, root, "subprotocol");
    const struct json_value *body = json_member(&document, root, "body");
    const struct json_value *status = json_member(&document, root, "status");
    apachews_pair *pairs = calloc(headers->count + 1, sizeof *pairs);
    CHECK(pairs != NULL);
    size_t count = 0;
    for (const struct json_value *v = json_first(&document, headers); v != NULL;
         v = json_next(&document, v)) {
        const struct json_value *name = json_first(&document, v);
        pairs[count].name = name->text;
        pairs[count++].value = json_next(&document, name)->text;
    }
    struct answer answer = {
        .accepts = json_is_true(json_member(&document, root, "accept")),
        .subprotocol = subprotocol && subprotocol->type == JSON_STRING ? subprotocol->text : NULL,
        .status = status ? (int)status->integer : 0,
        .body = body ? body->text : NULL,
        .headers = pairs,
        .header_count = count,
    };
    struct json_text text = {0};
    CHECK(answer_encode(&answer, &text, NULL));
    struct frame *frame = frame_new(WIRE_FIN | WIRE_OP_ANSWER, text.data, text.length);
    CHECK(frame != NULL);
    print_hex(frame->bytes, frame->size);
    frame_release(frame);
    free(text.data);
    free(pairs);
    json_free(&document);
}

static void do_line(char *line)
{
    char *save;
    char *what = strtok_r(line, " ", &save);
    char *first = strtok_r(NULL, "", &save);
    CHECK(what != NULL);
    if (first == NULL) {
        first = line + strlen(line);
    }
    char *end;
    if (strcmp(what, "read") == 0) {
        uint64_t max_message = strtoull(first, &end, 10);
        do_read(max_message, end + 1);
    } else if (strcmp(what, "once") == 0) {
        uint64_t max_message = strtoull(first, &end, 10);
        unsigned seed = (unsigned)strtoul(end + 1, &end, 10);
        do_once(max_message, seed, end + 1);
    } else if (strcmp(what, "frame") == 0) {
        size_t length;
        int head = (int)strtol(first, &end, 10);
        unsigned char *payload = from_hex(*end ? end + 1 : end, &length);
        struct frame *frame = frame_new(head, payload, length);
        CHECK(frame != NULL);
        print_hex(frame->bytes, frame->size);
        frame_release(frame);
        free(payload);
    } else if (strcmp(what, "header") == 0) {
        unsigned char header[WIRE_MAX_HEADER];
        int head = (int)strtol(first, &end, 10);
        print_hex(header, wire_encode_header(header, head, strtoull(end + 1, NULL, 10)));
    } else if (strcmp(what, "close") == 0) {
        do_close(first);
    } else if (strcmp(what, "answer") == 0) {
        do_answer(first);
    } else {
        CHECK(!"a request that is known");
    }
    fflush(stdout);
}

int main(void)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    while ((length = getline(&line, &capacity, stdin)) > 0) {
        line[length - 1] = '\0';
        do_line(line);
    }
    free(line);
    return 0;
}
