/* A check for the tests that prints its condition. */
#ifndef APACHEWS_CHECK_H
#define APACHEWS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                            \
        }                                                                                       \
    } while (0)

#endif
