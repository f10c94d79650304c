/* Tables for the functions without I/O: UTF-8, JSON, OPEN, ANSWER, languages. */
#include "system.h"

#include <string.h>

#include "answer.h"
#include "check.h"
#include "json.h"
#include "language.h"
#include "request.h"
#include "utf8.h"
#include "wire.h"

static void test_utf8(void)
{
    static const struct {
        const char *text;
        bool is_valid;
    } cases[] = {
        {"", true},
        {"plain text, longer than eight bytes", true},
        {"gr\xC3\xBC\xC3\x9F" "e \xF0\x9F\x99\x82", true},
        {"\xEF\xBF\xBF \xF4\x8F\xBF\xBF", true},
        {"\x80", false},
        {"\xC0\x80", false},             /* overlong */
        {"\xE0\x9F\xBF", false},
        {"\xF0\x8F\xBF\xBF", false},
        {"\xED\xA0\x80", false},         /* a surrogate */
        {"\xF4\x90\x80\x80", false},     /* above U+10FFFF */
        {"\xFF", false},
        {"eight by\xC3", false},         /* truncated */
        {"eight byt\xE2\x82", false},
        {"\xC3\x28", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        CHECK(utf8_is_valid(cases[i].text, strlen(cases[i].text)) == cases[i].is_valid);
    }
    CHECK(utf8_is_valid("a\0b", 3));
    /* Every character, encoded and decoded. */
    for (uint32_t character = 0; character <= 0x10FFFF; character++) {
        char text[UTF8_MAX];
        uint32_t again;
        if (character == 0xD800) {
            character = 0xE000;
        }
        size_t size = utf8_encode(character, text);
        CHECK(utf8_decode(text, size, &again) == size && again == character);
        CHECK(size == 1 || utf8_decode(text, size - 1, &again) == 0);
    }
    CHECK(utf8_truncate("abc", 3, 5) == 3);
    CHECK(utf8_truncate("a\xC3\xA9", 3, 2) == 1);
    CHECK(utf8_truncate("\xF0\x9F\x99\x82", 4, 3) == 0);
}

static bool parses(const char *text, size_t length)
{
    struct json_document document;
    /* Of exact size: a sanitizer detects reads after the end. */
    char *copy = malloc(length + (length == 0));
    CHECK(copy != NULL);
    memcpy(copy, text, length);
    enum json_result result = json_parse(&document, copy, length);
    json_free(&document);
    free(copy);
    CHECK(result != JSON_NO_MEMORY);
    return result == JSON_OK;
}

static void test_json_grammar(void)
{
    static const char *const good[] = {
        "{}", "[]", "null", "true", "false", "0", "-0", "12", "-12", "0.5", "1e9", "1E+9", "1.25e-3",
        "\"\"", " [ 1 , 2 ] ", "{\"a\":{\"b\":[1,{}]}}", "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00e9\"",
        "\"\\ud83d\\ude42\"", "\"\\ud83d\"", "\"\\ud83d\\u0041\"", "\"\\ude42\"", "\t\r\n 1",
        "123456789012345678901234567890",
    };
    static const char *const bad[] = {
        "", " ", "{", "}", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}",
        "{\"a\":1,}", "{1:2}", "{\"a\" 1}", "{,}", "nul", "nullx", "True", "+1", "01", "1.", ".5",
        "1e", "1e+", "-", "NaN", "Infinity", "'a'", "\"", "\"\\\"", "\"\\x\"", "\"\\u12\"",
        "\"\\u12g4\"", "\"\t\"", "\"\xC3\"", "\"\xED\xA0\x80\"", "1 2", "{} {}", "\"\\ud83d\\u\"",
        "\"\\ud83d\\u12x4\"", "\xEF\xBB\xBF{}",
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK(parses(good[i], strlen(good[i])));
        /* No prefix of a container or a string is a document. */
        if (strchr("{[\"", good[i][0]) != NULL) {
            for (size_t length = 0; length < strlen(good[i]); length++) {
                CHECK(!parses(good[i], length));
            }
        }
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        CHECK(!parses(bad[i], strlen(bad[i])));
    }
}

static void test_json_bounds(void)
{
    size_t length = 2 * (JSON_MAX_VALUES + 10) + 2;
    char *text = malloc(length);
    CHECK(text != NULL);
    for (int depth = 1; depth < 2000; depth *= 2) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        CHECK(parses(text, 2 * (size_t)depth) == (depth <= JSON_MAX_DEPTH));
    }
    for (size_t i = 0; i < length; i += 2) {
        memcpy(text + i, "1,", 2);
    }
    text[0] = '[';
    text[length - 1] = ']';
    text[length - 2] = '1';
    text[1] = ' ';
    CHECK(!parses(text, length));
    free(text);
}

static void test_json_values(void)
{
    static const char text[] = "{\"a\":[1,-2,\"\\u0000x\",\"\\ud83d\\ude42\\ude42\"],\"b\":1.5,"
                               "\"a\\u0062\":\"first\",\"ab\":\"last\"}";
    struct json_document document;
    CHECK(json_parse(&document, text, strlen(text)) == JSON_OK);
    const struct json_value *root = json_root(&document);
    const struct json_value *list = json_member(&document, root, "a");
    CHECK(list->type == JSON_ARRAY && list->count == 4);
    const struct json_value *value = json_first(&document, list);
    CHECK(value->is_integer && value->integer == 1);
    value = json_next(&document, value);
    CHECK(value->is_integer && value->integer == -2);
    value = json_next(&document, value);
    CHECK(value->length == 2 && memcmp(value->text, "\0x", 3) == 0);
    value = json_next(&document, value);
    CHECK(strcmp(value->text, "\xF0\x9F\x99\x82\xEF\xBF\xBD") == 0);
    CHECK(json_next(&document, value) == NULL);
    CHECK(!json_member(&document, root, "b")->is_integer);
    CHECK(strcmp(json_member(&document, root, "ab")->text, "last") == 0);
    CHECK(json_member(&document, root, "c") == NULL);
    CHECK(json_member(&document, list, "a") == NULL);
    CHECK(json_member(&document, NULL, "a") == NULL);
    json_free(&document);
}

#define HEAD "{\"version\":1,\"id\":\"i\",\"resumed\":false,\"request\":{\"method\":\"GET\",\"uri\":"
#define MIDDLE                                                                                  \
    "},\"remote\":[\"203.0.113.7\",51514],\"local\":[\"::1\",443],\"scheme\":\"ws\",\"user\":"
#define TAIL                                                                                    \
    ",\"vhost\":\"v\",\"subprotocols\":{\"offered\":[\"a\",\"b\"],\"chosen\":null},"            \
    "\"env\":{\"GEO\":\"CH\",\"NUL\":\"a\\u0000b\"},\"answer_required\":true}"

static void test_request(void)
{
    static const char text[] = HEAD "\"/x?a=1&name=%C3%A4+b%2&&a=2&=e&flag&%61b=c\",\"headers\":"
                                    "[[\"x-latin\",\"\\u00e9\"],[\"host\",\"h\"]]" MIDDLE
                                    "null" TAIL;
    struct request *made;
    const char *problem;
    char value[16];
    CHECK(request_decode(text, strlen(text), &made, &problem) == REQUEST_OK);
    const apachews_request *request = &made->facts;
    CHECK(strcmp(request->id, "i") == 0 && strcmp(request->method, "GET") == 0);
    CHECK(request->header_count == 2 && request->offered_count == 2 && request->env_count == 2);
    CHECK(strcmp(apachews_request_header(request, "X-Latin"), "\xC3\xA9") == 0);
    CHECK(strcmp(apachews_request_header(request, "Host"), "h") == 0);
    CHECK(apachews_request_header(request, "origin") == NULL);
    CHECK(strcmp(apachews_request_env(request, "GEO"), "CH") == 0);
    CHECK(apachews_request_env(request, "geo") == NULL);
    CHECK(request->env[1].length == 3 && memcmp(request->env[1].value, "a\0b", 4) == 0);
    CHECK(strcmp(request->offered[1], "b") == 0 && request->subprotocol == NULL);
    CHECK(request->user == NULL && request->tls_version == NULL);
    CHECK(request->remote_port == 51514 && strcmp(request->local_host, "::1") == 0);
    CHECK(request->answer_required && !request->resumed);
    CHECK(apachews_request_query(request, "a", value, sizeof value) == 1 && value[0] == '1');
    CHECK(apachews_request_query(request, "name", value, sizeof value) == 6);
    CHECK(strcmp(value, "\xC3\xA4 b%2") == 0);
    CHECK(apachews_request_query(request, "name", value, 4) == 6);
    CHECK(strcmp(value, "\xC3\xA4 ") == 0);
    CHECK(apachews_request_query(request, "name", NULL, 0) == 6);
    CHECK(apachews_request_query(request, "flag", value, sizeof value) == 0 && value[0] == '\0');
    CHECK(apachews_request_query(request, "ab", value, sizeof value) == 1 && value[0] == 'c');
    CHECK(apachews_request_query(request, "nam", value, sizeof value) == -1);
    CHECK(apachews_request_query(request, "names", value, sizeof value) == -1);
    request_free(made);

    static const char rewritten[] =
        HEAD "\"/x?a=1\",\"query\":\"room=7&a=2\",\"headers\":[]" MIDDLE "null" TAIL;
    CHECK(request_decode(rewritten, strlen(rewritten), &made, &problem) == REQUEST_OK);
    CHECK(strcmp(made->facts.uri, "/x?a=1") == 0);
    CHECK(apachews_request_query(&made->facts, "room", value, sizeof value) == 1);
    CHECK(apachews_request_query(&made->facts, "a", value, sizeof value) == 1 && value[0] == '2');
    request_free(made);

    static const char removed[] =
        HEAD "\"/x?a=1\",\"query\":\"\",\"headers\":[]" MIDDLE "null" TAIL;
    CHECK(request_decode(removed, strlen(removed), &made, &problem) == REQUEST_OK);
    CHECK(apachews_request_query(&made->facts, "a", value, sizeof value) == -1);
    request_free(made);

    static const char number[] = HEAD "\"/\",\"query\":7,\"headers\":[]" MIDDLE "null" TAIL;
    CHECK(request_decode(number, strlen(number), &made, &problem) == REQUEST_BAD);
    CHECK(strcmp(problem, "OPEN: query is not a string") == 0);

    /* A C string would end at the NUL, and name another user. */
    static const char ann[] = HEAD "\"/\",\"headers\":[]" MIDDLE "\"ann\\u0000x\"" TAIL;
    CHECK(request_decode(ann, strlen(ann), &made, &problem) == REQUEST_BAD);
    CHECK(made == NULL && strcmp(problem, "OPEN: user is not a string") == 0);
}

static void test_answers(void)
{
    static const struct {
        apachews_pair header;
        bool is_good;
    } headers[] = {
        {{"Set-Cookie", "seen=1; Path=/", 0}, true}, {{"X-A", "", 0}, true},
        {{"X-A", "gr\xC3\xBC\xC3\x9F" "e", 0}, true}, {{"X-A", "a\tb", 0}, true},
        {{"", "a", 0}, false},           {{"X A", "a", 0}, false},
        {{"X-A", " a", 0}, false},       {{"X-A", "a ", 0}, false},
        {{"X-A", "a\r\nB: c", 0}, false}, {{"X-A", "a\x7F", 0}, false},
        {{"X-A", "\xE2\x82\xAC", 0}, false}, {{"X-A", "\xC3", 0}, false},
        {{"Upgrade", "h2c", 0}, false},  {{"date", "x", 0}, false},
        {{"Sec-WebSocket-Protocol", "x", 0}, false},
    };
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        struct json_text text = {0};
        apachews_error error = {0};
        struct answer answer = {.accepts = true, .headers = &headers[i].header, .header_count = 1};
        CHECK(answer_encode(&answer, &text, &error) == headers[i].is_good);
        CHECK(headers[i].is_good == (error.code == APACHEWS_NO_ERROR));
        free(text.data);
    }
    for (int status = 200; status <= 700; status += 100) {
        struct json_text text = {0};
        struct answer answer = {.status = status, .body = "\"\n\xF0\x9F\x99\x82"};
        CHECK(answer_encode(&answer, &text, NULL) == (status >= 300 && status <= 500));
        if (status == 403) {
            CHECK(parses(text.data, text.length));
        }
        free(text.data);
    }
    char *body = malloc(WIRE_MAX_ANSWER + 1);
    CHECK(body != NULL);
    memset(body, 'x', WIRE_MAX_ANSWER);
    body[WIRE_MAX_ANSWER] = '\0';
    apachews_error error;
    struct json_text text = {0};
    CHECK(!answer_encode(&(struct answer){.status = 403, .body = body}, &text, &error));
    CHECK(error.code == APACHEWS_BAD_ANSWER && strstr(error.text, "65536") != NULL);
    free(text.data);
    free(body);
}

static void test_languages(void)
{
    static const struct {
        const char *header;
        const char *language;
    } cases[] = {
        {"", NULL}, {"*", NULL}, {"en", "en"}, {"de;q=0.5,en-GB", "en-GB"}, {"de,en", "de"},
        {" fr ; q=0.3 , it;q=0.31", "it"}, {"de;q=0", NULL}, {"de;q=2,en;q=0.1", "en"},
        {"de;q=x,en;q=0.1", "en"}, {"de;q=0.1234,fr;q=0.1", "de"}, {",,;q=1,", NULL},
        {"de;q", NULL}, {"de;", "de"}, {"a;q=1.0,b", "a"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *language = preferred_language(cases[i].header);
        CHECK((language == NULL) == (cases[i].language == NULL));
        CHECK(language == NULL || strcmp(language, cases[i].language) == 0);
        free(language);
    }
}

int main(void)
{
    test_utf8();
    test_json_grammar();
    test_json_bounds();
    test_json_values();
    test_request();
    test_answers();
    test_languages();
    puts("core: all checks passed");
    return 0;
}
