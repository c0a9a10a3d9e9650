/* What the library says of itself: the sentence of the last failure, one for each thread, and its sources. */
#include "fathom_native.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local char message[256];

const char *fathom_error(void) { return message; }

int fathom_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return -1;
}

const char *fathom_sources(void) { return FATHOM_SOURCES; }
