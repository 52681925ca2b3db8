// What every target's code begins with. All of it is then compiled inside a namespace without a
// name: were it shared, the linker would keep one copy, and every target would run that one.
#pragma once

#include <stddef.h>

#include "decode.h"

#define INLINE inline __attribute__((always_inline))
// Keeps a benchmark's vector from being computed away.
#if defined(__x86_64__)
#define KEEP(vector) asm volatile("" : "+v"(vector))
#else
#define KEEP(vector) asm volatile("" : "+w"(vector))
#endif
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

template <class T>
struct UnalignedOf {
    typedef T type __attribute__((aligned(1), may_alias));
};
template <class T>
using Unaligned = typename UnalignedOf<T>::type;

// The types of cached numbers. Bits of 16 are read as numbers by each target in its own way.
using Fp32 = float;
struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };
struct Int8 { int8_t bits; };

template <int I>
struct Index {
    constexpr operator int() const { return I; }
};

// what(0), what(1), ... as straight code: arrays that it indexes stay in registers.
template <int COUNT, int FROM = 0, class What>
INLINE void each(const What& what) {
    if constexpr (FROM < COUNT) {
        what(Index<FROM>());
        each<COUNT, FROM + 1>(what);
    }
}

}  // namespace
