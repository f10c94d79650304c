#include "system.h"

#include "utf8.h"

#include <string.h>

size_t utf8_decode(const void *text, size_t length, uint32_t *character)
{
    const unsigned char *p = text;
    size_t size;
    uint32_t value, least;
    if (p[0] < 0x80) {
        *character = p[0];
        return 1;
    }
    if (p[0] >= 0xC2 && p[0] < 0xE0) {
        size = 2, value = p[0] & 0x1F, least = 0x80;
    } else if (p[0] >= 0xE0 && p[0] < 0xF0) {
        size = 3, value = p[0] & 0x0F, least = 0x800;
    } else if (p[0] >= 0xF0 && p[0] < 0xF5) {
        size = 4, value = p[0] & 0x07, least = 0x10000;
    } else {
        return 0;
    }
    if (length < size) {
        return 0;
    }
    for (size_t i = 1; i < size; i++) {
        if ((p[i] & 0xC0) != 0x80) {
            return 0;
        }
        value = value << 6 | (p[i] & 0x3F);
    }
    /* Overlong forms, surrogates, and code points above U+10FFFF. */
    if (value < least || (value >= 0xD800 && value < 0xE000) || value > 0x10FFFF) {
        return 0;
    }
    *character = value;
    return size;
}

bool utf8_is_valid(const void *data, size_t length)
{
    const unsigned char *p = data;
    const unsigned char *end = length > 0 ? p + length : p;
    uint32_t character;
    while (p < end) {
        /* Fast path for ASCII: eight bytes at once. */
        uint64_t eight;
        while (end - p >= 8 && (memcpy(&eight, p, 8), (eight & 0x8080808080808080u) == 0)) {
            p += 8;
        }
        if (p == end) {
            break;
        }
        size_t size = utf8_decode(p, (size_t)(end - p), &character);
        if (size == 0) {
            return false;
        }
        p += size;
    }
    return true;
}

size_t utf8_encode(uint32_t character, char *text)
{
    unsigned char *p = (unsigned char *)text;
    if (character < 0x80) {
        p[0] = (unsigned char)character;
        return 1;
    }
    if (character < 0x800) {
        p[0] = (unsigned char)(0xC0 | character >> 6);
        p[1] = (unsigned char)(0x80 | (character & 0x3F));
        return 2;
    }
    if (character < 0x10000) {
        p[0] = (unsigned char)(0xE0 | character >> 12);
        p[1] = (unsigned char)(0x80 | (character >> 6 & 0x3F));
        p[2] = (unsigned char)(0x80 | (character & 0x3F));
        return 3;
    }
    p[0] = (unsigned char)(0xF0 | character >> 18);
    p[1] = (unsigned char)(0x80 | (character >> 12 & 0x3F));
    p[2] = (unsigned char)(0x80 | (character >> 6 & 0x3F));
    p[3] = (unsigned char)(0x80 | (character & 0x3F));
    return 4;
}

size_t utf8_truncate(const char *text, size_t length, size_t limit)
{
    if (length <= limit) {
        return length;
    }
    while (limit > 0 && ((unsigned char)text[limit] & 0xC0) == 0x80) {
        limit--;
    }
    return limit;
}
