// Vectors of sixteen floats in AVX-512 (F, BW, DQ, VL).
#pragma once

using Vector = __m512;
constexpr int WIDTH = 16;
// Streams of the cache that one head reads side by side: of one tensor, and of each of two.
constexpr int STREAMS = WIDTH, STREAMS_OF_TWO = 8;
// Vector registers for sums, beside those for loads; and vectors of a row that are summed at once.
constexpr int SUM_REGISTERS = 16, MAX_ROW_VECTORS = 4;
// Query heads whose sums are in registers at once.
constexpr int HEADS_IN_REGISTERS = 8;

INLINE Vector broadcast(float x) { return _mm512_set1_ps(x); }
INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }
INLINE void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE bool any_above(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

INLINE __mmask16 low_mask(int count) { return __mmask16((1u << count) - 1); }
INLINE Vector bf16_to_fp32(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// The numbers of each type as fp32: a whole vector, or `count` of them padded with zeros.
INLINE Vector to_fp32(const Fp32* x) { return _mm512_loadu_ps(x); }
INLINE Vector to_fp32(const Bf16* x) { return bf16_to_fp32(_mm256_loadu_si256((const __m256i*)x)); }
INLINE Vector to_fp32(const Fp16* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
}
INLINE Vector to_fp32(const Int8* x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)));
}
INLINE Vector to_fp32(const Fp32* x, int count) { return _mm512_maskz_loadu_ps(low_mask(count), x); }
INLINE Vector to_fp32(const Bf16* x, int count) {
    return bf16_to_fp32(_mm256_maskz_loadu_epi16(low_mask(count), x));
}
INLINE Vector to_fp32(const Fp16* x, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(low_mask(count), x));
}
INLINE Vector to_fp32(const Int8* x, int count) {
    const __m128i bytes = _mm_maskz_loadu_epi8(low_mask(count), x);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// Two vectors of numbers, in an order of this ISA: bf16 is split into even and odd ones.
INLINE void load_two(const Fp32* x, Vector& a, Vector& b) {
    a = load(x);
    b = load(x + WIDTH);
}
INLINE void load_two(const Bf16* x, Vector& a, Vector& b) {
    const __m512i two = _mm512_loadu_si512(x);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(int(0xffff0000))));
}

// 2^n for integers n > -127, and 0 for n = -127.
INLINE Vector power_of_two(Vector n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
INLINE Vector round_nearest(Vector x) { return _mm512_roundscale_ps(x, 0); }

// Lane i is the sum of all lanes of x[i]; each stage halves the number of vectors.
INLINE Vector horizontal_sums(Vector (&x)[WIDTH]) {
    Vector pairs[8], quads[4], halves[2];
    unroll<8>([&](auto i) INLINE_LAMBDA {
        const Vector a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    });
    unroll<4>([&](auto i) INLINE_LAMBDA {
        const __m512d a = (__m512d)pairs[2 * i], b = (__m512d)pairs[2 * i + 1];
        quads[i] = (Vector)_mm512_unpacklo_pd(a, b) + (Vector)_mm512_unpackhi_pd(a, b);
    });
    const auto joined = [](Vector a, Vector b) INLINE_LAMBDA {
        return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    };
    unroll<2>([&](auto i) INLINE_LAMBDA { halves[i] = joined(quads[2 * i], quads[2 * i + 1]); });
    return joined(halves[0], halves[1]);
}

// COUNT numbers, repeated to a whole vector.
template <int COUNT>
INLINE Vector repeat(const float* from) {
    if constexpr (COUNT == 16) return load(from);
    else if constexpr (COUNT == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(from));
    else if constexpr (COUNT == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(from));
    else return (Vector)_mm512_set1_pd(*(const Unaligned<double>*)from);
}

// Each lane becomes the maximum of its group of COUNT neighbouring lanes.
template <int COUNT>
INLINE Vector neighbour_max(Vector x) {
    x = maximum(x, _mm512_permute_ps(x, 0xb1));
    if constexpr (COUNT >= 4) x = maximum(x, _mm512_permute_ps(x, 0x4e));
    if constexpr (COUNT >= 8) x = maximum(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if constexpr (COUNT >= 16) x = maximum(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    return x;
}

// A group of int4, times its scale, even numbers before odd ones. There are only sixteen numbers, so
// they are looked up in a vector, whose index is the low nibble of each lane.
constexpr int group_place(int i) { return 2 * i % QKV_GROUP + 2 * i / QKV_GROUP; }
INLINE void load_group(const uint8_t* bytes, float scale, Vector (&into)[QKV_GROUP / WIDTH]) {
    const Vector numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    const Vector scaled = numbers * broadcast(scale);
    const __m512i two = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes));
    into[0] = _mm512_permutexvar_ps(two, scaled);
    into[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(two, 4), scaled);
}
INLINE void store_group(float* to, const Vector (&group)[QKV_GROUP / WIDTH]) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i last = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    store(to, _mm512_permutex2var_ps(group[0], first, group[1]));
    store(to + WIDTH, _mm512_permutex2var_ps(group[0], last, group[1]));
}
