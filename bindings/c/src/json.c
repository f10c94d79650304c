#include "system.h"

#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utf8.h"

#define FIRST_CAPACITY 128

struct parser {
    struct json_document *document;
    const unsigned char *at;
    const unsigned char *end;
    char *text; /* where the next string is stored */
    enum json_result result;
};

/* A decoded string is never longer than its source, and its NUL takes the place of a quote: a
 * buffer of the document's size holds all strings without reallocation. */

static uint32_t fail(struct parser *parser, enum json_result result)
{
    if (parser->result == JSON_OK) {
        parser->result = result;
    }
    return 0;
}

static void skip_blanks(struct parser *parser)
{
    while (parser->at < parser->end && (*parser->at == ' ' || *parser->at == '\t' ||
                                        *parser->at == '\n' || *parser->at == '\r')) {
        parser->at++;
    }
}

static int peek(const struct parser *parser)
{
    return parser->at < parser->end ? *parser->at : -1;
}

static bool match(struct parser *parser, int byte)
{
    if (peek(parser) != byte) {
        return false;
    }
    parser->at++;
    return true;
}

/* Return the index of a new value; 0: out of memory or over the limit. */
static uint32_t add_value(struct parser *parser, enum json_type type)
{
    struct json_document *document = parser->document;
    if (document->count > JSON_MAX_VALUES) {
        return fail(parser, JSON_BAD);
    }
    if (document->count == document->capacity) {
        uint32_t capacity = document->capacity * 2;
        struct json_value *values = realloc(document->values, capacity * sizeof *values);
        if (values == NULL) {
            return fail(parser, JSON_NO_MEMORY);
        }
        document->values = values;
        document->capacity = capacity;
    }
    document->values[document->count] = (struct json_value){.type = type};
    return document->count++;
}

static bool parse_word(struct parser *parser, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(parser->end - parser->at) < length || memcmp(parser->at, word, length) != 0) {
        return false;
    }
    parser->at += length;
    return true;
}

static bool is_digit(int byte)
{
    return byte >= '0' && byte <= '9';
}

static uint32_t parse_number(struct parser *parser)
{
    bool is_negative = match(parser, '-');
    bool is_integer = true;
    long long value = 0;
    if (!is_digit(peek(parser))) {
        return fail(parser, JSON_BAD);
    }
    if (!match(parser, '0')) {
        for (int digits = 0; is_digit(peek(parser)); parser->at++) {
            if (++digits > 18) {
                is_integer = false;
            } else {
                value = value * 10 + (*parser->at - '0');
            }
        }
    }
    if (match(parser, '.')) {
        is_integer = false;
        if (!is_digit(peek(parser))) {
            return fail(parser, JSON_BAD);
        }
        while (is_digit(peek(parser))) {
            parser->at++;
        }
    }
    if (match(parser, 'e') || match(parser, 'E')) {
        is_integer = false;
        if (!match(parser, '+')) {
            match(parser, '-');
        }
        if (!is_digit(peek(parser))) {
            return fail(parser, JSON_BAD);
        }
        while (is_digit(peek(parser))) {
            parser->at++;
        }
    }
    uint32_t index = add_value(parser, JSON_NUMBER);
    if (index != 0) {
        parser->document->values[index].is_integer = is_integer;
        parser->document->values[index].integer = is_negative ? -value : value;
    }
    return index;
}

/* Parse four hexadecimal digits; -1: invalid. */
static int parse_hex4(struct parser *parser)
{
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int byte = peek(parser);
        int digit;
        if (is_digit(byte)) {
            digit = byte - '0';
        } else if (byte >= 'a' && byte <= 'f') {
            digit = byte - 'a' + 10;
        } else if (byte >= 'A' && byte <= 'F') {
            digit = byte - 'A' + 10;
        } else {
            return -1;
        }
        value = value << 4 | digit;
        parser->at++;
    }
    return value;
}

/* Parse the digits of a \u escape, and of a second one for a surrogate pair. */
static bool parse_unicode_escape(struct parser *parser)
{
    int unit = parse_hex4(parser);
    if (unit < 0) {
        return false;
    }
    uint32_t character = (uint32_t)unit;
    if (unit >= 0xD800 && unit < 0xDC00) {
        const unsigned char *before = parser->at;
        int low = -1;
        if (match(parser, '\\') && match(parser, 'u')) {
            low = parse_hex4(parser);
            if (low < 0) {
                return false;
            }
        }
        if (low >= 0xDC00 && low < 0xE000) {
            character = 0x10000 + (((uint32_t)unit & 0x3FF) << 10 | ((uint32_t)low & 0x3FF));
        } else {
            parser->at = before; /* unpaired: parse the second escape again */
        }
    }
    if (character >= 0xD800 && character < 0xE000) {
        character = 0xFFFD;
    }
    parser->text += utf8_encode(character, parser->text);
    return true;
}

static bool parse_escape(struct parser *parser)
{
    static const char names[] = "\"\\/bfnrt";
    static const char meanings[] = "\"\\/\b\f\n\r\t";
    int byte = peek(parser);
    if (byte == 'u') {
        parser->at++;
        return parse_unicode_escape(parser);
    }
    const char *found = byte > 0 ? strchr(names, byte) : NULL;
    if (found == NULL) {
        return false;
    }
    parser->at++;
    *parser->text++ = meanings[found - names];
    return true;
}

static uint32_t parse_string(struct parser *parser)
{
    char *begin = parser->text;
    parser->at++; /* the quote */
    for (;;) {
        const unsigned char *run = parser->at;
        while (parser->at < parser->end && *parser->at != '"' && *parser->at != '\\' &&
               *parser->at >= 0x20) {
            parser->at++;
        }
        size_t size = (size_t)(parser->at - run);
        if (!utf8_is_valid(run, size)) {
            return fail(parser, JSON_BAD);
        }
        memcpy(parser->text, run, size);
        parser->text += size;
        if (match(parser, '"')) {
            break;
        }
        if (!match(parser, '\\') || !parse_escape(parser)) {
            return fail(parser, JSON_BAD);
        }
    }
    uint32_t index = add_value(parser, JSON_STRING);
    if (index != 0) {
        parser->document->values[index].text = begin;
        parser->document->values[index].length = (size_t)(parser->text - begin);
    }
    *parser->text++ = '\0';
    return index;
}

static uint32_t parse_value(struct parser *parser, int depth);

static uint32_t parse_container(struct parser *parser, bool is_object, int depth)
{
    uint32_t index = add_value(parser, is_object ? JSON_OBJECT : JSON_ARRAY);
    if (index == 0 || depth == JSON_MAX_DEPTH) {
        return fail(parser, JSON_BAD);
    }
    int close = is_object ? '}' : ']';
    uint32_t last = 0;
    uint32_t count = 0;
    parser->at++;
    skip_blanks(parser);
    if (match(parser, close)) {
        return index;
    }
    for (;;) {
        skip_blanks(parser);
        uint32_t item;
        if (is_object && count % 2 == 0) {
            item = peek(parser) == '"' ? parse_string(parser) : fail(parser, JSON_BAD);
        } else {
            item = parse_value(parser, depth + 1);
        }
        if (item == 0) {
            return 0;
        }
        struct json_value *values = parser->document->values;
        if (last != 0) {
            values[last].next = item;
        } else {
            values[index].first = item;
        }
        last = item;
        values[index].count = ++count;
        skip_blanks(parser);
        if (is_object && count % 2 == 1) {
            if (!match(parser, ':')) {
                return fail(parser, JSON_BAD);
            }
        } else if (match(parser, close)) {
            return index;
        } else if (!match(parser, ',')) {
            return fail(parser, JSON_BAD);
        }
    }
}

static uint32_t parse_value(struct parser *parser, int depth)
{
    skip_blanks(parser);
    switch (peek(parser)) {
    case '{':
    case '[':
        return parse_container(parser, *parser->at == '{', depth);
    case '"':
        return parse_string(parser);
    case 't':
        return parse_word(parser, "true") ? add_value(parser, JSON_TRUE) : fail(parser, JSON_BAD);
    case 'f':
        return parse_word(parser, "false") ? add_value(parser, JSON_FALSE) : fail(parser, JSON_BAD);
    case 'n':
        return parse_word(parser, "null") ? add_value(parser, JSON_NULL) : fail(parser, JSON_BAD);
    default:
        return parse_number(parser);
    }
}

enum json_result json_parse(struct json_document *document, const void *data, size_t length)
{
    *document = (struct json_document){.capacity = FIRST_CAPACITY, .count = 1};
    document->values = malloc(FIRST_CAPACITY * sizeof *document->values);
    document->text = malloc(length + 1);
    if (document->values == NULL || document->text == NULL) {
        return JSON_NO_MEMORY;
    }
    document->values[0] = (struct json_value){.type = JSON_NULL};
    struct parser parser = {
        .document = document,
        .at = data,
        .end = (const unsigned char *)data + length,
        .text = document->text,
    };
    parse_value(&parser, 0);
    skip_blanks(&parser);
    if (parser.at != parser.end) {
        fail(&parser, JSON_BAD);
    }
    return parser.result;
}

void json_free(struct json_document *document)
{
    free(document->values);
    free(document->text);
    *document = (struct json_document){0};
}

const struct json_value *json_root(const struct json_document *document)
{
    return &document->values[1];
}

const struct json_value *json_first(const struct json_document *document,
                                    const struct json_value *value)
{
    return value->count > 0 ? &document->values[value->first] : NULL;
}

const struct json_value *json_next(const struct json_document *document,
                                   const struct json_value *value)
{
    return value->next != 0 ? &document->values[value->next] : NULL;
}

const struct json_value *json_member(const struct json_document *document,
                                     const struct json_value *value, const char *name)
{
    if (value == NULL || value->type != JSON_OBJECT) {
        return NULL;
    }
    const struct json_value *found = NULL;
    size_t length = strlen(name);
    const struct json_value *key = json_first(document, value);
    while (key != NULL) {
        const struct json_value *member = json_next(document, key);
        if (key->length == length && memcmp(key->text, name, length) == 0) {
            found = member; /* the last one counts */
        }
        key = json_next(document, member);
    }
    return found;
}

bool json_is_true(const struct json_value *value)
{
    switch (value->type) {
    case JSON_TRUE:
        return true;
    case JSON_NUMBER:
        return !value->is_integer || value->integer != 0;
    case JSON_STRING:
        return value->length > 0;
    case JSON_ARRAY:
    case JSON_OBJECT:
        return value->count > 0;
    default:
        return false;
    }
}

static void put(struct json_text *text, const char *data, size_t length)
{
    if (text->has_failed) {
        return;
    }
    if (text->length + length > text->capacity) {
        size_t capacity = (text->length + length) * 2;
        char *grown = realloc(text->data, capacity);
        if (grown == NULL) {
            text->has_failed = true;
            return;
        }
        text->data = grown;
        text->capacity = capacity;
    }
    memcpy(text->data + text->length, data, length);
    text->length += length;
}

void json_put(struct json_text *text, const char *literally)
{
    put(text, literally, strlen(literally));
}

void json_put_string(struct json_text *text, const char *string)
{
    size_t length = strlen(string);
    put(text, "\"", 1);
    while (length > 0) {
        uint32_t character;
        char escaped[16];
        size_t size = utf8_decode(string, length, &character);
        if (size == 0) { /* checked by the caller; never write invalid UTF-8 */
            size = 1;
            character = 0xFFFD;
        }
        if (character >= 0x10000) {
            snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x",
                     0xD800 | (unsigned)((character - 0x10000) >> 10),
                     0xDC00 | (unsigned)((character - 0x10000) & 0x3FF));
            json_put(text, escaped);
        } else if (character < 0x20 || character >= 0x7F || character == '"' ||
                   character == '\\') {
            snprintf(escaped, sizeof escaped, "\\u%04x", (unsigned)character);
            json_put(text, escaped);
        } else {
            put(text, string, 1);
        }
        string += size;
        length -= size;
    }
    put(text, "\"", 1);
}
