// bf16 two vectors at a time: even numbers are shifted, odd ones masked, and no lanes are shuffled.
// Packed queries and acc have the same order: of each 16 numbers the even ones, then the odd.
#pragma once

template <class Number, int HEADS>
struct Bf16Interleaved {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector dot_products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        unroll<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = broadcast(0); });
        const Number* rows[ROWS];
        unroll<ROWS>([&](auto r) INLINE_LAMBDA { rows[r] = (const Number*)tile.key[at + r]; });
        int i = 0;
        for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH)
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                Vector a, b;
                load_two(rows[r] + i, a, b);
                unroll<HEADS>([&](auto h) INLINE_LAMBDA {
                    const float* query = heads.query + h * QUERY_FLOATS + i;
                    sum[h * ROWS + r] += load(query) * a;
                    sum[h * ROWS + r] += load(query + WIDTH) * b;
                });
            });
        if (i < shape.head_dim)
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                const Vector x = to_fp32(rows[r] + i);
                unroll<HEADS>([&](auto h) INLINE_LAMBDA {
                    sum[h * ROWS + r] += load(heads.query + h * QUERY_FLOATS + i) * x;
                });
            });
        return horizontal_sums(sum);
    }

    static INLINE Vector round_weight(Vector weight) { return weight; }

    static void accumulate(const Shape& shape, const Tile& tile, const Heads& heads) {
        constexpr int MAX_PAIRS = SUM_REGISTERS / 2 / HEADS_PER_PASS;
        int i = 0;
        for (; i + MAX_PAIRS * 2 * WIDTH <= shape.head_dim; i += MAX_PAIRS * 2 * WIDTH)
            accumulate_columns<MAX_PAIRS>(shape, tile, heads, i);
        for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH) accumulate_columns<1>(shape, tile, heads, i);
        if (i < shape.head_dim) accumulate_columns<0>(shape, tile, heads, i);
    }

  private:
    static constexpr int HEADS_PER_PASS = HEADS < HEADS_IN_REGISTERS ? HEADS : HEADS_IN_REGISTERS;

    template <int PAIRS>
    static INLINE void accumulate_columns(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        unroll<HEADS / HEADS_PER_PASS>([&](auto part) INLINE_LAMBDA {
            accumulate_heads<PAIRS, part * HEADS_PER_PASS>(shape, tile, heads, i);
        });
    }

    // PAIRS pairs of vectors of HEADS_PER_PASS heads from FIRST on; 0 means one single vector.
    template <int PAIRS, int FIRST>
    static INLINE void accumulate_heads(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        constexpr int VECTORS = PAIRS ? 2 * PAIRS : 1;
        float* acc = heads.acc + FIRST * shape.acc_floats + i;
        Vector sum[HEADS_PER_PASS * VECTORS];
        unroll<HEADS_PER_PASS * VECTORS>([&](auto k) INLINE_LAMBDA {
            sum[k] = load(acc + k / VECTORS * shape.acc_floats + k % VECTORS * WIDTH);
        });
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0 && FIRST == 0) prefetch_ahead<1, ROWS>(shape, heads.ahead, at);
            const float* weight = heads.scores + at * HEADS + FIRST * ROWS;
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + r] + i;
                Vector p[HEADS_PER_PASS];
                unroll<HEADS_PER_PASS>([&](auto h) INLINE_LAMBDA { p[h] = broadcast(weight[h * ROWS + r]); });
                // One vector after the other: if a whole row were loaded first, sums would be spilled.
                const auto add = [&](auto c, Vector x) INLINE_LAMBDA {
                    unroll<HEADS_PER_PASS>([&](auto h) INLINE_LAMBDA { sum[h * VECTORS + c] += p[h] * x; });
                };
                if constexpr (PAIRS == 0) add(Index<0>(), to_fp32(row));
                else unroll<PAIRS>([&](auto c) INLINE_LAMBDA {
                    Vector a, b;
                    load_two(row + c * 2 * WIDTH, a, b);
                    add(Index<2 * c>(), a);
                    add(Index<2 * c + 1>(), b);
                });
            });
        }
        unroll<HEADS_PER_PASS * VECTORS>([&](auto k) INLINE_LAMBDA {
            store(acc + k / VECTORS * shape.acc_floats + k % VECTORS * WIDTH, sum[k]);
        });
    }
};

// The place of number `i` of a row.
INLINE int interleaved_index(const Shape& shape, int i) {
    const int block = i / (2 * WIDTH) * 2 * WIDTH;
    return block + 2 * WIDTH > shape.head_dim ? i : block + i % 2 * WIDTH + (i - block) / 2;
}

void pack_query_interleaved(const Shape& shape, const float* query, float* into) {
    for (int i = 0; i < shape.head_dim; ++i) into[interleaved_index(shape, i)] = query[i];
}

void unpack_out_interleaved(const Shape& shape, const float* acc, float* into) {
    for (int i = 0; i < shape.head_dim; ++i) into[i] = acc[interleaved_index(shape, i)];
}
