// Sixteen floats in AVX-512 (F, BW, DQ, VL); bf16 pairs and int8 quads where the target has them.

using Vector = __m512;
constexpr int WIDTH = 16;
// Places in the cache that one head reads side by side: more were not measured here.
constexpr int STREAMS = 1;
// Vectors of sums that stay in registers, beside what is read; and of a row, for which there are some.
constexpr int SUMS = 16, CHUNKS_AT_ONCE = 4;
// Query heads whose sums are in registers at a time.
constexpr int HEADS_AT_ONCE = 8;

INLINE Vector all(float x) { return _mm512_set1_ps(x); }
INLINE Vector load(const float* from) { return _mm512_loadu_ps(from); }
INLINE void store(float* to, Vector x) { _mm512_storeu_ps(to, x); }
INLINE Vector largest(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE bool any_above(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

INLINE __mmask16 leading(int count) { return __mmask16((1u << count) - 1); }
INLINE Vector widened(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// The numbers of each type as fp32: a whole vector, or `count` of them and then zeros.
INLINE Vector from(const Fp32* x) { return _mm512_loadu_ps(x); }
INLINE Vector from(const Bf16* x) { return widened(_mm256_loadu_si256((const __m256i*)x)); }
INLINE Vector from(const Fp16* x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)x));
}
INLINE Vector from(const Int8* x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)x)));
}
INLINE Vector from(const Fp32* x, int count) { return _mm512_maskz_loadu_ps(leading(count), x); }
INLINE Vector from(const Bf16* x, int count) {
    return widened(_mm256_maskz_loadu_epi16(leading(count), x));
}
INLINE Vector from(const Fp16* x, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(leading(count), x));
}
INLINE Vector from(const Int8* x, int count) {
    const __m128i bytes = _mm_maskz_loadu_epi8(leading(count), x);
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// Two vectors' worth of numbers, in an order of this target's own: of bf16 the even ones, then the odd.
INLINE void both(const Fp32* x, Vector& a, Vector& b) {
    a = load(x);
    b = load(x + WIDTH);
}
INLINE void both(const Bf16* x, Vector& a, Vector& b) {
    const __m512i two = _mm512_loadu_si512(x);
    a = _mm512_castsi512_ps(_mm512_slli_epi32(two, 16));
    b = _mm512_castsi512_ps(_mm512_and_si512(two, _mm512_set1_epi32(int(0xffff0000))));
}

// 2^n for whole n from -127, where it is 0.
INLINE Vector power_of_two(Vector n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(biased, 23));
}
INLINE Vector nearest(Vector x) { return _mm512_roundscale_ps(x, 0); }

// Lane i is the sum of all lanes of x[i]. Each stage halves what is left to add.
INLINE Vector sums(Vector (&x)[WIDTH]) {
    Vector pairs[8], quads[4], halves[2];
    each<8>([&](auto i) INLINE_LAMBDA {
        const Vector a = x[2 * i], b = x[2 * i + 1];
        pairs[i] = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    });
    each<4>([&](auto i) INLINE_LAMBDA {
        const __m512d a = (__m512d)pairs[2 * i], b = (__m512d)pairs[2 * i + 1];
        quads[i] = (Vector)_mm512_unpacklo_pd(a, b) + (Vector)_mm512_unpackhi_pd(a, b);
    });
    const auto joined = [](Vector a, Vector b) INLINE_LAMBDA {
        return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
    };
    each<2>([&](auto i) INLINE_LAMBDA { halves[i] = joined(quads[2 * i], quads[2 * i + 1]); });
    return joined(halves[0], halves[1]);
}

// COUNT numbers over and over.
template <int COUNT>
INLINE Vector repeated(const float* from) {
    if constexpr (COUNT == 16) return load(from);
    else if constexpr (COUNT == 8) return _mm512_broadcast_f32x8(_mm256_loadu_ps(from));
    else if constexpr (COUNT == 4) return _mm512_broadcast_f32x4(_mm_loadu_ps(from));
    else return (Vector)_mm512_set1_pd(*(const Unaligned<double>*)from);
}

// The largest of each COUNT neighbours, in all of their lanes.
template <int COUNT>
INLINE Vector largest_of(Vector x) {
    x = largest(x, _mm512_permute_ps(x, 0xb1));
    if constexpr (COUNT >= 4) x = largest(x, _mm512_permute_ps(x, 0x4e));
    if constexpr (COUNT >= 8) x = largest(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    if constexpr (COUNT >= 16) x = largest(x, _mm512_shuffle_f32x4(x, x, 0x4e));
    return x;
}

// A group of int4 times its scale: nibbles in order, as bytes with a sign, then as floats.
INLINE void unpack_group(const uint8_t* bytes, float scale, float* into) {
    const __m128i packed = _mm_loadu_si128((const __m128i*)bytes), nibble = _mm_set1_epi8(15);
    const __m128i even = _mm_and_si128(packed, nibble);
    const __m128i odd = _mm_and_si128(_mm_srli_epi16(packed, 4), nibble);
    const __m128i ordered[] = {_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd)};
    each<QKV_GROUP / 16>([&](auto h) INLINE_LAMBDA {
        // Two's complement of four bits: (x ^ 8) - 8.
        const __m128i eight = _mm_set1_epi8(8);
        Int8 numbers[16];
        _mm_storeu_si128((__m128i*)numbers, _mm_sub_epi8(_mm_xor_si128(ordered[h], eight), eight));
        for (int i = 0; i < 16; i += WIDTH) store(into + h * 16 + i, from(numbers + i) * all(scale));
    });
}
