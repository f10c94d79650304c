/* What the tests share: a check that names itself, and memory that runs out when told to. */
#ifndef APACHEWS_CHECK_H
#define APACHEWS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                        \
    do {                                                                                        \
        if (!(condition)) {                                                                     \
            fprintf(stderr, "%s:%d: %s is not so\n", __FILE__, __LINE__, #condition);           \
            abort();                                                                            \
        }                                                                                       \
    } while (0)

#endif
