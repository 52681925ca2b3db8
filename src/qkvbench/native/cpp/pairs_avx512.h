// bf16 two at a time (vdpbf16ps, sums in fp32). Queries are rounded to bf16; for a few heads a second
// bf16 holds what that left, for scores nearly as exact as in fp32. Weights are rounded to bf16, and
// their total counts them so.

INLINE __m512bh pair(__m512i x) { return (__m512bh)x; }
INLINE __mmask32 leading_of_32(int count) {
    return count >= 32 ? ~__mmask32(0) : (__mmask32(1) << count) - 1;
}

// Heads up to which a query has its low part: beyond, arithmetic is what decoding waits for.
constexpr int EXACT_HEADS = 2;

template <class Number, int HEADS>
struct Pairs {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        each<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = all(0); });
        const int parts = padded(shape.head_dim, 32) / 2;  // in floats
        for (int i = 0; i < shape.head_dim; i += 32) {
            const __mmask32 mask = leading_of_32(shape.head_dim - i);
            __m512i x[ROWS];
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                x[r] = _mm512_maskz_loadu_epi16(mask, (const Number*)tile.key[at + r] + i);
            });
            each<HEADS>([&](auto h) INLINE_LAMBDA {
                const float* query = heads.query + h * QUERY_FLOATS + i / 2;
                const __m512i high = _mm512_loadu_si512(query);
                each<ROWS>([&](auto r) INLINE_LAMBDA {
                    sum[h * ROWS + r] = _mm512_dpbf16_ps(sum[h * ROWS + r], pair(high), pair(x[r]));
                });
                if constexpr (HEADS <= EXACT_HEADS) {
                    const __m512i low = _mm512_loadu_si512(query + parts);
                    each<ROWS>([&](auto r) INLINE_LAMBDA {
                        sum[h * ROWS + r] = _mm512_dpbf16_ps(sum[h * ROWS + r], pair(low), pair(x[r]));
                    });
                }
            });
        }
        return sums(sum);
    }

    static INLINE Vector rounded(Vector weight) {
        return widened((__m256i)_mm512_cvtneps_pbh(weight));
    }

    static void weigh(const Shape& shape, const Tile& tile, const Heads& heads) {
        constexpr int MOST = HEADS == 8 ? 1 : 2;
        int i = 0;
        for (; i + MOST * 32 <= shape.sums_floats; i += MOST * 32)
            weigh_chunks<MOST>(shape, tile, heads, i);
        for (; i < shape.sums_floats; i += 32) weigh_chunks<1>(shape, tile, heads, i);
    }

  private:
    template <int CHUNKS>
    static INLINE void weigh_chunks(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        Vector sum[HEADS * CHUNKS * 2];
        const auto place = [&](int h, int c) INLINE_LAMBDA {
            return heads.sums + h * shape.sums_floats + i + c * WIDTH;
        };
        each<HEADS>([&](auto h) INLINE_LAMBDA {
            each<CHUNKS * 2>([&](auto c) INLINE_LAMBDA { sum[h * CHUNKS * 2 + c] = load(place(h, c)); });
        });
        const __mmask32 mask = leading_of_32(shape.head_dim - i - (CHUNKS - 1) * 32);
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0) ask_ahead<1, ROWS>(shape, heads.ahead, at);
            const Vector both = load(heads.scores + at * HEADS);
            uint32_t weight[WIDTH / 2];  // two neighbouring rows' of one head
            _mm256_storeu_si256((__m256i*)weight, (__m256i)_mm512_cvtneps_pbh(both));
            each<ROWS / 2>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + 2 * r] + i;
                const Number* next = (const Number*)tile.value[at + 2 * r + 1] + i;
                __m512i x[CHUNKS * 2];
                each<CHUNKS>([&](auto c) INLINE_LAMBDA {
                    const __mmask32 here = c + 1 == CHUNKS ? mask : ~__mmask32(0);
                    const __m512i a = _mm512_maskz_loadu_epi16(here, row + c * 32);
                    const __m512i b = _mm512_maskz_loadu_epi16(here, next + c * 32);
                    x[2 * c] = _mm512_unpacklo_epi16(a, b);
                    x[2 * c + 1] = _mm512_unpackhi_epi16(a, b);
                });
                each<HEADS>([&](auto h) INLINE_LAMBDA {
                    const __m512i p = _mm512_set1_epi32(int(weight[h * (ROWS / 2) + r]));
                    each<CHUNKS * 2>([&](auto c) INLINE_LAMBDA {
                        Vector& to = sum[h * CHUNKS * 2 + c];
                        to = _mm512_dpbf16_ps(to, pair(p), pair(x[c]));
                    });
                });
            });
        }
        each<HEADS>([&](auto h) INLINE_LAMBDA {
            each<CHUNKS * 2>([&](auto c) INLINE_LAMBDA { store(place(h, c), sum[h * CHUNKS * 2 + c]); });
        });
    }
};

void lay_out_pairs(const Shape& shape, const float* query, float* into) {
    const int count = padded(shape.head_dim, 32);
    __m256i* high = (__m256i*)into;
    __m256i* low = (__m256i*)(into + count / 2);
    for (int i = 0; i < count; i += 16) {
        const Vector x = i < shape.head_dim ? load(query + i) : all(0);
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(x);
        _mm256_storeu_si256(high + i / 16, rounded);
        _mm256_storeu_si256(low + i / 16, (__m256i)_mm512_cvtneps_pbh(x - widened(rounded)));
    }
}

// Four numbers of one vector, then four of the next: how interleaving rows left them.
void tell_pairs(const Shape& shape, const float* sums, float* into) {
    constexpr int CHUNK = 2 * WIDTH;
    for (int i = 0; i < shape.head_dim; i += 4) {
        const int within = i % CHUNK / 4;
        const int from = i / CHUNK * CHUNK + within % 2 * WIDTH + within / 2 * 4;
        __builtin_memcpy(into + i, sums + from, 4 * sizeof(float));
    }
}
