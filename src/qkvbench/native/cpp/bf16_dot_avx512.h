// bf16 dot products of pairs (vdpbf16ps, sums in fp32). Queries are rounded to bf16; for a few heads a
// second bf16 holds the rounding error, which makes scores nearly as exact as in fp32. Attention
// weights are rounded to bf16 before they are added to row_sum, so they still sum to 1.
#pragma once

INLINE __m512bh as_bf16(__m512i x) { return (__m512bh)x; }
INLINE __mmask32 low_mask32(int count) {
    return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
}

// Up to so many heads, queries have a low part; with more, arithmetic would be the bottleneck.
constexpr int SPLIT_QUERY_HEADS = 2;

template <class Number, int HEADS>
struct Bf16Dot {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector dot_products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        unroll<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = broadcast(0); });
        const int parts = round_up(shape.head_dim, 32) / 2;  // floats of a packed part of the query
        for (int i = 0; i < shape.head_dim; i += 32) {
            const __mmask32 mask = low_mask32(shape.head_dim - i);
            __m512i x[ROWS];
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                x[r] = _mm512_maskz_loadu_epi16(mask, (const Number*)tile.key[at + r] + i);
            });
            unroll<HEADS>([&](auto h) INLINE_LAMBDA {
                const float* query = heads.query + h * QUERY_FLOATS + i / 2;
                const __m512i high = _mm512_loadu_si512(query);
                unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                    sum[h * ROWS + r] = _mm512_dpbf16_ps(sum[h * ROWS + r], as_bf16(high), as_bf16(x[r]));
                });
                if constexpr (HEADS <= SPLIT_QUERY_HEADS) {
                    const __m512i low = _mm512_loadu_si512(query + parts);
                    unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                        sum[h * ROWS + r] = _mm512_dpbf16_ps(sum[h * ROWS + r], as_bf16(low), as_bf16(x[r]));
                    });
                }
            });
        }
        return horizontal_sums(sum);
    }

    static INLINE Vector round_weight(Vector weight) {
        return bf16_to_fp32((__m256i)_mm512_cvtneps_pbh(weight));
    }

    static void accumulate(const Shape& shape, const Tile& tile, const Heads& heads) {
        constexpr int MAX_PAIRS = HEADS == 8 ? 1 : 2;
        int i = 0;
        for (; i + MAX_PAIRS * 32 <= shape.acc_floats; i += MAX_PAIRS * 32)
            accumulate_columns<MAX_PAIRS>(shape, tile, heads, i);
        for (; i < shape.acc_floats; i += 32) accumulate_columns<1>(shape, tile, heads, i);
    }

  private:
    template <int PAIRS>
    static INLINE void accumulate_columns(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        Vector sum[HEADS * PAIRS * 2];
        const auto at_acc = [&](int h, int c) INLINE_LAMBDA {
            return heads.acc + h * shape.acc_floats + i + c * WIDTH;
        };
        unroll<HEADS>([&](auto h) INLINE_LAMBDA {
            unroll<PAIRS * 2>([&](auto c) INLINE_LAMBDA { sum[h * PAIRS * 2 + c] = load(at_acc(h, c)); });
        });
        const __mmask32 mask = low_mask32(shape.head_dim - i - (PAIRS - 1) * 32);
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0) prefetch_ahead<1, ROWS>(shape, heads.ahead, at);
            const Vector both = load(heads.scores + at * HEADS);
            uint32_t weight[WIDTH / 2];  // pairs: two consecutive rows of one head
            _mm256_storeu_si256((__m256i*)weight, (__m256i)_mm512_cvtneps_pbh(both));
            unroll<ROWS / 2>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + 2 * r] + i;
                const Number* next = (const Number*)tile.value[at + 2 * r + 1] + i;
                __m512i x[PAIRS * 2];
                unroll<PAIRS>([&](auto c) INLINE_LAMBDA {
                    const __mmask32 here = c + 1 == PAIRS ? mask : ~__mmask32(0);
                    const __m512i a = _mm512_maskz_loadu_epi16(here, row + c * 32);
                    const __m512i b = _mm512_maskz_loadu_epi16(here, next + c * 32);
                    x[2 * c] = _mm512_unpacklo_epi16(a, b);
                    x[2 * c + 1] = _mm512_unpackhi_epi16(a, b);
                });
                unroll<HEADS>([&](auto h) INLINE_LAMBDA {
                    const __m512i p = _mm512_set1_epi32(int(weight[h * (ROWS / 2) + r]));
                    unroll<PAIRS * 2>([&](auto c) INLINE_LAMBDA {
                        Vector& to = sum[h * PAIRS * 2 + c];
                        to = _mm512_dpbf16_ps(to, as_bf16(p), as_bf16(x[c]));
                    });
                });
            });
        }
        unroll<HEADS>([&](auto h) INLINE_LAMBDA {
            unroll<PAIRS * 2>([&](auto c) INLINE_LAMBDA { store(at_acc(h, c), sum[h * PAIRS * 2 + c]); });
        });
    }
};

void pack_query_bf16(const Shape& shape, const float* query, float* into) {
    const int count = round_up(shape.head_dim, 32);
    __m256i* high = (__m256i*)into;
    __m256i* low = (__m256i*)(into + count / 2);
    for (int i = 0; i < count; i += 16) {
        const Vector x = i < shape.head_dim ? load(query + i) : broadcast(0);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
        _mm256_storeu_si256(high + i / 16, rounded);
        _mm256_storeu_si256(low + i / 16, (__m256i)_mm512_cvtneps_pbh(x - bf16_to_fp32(rounded)));
    }
}

// Undoes the interleaving of two rows: four numbers of one vector, then four of the next.
void unpack_out_bf16(const Shape& shape, const float* acc, float* into) {
    constexpr int BLOCK = 2 * WIDTH;
    for (int i = 0; i < shape.head_dim; i += 4) {
        const int within = i % BLOCK / 4;
        const int from = i / BLOCK * BLOCK + within % 2 * WIDTH + within / 2 * 4;
        __builtin_memcpy(into + i, acc + from, 4 * sizeof(float));
    }
}
