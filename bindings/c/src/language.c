#include "system.h"

#include "language.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BLANKS " \t"

/* Parse a weight of 0 to 1, in thousandths; -1: invalid. */
static int weight_of(const char *text, size_t length)
{
    int value = 0;
    int scale = 1000;
    if (length < 3 || strncasecmp(text, "q=", 2) != 0 || (text[2] != '0' && text[2] != '1')) {
        return -1;
    }
    value = (text[2] - '0') * scale;
    if (length > 3 && text[3] != '.') {
        return -1;
    }
    for (size_t i = 4; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return -1;
        }
        scale /= 10;
        value += (text[i] - '0') * scale;
    }
    return value <= 1000 ? value : -1;
}

static void strip(const char **text, size_t *length)
{
    while (*length > 0 && strchr(BLANKS, (*text)[0]) != NULL) {
        ++*text;
        --*length;
    }
    while (*length > 0 && strchr(BLANKS, (*text)[*length - 1]) != NULL) {
        --*length;
    }
}

char *preferred_language(const char *accept_language)
{
    const char *best = NULL;
    size_t best_length = 0;
    int best_weight = 0;
    for (const char *item = accept_language; item != NULL;) {
        const char *tag = item;
        size_t length = strcspn(item, ",");
        item = item[length] == ',' ? item + length + 1 : NULL;
        size_t tag_length = strcspn(tag, ";,");
        int weight = 1000;
        if (tag_length < length) {
            const char *parameter = tag + tag_length + 1;
            size_t parameter_length = length - tag_length - 1;
            strip(&parameter, &parameter_length);
            weight = parameter_length > 0 ? weight_of(parameter, parameter_length) : 1000;
        }
        strip(&tag, &tag_length);
        if (tag_length > 0 && tag[0] != '*' && weight > best_weight) {
            best = tag;
            best_length = tag_length;
            best_weight = weight;
        }
    }
    return best != NULL ? strndup(best, best_length) : NULL;
}
