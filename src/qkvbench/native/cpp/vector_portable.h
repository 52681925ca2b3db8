// Four floats in the vectors that GCC and Clang have for any processor: SSE2, NEON, or none.

typedef float Vector __attribute__((vector_size(16)));
typedef int32_t Whole __attribute__((vector_size(16)));
constexpr int WIDTH = 4;
// Places in the cache that one head reads side by side.
constexpr int STREAMS = 1;
// Vectors of sums that stay in registers, beside what is read; and of a row, for which there are some.
constexpr int SUMS = 16, CHUNKS_AT_ONCE = 4;
// Query heads whose sums are in registers at a time.
constexpr int HEADS_AT_ONCE = 8;

INLINE Vector all(float x) { return Vector{x, x, x, x}; }
INLINE Vector load(const float* from) {
    Vector x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}
INLINE void store(float* to, Vector x) { __builtin_memcpy(to, &x, sizeof x); }
INLINE Vector chosen(Whole where, Vector a, Vector b) {
    return (Vector)((where & (Whole)a) | (~where & (Whole)b));
}
INLINE Vector largest(Vector a, Vector b) { return chosen(a > b, a, b); }
INLINE bool any_above(Vector a, Vector b) {
    const Whole above = a > b;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
}

// The numbers of each type as fp32.
INLINE Vector from(const Fp32* x) { return load(x); }
template <class Number>
INLINE Whole bits_of(const Number* x) {
    return Whole{x[0].bits, x[1].bits, x[2].bits, x[3].bits};
}
INLINE Vector from(const Bf16* x) { return (Vector)(bits_of(x) << 16); }
INLINE Vector from(const Fp16* x) {
    const Whole bits = bits_of(x);
    // The exponent of fp32 counts from 112 further down; what was infinite stays so.
    const Vector scaled = (Vector)((bits & 0x7fff) << 13) * all(0x1p112f);
    const Whole endless = (scaled >= all(65536.0f)) & 0x7f800000;
    return (Vector)((Whole)scaled | endless | (bits & 0x8000) << 16);
}
INLINE Vector from(const Int8* x) { return __builtin_convertvector(bits_of(x), Vector); }

// Two vectors' worth of numbers, in an order of this target's own.
template <class Number>
INLINE void both(const Number* x, Vector& a, Vector& b) {
    a = from(x);
    b = from(x + WIDTH);
}

// 2^n for whole n from -127, where it is 0.
INLINE Vector power_of_two(Vector n) {
    return (Vector)((__builtin_convertvector(n, Whole) + 127) << 23);
}
// Adding 1.5 * 2^23 leaves no room for what is behind the point.
INLINE Vector nearest(Vector x) { return (x + all(12582912.0f)) - all(12582912.0f); }

// Lane i is the sum of all lanes of x[i].
INLINE Vector sums(Vector (&x)[WIDTH]) {
    const auto joined = [](Vector a, Vector b) INLINE_LAMBDA {
        return Vector{a[0], b[0], a[1], b[1]} + Vector{a[2], b[2], a[3], b[3]};
    };
    const Vector a = joined(x[0], x[1]), b = joined(x[2], x[3]);
    return Vector{a[0], a[1], b[0], b[1]} + Vector{a[2], a[3], b[2], b[3]};
}

// COUNT numbers over and over.
template <int COUNT>
INLINE Vector repeated(const float* from) {
    if constexpr (COUNT == 4) return load(from);
    else if constexpr (COUNT == 2) return Vector{from[0], from[1], from[0], from[1]};
    else return all(*from);
}

// The largest of each COUNT neighbours, in all of their lanes.
template <int COUNT>
INLINE Vector largest_of(Vector x) {
    if constexpr (COUNT >= 2) x = largest(x, Vector{x[1], x[0], x[3], x[2]});
    if constexpr (COUNT >= 4) x = largest(x, Vector{x[2], x[3], x[0], x[1]});
    return x;
}

// A group of int4 times its scale; in two's complement, shifts right keep the sign.
INLINE void unpack_group(const uint8_t* bytes, float scale, float* into) {
    for (int i = 0; i < QKV_GROUP / 2; ++i) {
        into[2 * i] = float(int8_t(bytes[i] << 4) >> 4) * scale;
        into[2 * i + 1] = float(int8_t(bytes[i]) >> 4) * scale;
    }
}
