// Vectors of four floats by the extensions of GCC and Clang: SSE2, NEON, or scalar code.
#pragma once

typedef float Vector __attribute__((vector_size(16)));
typedef int32_t Whole __attribute__((vector_size(16)));
constexpr int WIDTH = 4;
// Streams of the cache that one head reads side by side.
constexpr int STREAMS = 1, STREAMS_OF_TWO = 1;
// Vector registers for sums, beside those for loads; and vectors of a row that are summed at once.
constexpr int SUM_REGISTERS = 16, MAX_ROW_VECTORS = 4;
// Query heads whose sums are in registers at once.
constexpr int HEADS_IN_REGISTERS = 8;

INLINE Vector broadcast(float x) { return Vector{x, x, x, x}; }
INLINE Vector load(const float* from) {
    Vector x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}
INLINE void store(float* to, Vector x) { __builtin_memcpy(to, &x, sizeof x); }
INLINE Vector select(Whole where, Vector a, Vector b) {
    return (Vector)((where & (Whole)a) | (~where & (Whole)b));
}
INLINE Vector maximum(Vector a, Vector b) { return select(a > b, a, b); }
INLINE bool any_above(Vector a, Vector b) {
    const Whole above = a > b;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

// The numbers of each type as fp32.
INLINE Vector to_fp32(const Fp32* x) { return load(x); }
template <class Number>
INLINE Whole bits_of(const Number* x) {
    return Whole{x[0].bits, x[1].bits, x[2].bits, x[3].bits};
}
INLINE Vector to_fp32(const Bf16* x) { return (Vector)(bits_of(x) << 16); }
INLINE Vector to_fp32(const Fp16* x) {
    const Whole bits = bits_of(x);
    // The exponent's bias grows from 15 to 127; infinity must stay infinite.
    const Vector scaled = (Vector)((bits & 0x7fff) << 13) * broadcast(0x1p112f);
    const Whole infinite = (scaled >= broadcast(65536.0f)) & 0x7f800000;
    return (Vector)((Whole)scaled | infinite | (bits & 0x8000) << 16);
}
INLINE Vector to_fp32(const Int8* x) { return __builtin_convertvector(bits_of(x), Vector); }

// Two vectors of numbers; only AVX reorders them.
template <class Number>
INLINE void load_two(const Number* x, Vector& a, Vector& b) {
    a = to_fp32(x);
    b = to_fp32(x + WIDTH);
}

// 2^n for integers n > -127, and 0 for n = -127.
INLINE Vector power_of_two(Vector n) {
    return (Vector)((__builtin_convertvector(n, Whole) + 127) << 23);
}
// Adding 1.5 * 2^23 leaves no bits for a fraction.
INLINE Vector round_nearest(Vector x) { return (x + broadcast(12582912.0f)) - broadcast(12582912.0f); }

// Lane i is the sum of all lanes of x[i].
INLINE Vector horizontal_sums(Vector (&x)[WIDTH]) {
    const auto joined = [](Vector a, Vector b) INLINE_LAMBDA {
        return Vector{a[0], b[0], a[1], b[1]} + Vector{a[2], b[2], a[3], b[3]};
    };
    const Vector a = joined(x[0], x[1]), b = joined(x[2], x[3]);
    return Vector{a[0], a[1], b[0], b[1]} + Vector{a[2], a[3], b[2], b[3]};
}

// COUNT numbers, repeated to a whole vector.
template <int COUNT>
INLINE Vector repeat(const float* from) {
    if constexpr (COUNT == 4) return load(from);
    else if constexpr (COUNT == 2) return Vector{from[0], from[1], from[0], from[1]};
    else return broadcast(*from);
}

// Each lane becomes the maximum of its group of COUNT neighbouring lanes.
template <int COUNT>
INLINE Vector neighbour_max(Vector x) {
    if constexpr (COUNT >= 2) x = maximum(x, Vector{x[1], x[0], x[3], x[2]});
    if constexpr (COUNT >= 4) x = maximum(x, Vector{x[2], x[3], x[0], x[1]});
    return x;
}

// A group of int4, times its scale, in order; an arithmetic shift right extends the sign of a nibble.
constexpr int group_place(int i) { return i; }
INLINE void load_group(const uint8_t* bytes, float scale, Vector (&into)[QKV_GROUP / WIDTH]) {
    for (int i = 0; i < QKV_GROUP / 4; ++i) {
        const uint8_t a = bytes[2 * i], b = bytes[2 * i + 1];
        const Whole numbers = {int8_t(a << 4) >> 4, int8_t(a) >> 4, int8_t(b << 4) >> 4, int8_t(b) >> 4};
        into[i] = __builtin_convertvector(numbers, Vector) * broadcast(scale);
    }
}
INLINE void store_group(float* to, const Vector (&group)[QKV_GROUP / WIDTH]) {
    unroll<QKV_GROUP / WIDTH>([&](auto i) INLINE_LAMBDA { store(to + i * WIDTH, group[i]); });
}
