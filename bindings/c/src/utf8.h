/* UTF-8 (RFC 3629).  Pure functions. */
#ifndef APACHEWS_UTF8_H
#define APACHEWS_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes of the longest character. */
#define UTF8_MAX 4

bool utf8_is_valid(const void *data, size_t length);

/* Decode the character at the start of text, which has length bytes, 1 or more; return its
 * bytes, or 0 for invalid UTF-8. */
size_t utf8_decode(const void *text, size_t length, uint32_t *character);

/* Encode a character (not a surrogate, at most U+10FFFF); return its bytes. */
size_t utf8_encode(uint32_t character, char *text);

/* Return the length of text truncated to limit bytes, between two characters. */
size_t utf8_truncate(const char *text, size_t length, size_t limit);

#endif
