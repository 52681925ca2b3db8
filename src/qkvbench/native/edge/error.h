// A request that cannot be met: the program prints the sentence and exits with 2.
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include <string>

struct Refusal {
    std::string sentence;
};

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void refuse(const char* format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    vsnprintf(text, sizeof text, format, values);
    va_end(values);
    // A name in the sentence may come from the file.
    for (char* at = text; *at; ++at)
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = '?';
    throw Refusal{text};
}
