// bf16 two vectors at a time: the even numbers are shifted, the odd ones masked, and none is moved
// between lanes. Queries and sums lie in that order too: of each 16 numbers the even, then the odd.

template <class Number, int HEADS>
struct Twos {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        each<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = all(0); });
        const Number* rows[ROWS];
        each<ROWS>([&](auto r) INLINE_LAMBDA { rows[r] = (const Number*)tile.key[at + r]; });
        int i = 0;
        for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH)
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                Vector a, b;
                both(rows[r] + i, a, b);
                each<HEADS>([&](auto h) INLINE_LAMBDA {
                    const float* query = heads.query + h * QUERY_FLOATS + i;
                    sum[h * ROWS + r] += load(query) * a;
                    sum[h * ROWS + r] += load(query + WIDTH) * b;
                });
            });
        if (i < shape.head_dim)
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                const Vector x = from(rows[r] + i);
                each<HEADS>([&](auto h) INLINE_LAMBDA {
                    sum[h * ROWS + r] += load(heads.query + h * QUERY_FLOATS + i) * x;
                });
            });
        return sums(sum);
    }

    static INLINE Vector rounded(Vector weight) { return weight; }

    static void weigh(const Shape& shape, const Tile& tile, const Heads& heads) {
        constexpr int MOST = SUMS / 2 / SOME;
        int i = 0;
        for (; i + MOST * 2 * WIDTH <= shape.head_dim; i += MOST * 2 * WIDTH)
            weigh_chunks<MOST>(shape, tile, heads, i);
        for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH) weigh_chunks<1>(shape, tile, heads, i);
        if (i < shape.head_dim) weigh_chunks<0>(shape, tile, heads, i);
    }

  private:
    static constexpr int SOME = HEADS < HEADS_AT_ONCE ? HEADS : HEADS_AT_ONCE;

    template <int CHUNKS>
    static INLINE void weigh_chunks(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        each<HEADS / SOME>([&](auto part) INLINE_LAMBDA {
            weigh_some<CHUNKS, part * SOME>(shape, tile, heads, i);
        });
    }

    // CHUNKS times two vectors of SOME heads from FIRST on; or, for 0, the vector that is left.
    template <int CHUNKS, int FIRST>
    static INLINE void weigh_some(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        constexpr int VECTORS = CHUNKS ? 2 * CHUNKS : 1;
        float* sums = heads.sums + FIRST * shape.sums_floats + i;
        Vector sum[SOME * VECTORS];
        each<SOME * VECTORS>([&](auto k) INLINE_LAMBDA {
            sum[k] = load(sums + k / VECTORS * shape.sums_floats + k % VECTORS * WIDTH);
        });
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0 && FIRST == 0) ask_ahead<1, ROWS>(shape, heads.ahead, at);
            const float* weight = heads.scores + at * HEADS + FIRST * ROWS;
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + r] + i;
                Vector p[SOME];
                each<SOME>([&](auto h) INLINE_LAMBDA { p[h] = all(weight[h * ROWS + r]); });
                // One vector after the other: were all of a row read first, sums would go to memory.
                const auto add = [&](auto c, Vector x) INLINE_LAMBDA {
                    each<SOME>([&](auto h) INLINE_LAMBDA { sum[h * VECTORS + c] += p[h] * x; });
                };
                if constexpr (CHUNKS == 0) add(Index<0>(), from(row));
                else each<CHUNKS>([&](auto c) INLINE_LAMBDA {
                    Vector a, b;
                    both(row + c * 2 * WIDTH, a, b);
                    add(Index<2 * c>(), a);
                    add(Index<2 * c + 1>(), b);
                });
            });
        }
        each<SOME * VECTORS>([&](auto k) INLINE_LAMBDA {
            store(sums + k / VECTORS * shape.sums_floats + k % VECTORS * WIDTH, sum[k]);
        });
    }
};

// Where number `i` of a row lies.
INLINE int among_twos(const Shape& shape, int i) {
    const int chunk = i / (2 * WIDTH) * 2 * WIDTH;
    return chunk + 2 * WIDTH > shape.head_dim ? i : chunk + i % 2 * WIDTH + (i - chunk) / 2;
}

void lay_out_twos(const Shape& shape, const float* query, float* into) {
    for (int i = 0; i < shape.head_dim; ++i) into[among_twos(shape, i)] = query[i];
}

void tell_twos(const Shape& shape, const float* sums, float* into) {
    for (int i = 0; i < shape.head_dim; ++i) into[i] = sums[among_twos(shape, i)];
}
