// Attention of one query per head over a tile of cached rows. Each row is read from memory once: while
// a tile is in cache, its scores are computed, then its weighted sum (online softmax,
// arXiv:1805.02867). This file is compiled once for each ISA, with that ISA's vectors.
#pragma once

constexpr float LOG2_E = 1.44269504f;
constexpr float NEG_INF = -__builtin_inff();

INLINE int round_up(int count, int to) { return (count + to - 1) / to * to; }

// 2^x for x <= 0, to about 1e-7 of it; 0 below 2^-126, as for -infinity.
INLINE Vector exp2_of(Vector x) {
    x = maximum(x, broadcast(-127.0f));
    const Vector n = round_nearest(x), f = x - n;
    Vector p = broadcast(1.54036e-4f) * f + broadcast(1.33335e-3f);
    p = p * f + broadcast(9.61813e-3f);
    p = p * f + broadcast(5.55041e-2f);
    p = p * f + broadcast(2.402265e-1f);
    p = p * f + broadcast(6.931472e-1f);
    p = p * f + broadcast(1.0f);
    return p * power_of_two(n);
}

// A tile: pointers to its rows, and the terms and factors of their scores. Rows are consecutive slots,
// or, with streams, row i is of stream i % streams.
struct Tile {
    int rows;                           // visible; up to a whole vector, the last one is repeated
    const char *key[QKV_TILE], *separate[QKV_TILE];
    const char* const* value;           // `separate`, or the keys if they are also the values
    float key_scale[QKV_TILE], separate_scale[QKV_TILE];
    const float* value_scale;
    float distance[QKV_TILE];           // |position - slot|, for ALiBi
    float mask[QKV_TILE];               // 0, or -infinity behind the last row
    const float* rope_in_tile;          // table row of the first row's slot, relative to the query
    const float *key_groups[QKV_TILE], *separate_groups[QKV_TILE];  // int4: (groups,) of each
};

// Prefetches COUNT rows. Calls are spread over the arithmetic: a burst of prefetches would stall.
template <int COUNT>
INLINE void prefetch(const char* const* rows, int bytes) {
    unroll<COUNT>([&](auto r) INLINE_LAMBDA {
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(rows[r] + at);
    });
}

constexpr int QUERY_FLOATS = 304;  // size of a head's packed query in any layout

// Sizes of a call, as functions on tiles need them.
struct Shape {
    int head_dim, row_bytes, rotary_dim, half, padded_half, unrotated, acc_floats;
    int streams;       // STREAMS or STREAMS_OF_TWO, or 1
    int query_floats;  // of a head's packed queries: with RoPE, each stream has its own
    bool shared, scaled_rows, slopes;
    const float* key_scale;
};

// HEADS query heads that are computed together: the lanes of a vector are (HEADS, WIDTH / HEADS rows).
struct Heads {
    const float* query;         // (HEADS, query_floats), packed as fp32 or bf16
    const float* slope;         // (WIDTH,), of ALiBi
    float *row_max, *row_sum;   // (WIDTH,)
    float* scores;              // (HEADS, SCORES); `accumulate` replaces them by weights
    float* acc;                 // (HEADS, acc_floats)
    const Tile* ahead;          // a later tile to prefetch, or null
};

// Scores of one head and tile, then the head's part of a vector with the maximum of each lane.
constexpr int SCORES = QKV_TILE + WIDTH;

// `score` prefetches one half of a later tile's rows, `accumulate` the other.
template <int HALF, int ROWS>
INLINE void prefetch_ahead(const Shape& shape, const Tile* ahead, int at) {
    if (!ahead || at >= ahead->rows) return;
    constexpr int COUNT = ROWS == 1 ? 1 - HALF : ROWS / 2;
    prefetch<COUNT>(ahead->key + at + HALF * COUNT, shape.row_bytes);
    if (!shape.shared) prefetch<COUNT>(ahead->value + at + HALF * COUNT, shape.row_bytes);
}

// Arithmetic in fp32 for any stored type. RoPE is applied to the first `rotary_dim` coordinates of keys
// as they are read.
template <class Number, int HEADS>
struct Fp32Compute {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector dot_products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        unroll<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = broadcast(0); });
        const Number* rows[ROWS];
        unroll<ROWS>([&](auto r) INLINE_LAMBDA { rows[r] = (const Number*)tile.key[at + r]; });
        if (shape.streams == STREAMS)
            add_all_rotated<STREAMS>(shape, tile, heads, rows, at, sum);
        else if (shape.streams == STREAMS_OF_TWO)
            add_all_rotated<STREAMS_OF_TWO>(shape, tile, heads, rows, at, sum);
        else
            add_all_rotated<1>(shape, tile, heads, rows, at, sum);
        int i = 0;
        for (; i + WIDTH <= shape.unrotated; i += WIDTH)
            add(shape, heads, rows, i, sum, [](const Number* x) INLINE_LAMBDA { return to_fp32(x); });
        if (const int left = shape.unrotated - i; left > 0)
            add(shape, heads, rows, i, sum,
                [left](const Number* x) INLINE_LAMBDA { return to_fp32(x, left); });
        return horizontal_sums(sum);
    }

  private:
    template <class Read>
    static INLINE void add(const Shape& shape, const Heads& heads, const Number* const (&rows)[ROWS],
                           int i, Vector (&sum)[WIDTH], Read read) {
        const float* query = heads.query + 2 * shape.padded_half + i;
        Vector x[ROWS];
        unroll<ROWS>([&](auto r) INLINE_LAMBDA { x[r] = read(rows[r] + shape.rotary_dim + i); });
        unroll<HEADS>([&](auto h) INLINE_LAMBDA {
            const Vector q = load(query + h * shape.query_floats);
            unroll<ROWS>([&](auto r) INLINE_LAMBDA { sum[h * ROWS + r] += q * x[r]; });
        });
    }

    template <int N_STREAMS>
    static INLINE void add_all_rotated(const Shape& shape, const Tile& tile, const Heads& heads,
                                       const Number* const (&rows)[ROWS], int at,
                                       Vector (&sum)[WIDTH]) {
        const float* rope_in_tile = tile.rope_in_tile + at / N_STREAMS * 2 * shape.padded_half;
        const float* query = heads.query + at % N_STREAMS * QUERY_FLOATS;
        int i = 0;
        for (; i + WIDTH <= shape.half; i += WIDTH)
            add_rotated<N_STREAMS>(shape, query + i, rows, rope_in_tile + i, i, sum,
                                   [](const Number* x) INLINE_LAMBDA { return to_fp32(x); });
        if (const int left = shape.half - i; left > 0)
            add_rotated<N_STREAMS>(shape, query + i, rows, rope_in_tile + i, i, sum,
                                   [left](const Number* x) INLINE_LAMBDA { return to_fp32(x, left); });
    }

    // With streams, each row has its own stream's query, and those side by side are equally far from it.
    template <int N_STREAMS, class Read>
    static INLINE void add_rotated(const Shape& shape, const float* queries,
                                   const Number* const (&rows)[ROWS], const float* rope_in_tile, int i,
                                   Vector (&sum)[WIDTH], Read read) {
        unroll<ROWS>([&](auto r) INLINE_LAMBDA {
            const float* query = queries + r % N_STREAMS * QUERY_FLOATS;
            Vector x = read(rows[r] + i), y = read(rows[r] + shape.half + i);
            if (shape.key_scale) {
                x *= load(shape.key_scale + i);
                y *= load(shape.key_scale + shape.padded_half + i);
            }
            // arXiv:2104.09864, eq. 34, by the slots since the query's last backward rotation.
            constexpr int TABLE_ROW = int(r) / N_STREAMS;
            const Vector cos = load(rope_in_tile + TABLE_ROW * 2 * shape.padded_half);
            const Vector sin = load(rope_in_tile + (TABLE_ROW * 2 + 1) * shape.padded_half);
            const Vector first = x * cos - y * sin, second = y * cos + x * sin;
            unroll<HEADS>([&](auto h) INLINE_LAMBDA {
                const float* q = query + h * shape.query_floats;
                sum[h * ROWS + r] += load(q) * first;
                sum[h * ROWS + r] += load(q + shape.padded_half) * second;
            });
        });
    }

  public:
    static INLINE Vector round_weight(Vector weight) { return weight; }

    // acc += weights · values, by blocks of columns whose sums stay in registers.
    static void accumulate(const Shape& shape, const Tile& tile, const Heads& heads) {
        int i = 0;
        constexpr int FREE = SUM_REGISTERS / HEADS_PER_PASS;
        constexpr int MAX_VECTORS = FREE < MAX_ROW_VECTORS ? FREE : MAX_ROW_VECTORS;
        for (; i + MAX_VECTORS * WIDTH <= shape.head_dim; i += MAX_VECTORS * WIDTH)
            accumulate_columns<MAX_VECTORS>(shape, tile, heads, i);
        if constexpr (MAX_VECTORS > 4)
            for (; i + 4 * WIDTH <= shape.head_dim; i += 4 * WIDTH)
                accumulate_columns<4>(shape, tile, heads, i);
        if constexpr (MAX_VECTORS > 2)
            for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH)
                accumulate_columns<2>(shape, tile, heads, i);
        for (; i + WIDTH <= shape.head_dim; i += WIDTH) accumulate_columns<1>(shape, tile, heads, i);
        if (const int left = shape.head_dim - i; left > 0)
            accumulate_columns<1>(shape, tile, heads, i,
                                  [left](const Number* x) INLINE_LAMBDA { return to_fp32(x, left); });
    }

  private:
    static constexpr int HEADS_PER_PASS = HEADS < HEADS_IN_REGISTERS ? HEADS : HEADS_IN_REGISTERS;

    template <int VECTORS>
    static INLINE void accumulate_columns(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        accumulate_columns<VECTORS>(shape, tile, heads, i,
                                    [](const Number* x) INLINE_LAMBDA { return to_fp32(x); });
    }

    template <int VECTORS, class Read>
    static INLINE void accumulate_columns(const Shape& shape, const Tile& tile, const Heads& heads,
                                          int i, Read read) {
        unroll<HEADS / HEADS_PER_PASS>([&](auto part) INLINE_LAMBDA {
            accumulate_heads<VECTORS, part * HEADS_PER_PASS>(shape, tile, heads, i, read);
        });
    }

    // HEADS_PER_PASS heads from FIRST on.
    template <int VECTORS, int FIRST, class Read>
    static INLINE void accumulate_heads(const Shape& shape, const Tile& tile, const Heads& heads, int i,
                                        Read read) {
        float* acc = heads.acc + FIRST * shape.acc_floats + i;
        Vector sum[HEADS_PER_PASS * VECTORS];
        unroll<HEADS_PER_PASS>([&](auto h) INLINE_LAMBDA {
            unroll<VECTORS>([&](auto c) INLINE_LAMBDA {
                sum[h * VECTORS + c] = load(acc + h * shape.acc_floats + c * WIDTH);
            });
        });
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0 && FIRST == 0) prefetch_ahead<1, ROWS>(shape, heads.ahead, at);
            const float* weight = heads.scores + at * HEADS + FIRST * ROWS;
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + r] + i;
                Vector x[VECTORS];
                unroll<VECTORS>([&](auto c) INLINE_LAMBDA { x[c] = read(row + c * WIDTH); });
                unroll<HEADS_PER_PASS>([&](auto h) INLINE_LAMBDA {
                    const Vector p = broadcast(weight[h * ROWS + r]);
                    unroll<VECTORS>([&](auto c) INLINE_LAMBDA { sum[h * VECTORS + c] += p * x[c]; });
                });
            });
        }
        unroll<HEADS_PER_PASS>([&](auto h) INLINE_LAMBDA {
            unroll<VECTORS>([&](auto c) INLINE_LAMBDA {
                store(acc + h * shape.acc_floats + c * WIDTH, sum[h * VECTORS + c]);
            });
        });
    }
};

// Scores of a tile, and the maximum of each lane behind them.
template <class Keys, int HEADS>
void score(const Shape& shape, const Tile& tile, const Heads& heads) {
    constexpr int ROWS = WIDTH / HEADS;
    Vector row_max = broadcast(NEG_INF);
    for (int at = 0; at < tile.rows; at += ROWS) {
        prefetch_ahead<0, ROWS>(shape, heads.ahead, at);
        Vector x = Keys::dot_products(shape, tile, heads, at);
        if (shape.scaled_rows) x *= repeat<ROWS>(tile.key_scale + at);
        if (shape.slopes) x -= load(heads.slope) * repeat<ROWS>(tile.distance + at);
        x += repeat<ROWS>(tile.mask + at);
        row_max = maximum(row_max, x);
        store(heads.scores + at * HEADS, x);
    }
    store(heads.scores + QKV_TILE * HEADS, row_max);
}

// Multiplies acc by each head's factor, after its row_max has grown.
template <int HEADS>
INLINE void rescale(const Shape& shape, const Heads& heads, Vector factor) {
    float lanes[WIDTH];
    store(lanes, factor);
    for (int h = 0; h < HEADS; ++h) {
        float* acc = heads.acc + h * shape.acc_floats;
        for (int i = 0; i < shape.acc_floats; i += WIDTH)
            store(acc + i, load(acc + i) * broadcast(lanes[h * (WIDTH / HEADS)]));
    }
}

// The weights 2^(score - row_max) of a tile, and the weighted sum of its values.
template <class Values, int HEADS>
void accumulate(const Shape& shape, const Tile& tile, const Heads& heads) {
    constexpr int ROWS = WIDTH / HEADS;
    const Vector before = load(heads.row_max);
    const Vector here = load(heads.scores + QKV_TILE * HEADS);
    const Vector row_max = maximum(neighbour_max<ROWS>(here), before);
    Vector row_sum = load(heads.row_sum);
    if (any_above(row_max, before)) {
        const Vector factor = exp2_of(before - row_max);
        row_sum *= factor;
        store(heads.row_max, row_max);
        rescale<HEADS>(shape, heads, factor);
    }
    for (int at = 0; at < tile.rows; at += ROWS) {
        const Vector p = Values::round_weight(exp2_of(load(heads.scores + at * HEADS) - row_max));
        row_sum += p;
        store(heads.scores + at * HEADS,
              shape.scaled_rows ? p * repeat<ROWS>(tile.value_scale + at) : p);
    }
    store(heads.row_sum, row_sum);
    Values::accumulate(shape, tile, heads);
}
