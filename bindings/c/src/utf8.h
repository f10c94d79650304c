/* UTF-8 (RFC 3629).  Pure functions. */
#ifndef APACHEWS_UTF8_H
#define APACHEWS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the longest character. */
#define UTF8_MAX 4

bool utf8_is_valid(const void *data, size_t length);

/* Read the character at text, which has length bytes, 1 or more: return its bytes, and
 * store it; 0 where there is none. */
size_t utf8_decode(const void *text, size_t length, uint32_t *character);

/* Write a character, no surrogate, at most U+10FFFF; return its bytes. */
size_t utf8_encode(uint32_t character, char *text);

/* The length of what is left of a text when it is cut to limit bytes, between characters. */
size_t utf8_truncate(const char *text, size_t length, size_t limit);

#endif
