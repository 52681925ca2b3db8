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
        constexpr int MOST = HEADS == 1 ? 4 : HEADS == 2 ? 2 : 1;
        int i = 0;
        for (; i + MOST * 2 * WIDTH <= shape.head_dim; i += MOST * 2 * WIDTH)
            weigh_chunks<MOST>(shape, tile, heads, i);
        for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH) weigh_chunks<1>(shape, tile, heads, i);
        if (i < shape.head_dim) weigh_chunks<0>(shape, tile, heads, i);
    }

  private:
    // CHUNKS times two vectors; or, for 0, the one that is left.
    template <int CHUNKS>
    static INLINE void weigh_chunks(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        constexpr int VECTORS = CHUNKS ? 2 * CHUNKS : 1;
        Vector sum[HEADS * VECTORS];
        each<HEADS * VECTORS>([&](auto k) INLINE_LAMBDA {
            sum[k] = load(heads.sums + k / VECTORS * shape.sums_floats + i + k % VECTORS * WIDTH);
        });
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0) ask_ahead<1, ROWS>(shape, heads.ahead, at);
            const float* weight = heads.scores + at * HEADS;
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + r] + i;
                Vector x[VECTORS];
                if constexpr (CHUNKS == 0) x[0] = from(row);
                else each<CHUNKS>([&](auto c) INLINE_LAMBDA {
                    both(row + c * 2 * WIDTH, x[2 * c], x[2 * c + 1]);
                });
                each<HEADS>([&](auto h) INLINE_LAMBDA {
                    const Vector p = all(weight[h * ROWS + r]);
                    each<VECTORS>([&](auto c) INLINE_LAMBDA { sum[h * VECTORS + c] += p * x[c]; });
                });
            });
        }
        each<HEADS * VECTORS>([&](auto k) INLINE_LAMBDA {
            store(heads.sums + k / VECTORS * shape.sums_floats + i + k % VECTORS * WIDTH, sum[k]);
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
