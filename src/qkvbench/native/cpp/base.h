// The types and macros of every ISA's code. That code is compiled in an unnamed namespace: if ISAs
// shared a symbol, the linker would keep one copy, and all would run it.
#pragma once

#include <stddef.h>

#include "decode.h"

#define INLINE inline __attribute__((always_inline))
// Prevents a benchmark's vector from being optimized away.
#if defined(__x86_64__)
#define DO_NOT_OPTIMIZE(vector) asm volatile("" : "+v"(vector))
#else
#define DO_NOT_OPTIMIZE(vector) asm volatile("" : "+w"(vector))
#endif
#define INLINE_LAMBDA __attribute__((always_inline))

namespace {

template <class T>
struct UnalignedOf {
    typedef T type __attribute__((aligned(1), may_alias));
};
template <class T>
using Unaligned = typename UnalignedOf<T>::type;

// The types of cached numbers. Each ISA converts them to fp32 by its own `to_fp32`.
using Fp32 = float;
struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };
struct Int8 { int8_t bits; };
struct Int4 { uint8_t two; };

template <int I>
struct Index {
    constexpr operator int() const { return I; }
};

// body(0), body(1), ... unrolled, with constant indices, so that small arrays stay in registers.
template <int COUNT, int FROM = 0, class Body>
INLINE void unroll(const Body& body) {
    if constexpr (FROM < COUNT) {
        body(Index<FROM>());
        unroll<COUNT, FROM + 1>(body);
    }
}

}  // namespace
