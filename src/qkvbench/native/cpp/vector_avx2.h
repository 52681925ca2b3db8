// Vectors of eight floats in AVX2 with FMA and F16C.
#pragma once

using Vector = __m256;
constexpr int WIDTH = 8;
// Streams of the cache that one head reads side by side, one for each hardware prefetcher.
constexpr int STREAMS = WIDTH, STREAMS_OF_TWO = WIDTH;
// Vector registers for sums, beside those for loads; and vectors of a row that are summed at once.
constexpr int SUM_REGISTERS = 8, MAX_ROW_VECTORS = 8;
// Query heads whose sums are in registers at once.
constexpr int HEADS_IN_REGISTERS = 4;

INLINE Vector broadcast(float x) { return _mm256_set1_ps(x); }
INLINE Vector load(const float* from) { return _mm256_loadu_ps(from); }
INLINE void store(float* to, Vector x) { _mm256_storeu_ps(to, x); }
INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
INLINE bool any_above(Vector a, Vector b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}

// The numbers of each type as fp32.
INLINE Vector to_fp32(const Fp32* x) { return load(x); }
INLINE Vector to_fp32(const Bf16* x) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
INLINE Vector to_fp32(const Fp16* x) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)x)); }
INLINE Vector to_fp32(const Int8* x) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)x)));
}

// Two vectors of numbers, in an order of this ISA: bf16 is split into even and odd ones.
INLINE void load_two(const Fp32* x, Vector& a, Vector& b) {
    a = load(x);
    b = load(x + WIDTH);
}
INLINE void load_two(const Bf16* x, Vector& a, Vector& b) {
    const __m256i two = _mm256_loadu_si256((const __m256i*)x);
    a = _mm256_castsi256_ps(_mm256_slli_epi32(two, 16));
    b = _mm256_castsi256_ps(_mm256_and_si256(two, _mm256_set1_epi32(int(0xffff0000))));
}

// 2^n for integers n > -127, and 0 for n = -127.
INLINE Vector power_of_two(Vector n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
INLINE Vector round_nearest(Vector x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Lane i is the sum of all lanes of x[i]; each stage halves the number of vectors.
INLINE Vector horizontal_sums(Vector (&x)[WIDTH]) {
    Vector pairs[4], quads[2];
    unroll<4>([&](auto i) INLINE_LAMBDA {
        const Vector a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b);
    });
    unroll<2>([&](auto i) INLINE_LAMBDA {
        const __m256d a = (__m256d)pairs[2 * i], b = (__m256d)pairs[2 * i + 1];
        quads[i] = (Vector)_mm256_unpacklo_pd(a, b) + (Vector)_mm256_unpackhi_pd(a, b);
    });
    return _mm256_permute2f128_ps(quads[0], quads[1], 0x20) +
           _mm256_permute2f128_ps(quads[0], quads[1], 0x31);
}

// COUNT numbers, repeated to a whole vector.
template <int COUNT>
INLINE Vector repeat(const float* from) {
    if constexpr (COUNT == 8) return load(from);
    else if constexpr (COUNT == 4) return _mm256_broadcast_ps((const __m128*)from);
    else if constexpr (COUNT == 2) return (Vector)_mm256_set1_pd(*(const Unaligned<double>*)from);
    else return broadcast(*from);
}

// Each lane becomes the maximum of its group of COUNT neighbouring lanes.
template <int COUNT>
INLINE Vector neighbour_max(Vector x) {
    if constexpr (COUNT >= 2) x = maximum(x, _mm256_permute_ps(x, 0xb1));
    if constexpr (COUNT >= 4) x = maximum(x, _mm256_permute_ps(x, 0x4e));
    if constexpr (COUNT >= 8) x = maximum(x, _mm256_permute2f128_ps(x, x, 0x01));
    return x;
}

// A group of int4, times its scale, in order. Each lane gets the same eight numbers, moves its own to
// the top, where its sign is that of the lane, and clears the rest; 2^-28 takes the place back.
constexpr int group_place(int i) { return i; }
INLINE void load_group(const uint8_t* bytes, float scale, Vector (&into)[QKV_GROUP / WIDTH]) {
    const __m256i to_top = _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0);
    const __m256i top = _mm256_set1_epi32(int(0xf0000000));
    const Vector scales = broadcast(scale * 0x1p-28f);
    unroll<QKV_GROUP / WIDTH>([&](auto i) INLINE_LAMBDA {
        const __m256i eight = _mm256_set1_epi32(*(const Unaligned<int>*)(bytes + 4 * i));
        into[i] = _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_sllv_epi32(eight, to_top), top)) * scales;
    });
}
INLINE void store_group(float* to, const Vector (&group)[QKV_GROUP / WIDTH]) {
    unroll<QKV_GROUP / WIDTH>([&](auto i) INLINE_LAMBDA { store(to + i * WIDTH, group[i]); });
}
