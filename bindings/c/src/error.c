#include "system.h"

#include "error.h"

#include <stdarg.h>
#include <stdio.h>

void error_set(apachews_error *error, apachews_error_code code, int number, const char *format,
               ...)
{
    if (error == NULL) {
        return;
    }
    error->code = code;
    error->number = number;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
}
