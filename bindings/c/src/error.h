/* Error texts for people. */
#ifndef APACHEWS_ERROR_H
#define APACHEWS_ERROR_H

#include "apachews.h"

/* Set *error unless error is NULL; number is errno, or 0. */
__attribute__((format(printf, 4, 5))) void error_set(apachews_error *error,
                                                     apachews_error_code code, int number,
                                                     const char *format, ...);

#endif
