#include "system.h"

#include "request.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json.h"

#define VERSION 1
/* The version of groups at the edge. */
#define GROUPS 1

struct reading {
    const struct json_document *document;
    const char *problem; /* the first one, or NULL */
};

static const struct json_value *member(struct reading *reading, const struct json_value *object,
                                       const char *name, const char *problem)
{
    const struct json_value *found = json_member(reading->document, object, name);
    if (found == NULL && reading->problem == NULL) {
        reading->problem = problem;
    }
    return found;
}

static const char *text(struct reading *reading, const struct json_value *value,
                        const char *problem)
{
    if (value != NULL && value->type == JSON_STRING && strlen(value->text) == value->length) {
        return value->text;
    }
    if (reading->problem == NULL) {
        reading->problem = problem;
    }
    return "";
}

static const char *text_or_null(struct reading *reading, const struct json_value *value,
                                const char *problem)
{
    return value != NULL && value->type == JSON_NULL ? NULL : text(reading, value, problem);
}

static void address(struct reading *reading, const struct json_value *value, const char **host,
                    int *port)
{
    static const char problem[] = "OPEN: an address is not [host, port]";
    if (value == NULL || value->type != JSON_ARRAY || value->count != 2) {
        reading->problem = reading->problem ? reading->problem : problem;
        return;
    }
    const struct json_value *first = json_first(reading->document, value);
    const struct json_value *second = json_next(reading->document, first);
    *host = text(reading, first, problem);
    if (second->type != JSON_NUMBER || !second->is_integer || second->integer < INT_MIN ||
        second->integer > INT_MAX) {
        reading->problem = reading->problem ? reading->problem : problem;
        return;
    }
    *port = (int)second->integer;
}

static void pair(struct reading *reading, apachews_pair *pair, const struct json_value *name,
                 const struct json_value *value, const char *problem)
{
    pair->name = text(reading, name, problem);
    if (value == NULL || value->type != JSON_STRING) {
        reading->problem = reading->problem ? reading->problem : problem;
        return;
    }
    pair->value = value->text;
    pair->length = value->length;
}

/* Return the root if its version is supported; NULL: see *problem. */
static const struct json_value *root_of(const struct json_document *document, const char *name,
                                        const char **problem)
{
    const struct json_value *root = json_root(document);
    const struct json_value *version = json_member(document, root, "version");
    if (version != NULL && version->type == JSON_NUMBER && version->is_integer &&
        version->integer == VERSION) {
        return root;
    }
    *problem = name[0] == 'O' ? "OPEN has an unsupported version: expected 1"
                              : "PUBLISH has an unsupported version: expected 1";
    return NULL;
}

static void tls(struct reading *reading, apachews_request *facts, const struct json_value *value)
{
    static const char problem[] = "OPEN: a member of \"tls\" is missing or not a string";
    if (value == NULL || value->type == JSON_NULL) {
        return;
    }
    const struct json_value *name = member(reading, value, "server_name", problem);
    const struct json_value *subject = member(reading, value, "client_subject", problem);
    facts->tls_version = text(reading, member(reading, value, "version", problem), problem);
    facts->tls_cipher = text(reading, member(reading, value, "cipher", problem), problem);
    facts->tls_server_name = text_or_null(reading, name, problem);
    facts->tls_client_subject = text_or_null(reading, subject, problem);
}

/* Return the id of a bridge process that offers the groups of this version, or NULL. */
static const char *bridge(struct reading *reading, const struct json_value *value)
{
    static const char problem[] = "OPEN: a member of \"bridge\" is missing or has the wrong type";
    if (value == NULL || value->type == JSON_NULL) {
        return NULL;
    }
    const struct json_value *groups = member(reading, value, "groups", problem);
    if (groups == NULL || groups->type != JSON_NUMBER || !groups->is_integer ||
        groups->integer != GROUPS) {
        return NULL;
    }
    return text(reading, member(reading, value, "id", problem), problem);
}

struct lists {
    const struct json_value *headers;
    const struct json_value *offered;
    const struct json_value *env;
};

static void read_lists(struct reading *reading, const struct lists *lists, apachews_pair *pairs,
                       const char **names, apachews_request *facts)
{
    const struct json_document *document = reading->document;
    facts->headers = pairs;
    for (const struct json_value *v = json_first(document, lists->headers); v != NULL;
         v = json_next(document, v)) {
        static const char problem[] = "OPEN: a header is not a pair of strings";
        if (v->type != JSON_ARRAY || v->count != 2) {
            reading->problem = reading->problem ? reading->problem : problem;
            return;
        }
        const struct json_value *name = json_first(document, v);
        pair(reading, pairs++, name, json_next(document, name), problem);
        facts->header_count++;
    }
    facts->env = pairs;
    for (const struct json_value *v = json_first(document, lists->env); v != NULL;) {
        const struct json_value *value = json_next(document, v);
        pair(reading, pairs++, v, value, "OPEN: a variable is not a string");
        facts->env_count++;
        v = json_next(document, value);
    }
    facts->offered = names;
    for (const struct json_value *v = json_first(document, lists->offered); v != NULL;
         v = json_next(document, v)) {
        *names++ = text(reading, v, "OPEN: a subprotocol is not a string");
        facts->offered_count++;
    }
}

static enum request_result read_open(struct reading *reading, const struct json_value *root,
                                     struct request **request)
{
    const struct json_value *line = member(reading, root, "request", "OPEN: missing member request");
    const struct json_value *subprotocols =
        member(reading, root, "subprotocols", "OPEN: missing member subprotocols");
    struct lists lists = {
        .headers = member(reading, line, "headers", "OPEN: missing member headers"),
        .offered = member(reading, subprotocols, "offered", "OPEN: missing member offered"),
        .env = member(reading, root, "env", "OPEN: missing member env"),
    };
    if (reading->problem == NULL &&
        (lists.headers->type != JSON_ARRAY || lists.offered->type != JSON_ARRAY ||
         lists.env->type != JSON_OBJECT)) {
        reading->problem = "OPEN: headers, offered or env has the wrong type";
    }
    if (reading->problem != NULL) {
        return REQUEST_BAD;
    }
    size_t pair_count = lists.headers->count + lists.env->count / 2;
    struct request *made =
        calloc(1, sizeof *made + pair_count * sizeof(apachews_pair) +
                      lists.offered->count * sizeof(const char *));
    if (made == NULL) {
        return REQUEST_NO_MEMORY;
    }
    *request = made;
    apachews_pair *pairs = (apachews_pair *)(made + 1);
    apachews_request *facts = &made->facts;
    read_lists(reading, &lists, pairs, (const char **)(pairs + pair_count), facts);

#define MEMBER(object, name) member(reading, object, name, "OPEN: missing member " name)
#define TEXT(object, name) text(reading, MEMBER(object, name), "OPEN: " name " is not a string")
    facts->id = TEXT(root, "id");
    facts->method = TEXT(line, "method");
    facts->uri = TEXT(line, "uri");
    const struct json_value *query = json_member(reading->document, line, "query");
    facts->rewritten_query =
        query == NULL ? NULL : text_or_null(reading, query, "OPEN: query is not a string");
    facts->scheme = TEXT(root, "scheme");
    facts->vhost = TEXT(root, "vhost");
    facts->user = text_or_null(reading, MEMBER(root, "user"), "OPEN: user is not a string");
    facts->subprotocol =
        text_or_null(reading, MEMBER(subprotocols, "chosen"), "OPEN: chosen is not a string");
    address(reading, MEMBER(root, "remote"), &facts->remote_host, &facts->remote_port);
    address(reading, MEMBER(root, "local"), &facts->local_host, &facts->local_port);
    tls(reading, facts, json_member(reading->document, root, "tls"));
    made->bridge = bridge(reading, json_member(reading->document, root, "bridge"));
    const struct json_value *resumed = MEMBER(root, "resumed");
    const struct json_value *answer_required = MEMBER(root, "answer_required");
#undef TEXT
#undef MEMBER
    if (reading->problem != NULL) {
        return REQUEST_BAD;
    }
    facts->resumed = json_is_true(resumed);
    facts->answer_required = json_is_true(answer_required);
    return REQUEST_OK;
}

enum request_result request_decode(const void *payload, size_t length, struct request **request,
                                   const char **problem)
{
    struct json_document document;
    struct reading reading = {.document = &document};
    enum request_result result = REQUEST_BAD;
    *request = NULL;
    enum json_result parsed = json_parse(&document, payload, length);
    if (parsed == JSON_NO_MEMORY) {
        result = REQUEST_NO_MEMORY;
    } else if (parsed == JSON_BAD) {
        *problem = "OPEN: invalid JSON";
    } else {
        const struct json_value *root = root_of(&document, "OPEN", problem);
        if (root != NULL) {
            result = read_open(&reading, root, request);
            *problem = reading.problem;
        }
    }
    if (result == REQUEST_OK) {
        (*request)->text = document.text;
        document.text = NULL;
    } else {
        request_free(*request);
        *request = NULL;
    }
    json_free(&document);
    return result;
}

void request_free(struct request *request)
{
    if (request != NULL) {
        free(request->text);
        free(request);
    }
}

enum request_result publish_decode(const void *payload, size_t length, char **group,
                                   const char **problem)
{
    struct json_document document;
    enum request_result result = REQUEST_BAD;
    *group = NULL;
    enum json_result parsed = json_parse(&document, payload, length);
    if (parsed == JSON_NO_MEMORY) {
        result = REQUEST_NO_MEMORY;
    } else if (parsed == JSON_BAD) {
        *problem = "PUBLISH: invalid JSON";
    } else {
        const struct json_value *root = root_of(&document, "PUBLISH", problem);
        if (root != NULL) {
            const struct json_value *value = json_member(&document, root, "group");
            if (value == NULL || value->type == JSON_NULL) {
                result = REQUEST_OK;
            } else if (value->type == JSON_STRING && strlen(value->text) == value->length) {
                *group = strdup(value->text);
                result = *group != NULL ? REQUEST_OK : REQUEST_NO_MEMORY;
            } else {
                *problem = "PUBLISH: group is neither a string nor null";
            }
        }
    }
    json_free(&document);
    return result;
}

static const char *find(const apachews_pair *pairs, size_t count, const char *name,
                        int compare(const char *, const char *))
{
    for (size_t i = 0; i < count; i++) {
        if (compare(pairs[i].name, name) == 0) {
            return pairs[i].value;
        }
    }
    return NULL;
}

const char *apachews_request_header(const apachews_request *request, const char *name)
{
    return find(request->headers, request->header_count, name, strcasecmp);
}

const char *apachews_request_env(const apachews_request *request, const char *name)
{
    return find(request->env, request->env_count, name, strcmp);
}

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* Decode one byte of a query (application/x-www-form-urlencoded), and advance *at. */
static char query_byte(const char **at)
{
    const char *p = *at;
    if (*p == '%' && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0) {
        *at += 3;
        return (char)(hex_digit(p[1]) << 4 | hex_digit(p[2]));
    }
    *at += 1;
    return *p == '+' ? ' ' : *p;
}

static bool is_in(const char *at, const char *ends)
{
    return *at != '\0' && strchr(ends, *at) == NULL;
}

long apachews_request_query(const apachews_request *request, const char *name, char *value,
                            size_t capacity)
{
    const char *uri_query = strchr(request->uri, '?');
    const char *at = request->rewritten_query != NULL ? request->rewritten_query
                     : uri_query != NULL              ? uri_query + 1
                                                      : NULL;
    while (at != NULL) {
        const char *expected = name;
        while (is_in(at, "=&") && *expected != '\0' && query_byte(&at) == *expected) {
            expected++;
        }
        if (*expected == '\0' && !is_in(at, "=&")) {
            size_t length = 0;
            at += *at == '=';
            while (is_in(at, "&")) {
                char byte = query_byte(&at);
                if (length + 1 < capacity) {
                    value[length] = byte;
                }
                length++;
            }
            if (capacity > 0) {
                value[length < capacity ? length : capacity - 1] = '\0';
            }
            return (long)length;
        }
        at = strchr(at, '&');
        at += at != NULL;
    }
    return -1;
}
