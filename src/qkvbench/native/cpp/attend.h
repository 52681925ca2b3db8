// Attention of one query per head over a stretch of cached rows. Each row is read from memory once:
// while a tile of rows is near, its scores are made, then its weighted sum (online softmax,
// arXiv:1805.02867). All that is here is compiled once for each target, with its own vectors.

constexpr float LOG2_E = 1.44269504f;
constexpr float UNSEEN = -__builtin_inff();

INLINE int padded(int count, int to) { return (count + to - 1) / to * to; }

// 2^x for x <= 0, to about 1e-7 of it; 0 below 2^-126, as for -infinity.
INLINE Vector exp2_of(Vector x) {
    x = largest(x, all(-127.0f));
    const Vector n = nearest(x), f = x - n;
    Vector p = all(1.54036e-4f) * f + all(1.33335e-3f);
    p = p * f + all(9.61813e-3f);
    p = p * f + all(5.55041e-2f);
    p = p * f + all(2.402265e-1f);
    p = p * f + all(6.931472e-1f);
    p = p * f + all(1.0f);
    return p * power_of_two(n);
}

// One tile: where its rows are, and what is added to or multiplies the scores of each. Its rows come
// from one place, or row by row from each of STREAMS places in turn.
struct Tile {
    int rows;                           // that are seen; behind them the last one is repeated
    const char *key[QKV_TILE], *other[QKV_TILE];
    const char* const* value;           // `other`, or the keys themselves
    float key_scale[QKV_TILE], other_scale[QKV_TILE];
    const float* value_scale;
    float distance[QKV_TILE], seen[QKV_TILE];  // seen: 0, or -infinity behind the last row
    const float* near;                  // how far the first row is turned from where the query is
    const float *key_groups[QKV_TILE], *other_groups[QKV_TILE];  // int4: scales of each row
};

// Asks for COUNT rows before they are needed. Spread over the work, so that no burst of them waits.
template <int COUNT>
INLINE void ask_for(const char* const* rows, int bytes) {
    each<COUNT>([&](auto r) INLINE_LAMBDA {
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(rows[r] + at);
    });
}

constexpr int QUERY_FLOATS = 304;  // room of a head's query in any layout

// The shape of a call, as all functions on tiles ask for it.
struct Shape {
    int head_dim, row_bytes, turned, half, half_padded, rest, sums_floats;
    int streams;  // STREAMS, each with its query, or 1
    bool shared, scaled_rows, slopes;
    const float* key_scale;
};

// HEADS query heads that are scored together: 16 lanes hold HEADS heads times WIDTH / HEADS rows,
// row by row within each head.
struct Heads {
    const float* query;           // as floats, as bf16 or as bytes: QUERY_FLOATS for each head
    const float* slope;           // one for each lane
    float *most, *total;          // WIDTH each
    float* scores;                // SCORES for each head; then weights
    float* sums;                  // `sums_floats` for each head
    const Tile* ahead;            // a later tile to ask for, or null
};

// Scores of one head and tile, and its part of a vector with the largest of each lane.
constexpr int SCORES = QKV_TILE + WIDTH;

// One half of a later tile's rows is asked for by scores, the other by weighted sums.
template <int HALF, int ROWS>
INLINE void ask_ahead(const Shape& shape, const Tile* ahead, int at) {
    if (!ahead || at >= ahead->rows) return;
    constexpr int COUNT = ROWS == 1 ? 1 - HALF : ROWS / 2;
    ask_for<COUNT>(ahead->key + at + HALF * COUNT, shape.row_bytes);
    if (!shape.shared) ask_for<COUNT>(ahead->value + at + HALF * COUNT, shape.row_bytes);
}

// Keys times queries in fp32, from any type; the first `turned` coordinates are turned on the way.
template <class Number, int HEADS>
struct Floats {
    static constexpr int ROWS = WIDTH / HEADS;

    static INLINE Vector products(const Shape& shape, const Tile& tile, const Heads& heads, int at) {
        Vector sum[WIDTH];
        each<WIDTH>([&](auto i) INLINE_LAMBDA { sum[i] = all(0); });
        const Number* rows[ROWS];
        each<ROWS>([&](auto r) INLINE_LAMBDA { rows[r] = (const Number*)tile.key[at + r]; });
        if (STREAMS > 1 && HEADS == 1 && shape.streams == STREAMS)
            add_all_turned<STREAMS>(shape, tile, heads, rows, at, sum);
        else
            add_all_turned<1>(shape, tile, heads, rows, at, sum);
        int i = 0;
        for (; i + WIDTH <= shape.rest; i += WIDTH)
            add(shape, heads, rows, i, sum, [](const Number* x) INLINE_LAMBDA { return from(x); });
        if (const int left = shape.rest - i; left > 0)
            add(shape, heads, rows, i, sum, [left](const Number* x) INLINE_LAMBDA { return from(x, left); });
        return sums(sum);
    }

  private:
    template <class Read>
    static INLINE void add(const Shape& shape, const Heads& heads, const Number* const (&rows)[ROWS],
                           int i, Vector (&sum)[WIDTH], Read read) {
        const float* query = heads.query + 2 * shape.half_padded + i;
        Vector x[ROWS];
        each<ROWS>([&](auto r) INLINE_LAMBDA { x[r] = read(rows[r] + shape.turned + i); });
        each<HEADS>([&](auto h) INLINE_LAMBDA {
            const Vector q = load(query + h * QUERY_FLOATS);
            each<ROWS>([&](auto r) INLINE_LAMBDA { sum[h * ROWS + r] += q * x[r]; });
        });
    }

    template <int PLACES>
    static INLINE void add_all_turned(const Shape& shape, const Tile& tile, const Heads& heads,
                                      const Number* const (&rows)[ROWS], int at, Vector (&sum)[WIDTH]) {
        const float* near = tile.near + at / PLACES * 2 * shape.half_padded;
        int i = 0;
        for (; i + WIDTH <= shape.half; i += WIDTH)
            add_turned<PLACES>(shape, heads, rows, near + i, i, sum,
                               [](const Number* x) INLINE_LAMBDA { return from(x); });
        if (const int left = shape.half - i; left > 0)
            add_turned<PLACES>(shape, heads, rows, near + i, i, sum,
                               [left](const Number* x) INLINE_LAMBDA { return from(x, left); });
    }

    // Where rows are of as many places, the n-th row of each is turned as far from its own query.
    template <int PLACES, class Read>
    static INLINE void add_turned(const Shape& shape, const Heads& heads,
                                  const Number* const (&rows)[ROWS], const float* near, int i,
                                  Vector (&sum)[WIDTH], Read read) {
        each<ROWS>([&](auto r) INLINE_LAMBDA {
            const float* query = heads.query + i + (PLACES > 1 ? r * QUERY_FLOATS : 0);
            Vector x = read(rows[r] + i), y = read(rows[r] + shape.half + i);
            if (shape.key_scale) {
                x *= load(shape.key_scale + i);
                y *= load(shape.key_scale + shape.half_padded + i);
            }
            // arXiv:2104.09864, eq. 34, relative to the tile's first row; the query is turned back.
            constexpr int TURN = PLACES > 1 ? 0 : int(r);
            const Vector cos = load(near + TURN * 2 * shape.half_padded);
            const Vector sin = load(near + (TURN * 2 + 1) * shape.half_padded);
            const Vector first = x * cos - y * sin, second = y * cos + x * sin;
            each<HEADS>([&](auto h) INLINE_LAMBDA {
                const float* q = query + h * QUERY_FLOATS;
                sum[h * ROWS + r] += load(q) * first;
                sum[h * ROWS + r] += load(q + shape.half_padded) * second;
            });
        });
    }

  public:
    static INLINE Vector rounded(Vector weight) { return weight; }

    // sums += weights times rows, CHUNKS vectors of them at a time.
    static void weigh(const Shape& shape, const Tile& tile, const Heads& heads) {
        int i = 0;
        constexpr int MOST = SUMS / SOME < CHUNKS_AT_ONCE ? SUMS / SOME : CHUNKS_AT_ONCE;
        for (; i + MOST * WIDTH <= shape.head_dim; i += MOST * WIDTH)
            weigh_chunks<MOST>(shape, tile, heads, i);
        if constexpr (MOST > 4)
            for (; i + 4 * WIDTH <= shape.head_dim; i += 4 * WIDTH)
                weigh_chunks<4>(shape, tile, heads, i);
        if constexpr (MOST > 2)
            for (; i + 2 * WIDTH <= shape.head_dim; i += 2 * WIDTH)
                weigh_chunks<2>(shape, tile, heads, i);
        for (; i + WIDTH <= shape.head_dim; i += WIDTH) weigh_chunks<1>(shape, tile, heads, i);
        if (const int left = shape.head_dim - i; left > 0)
            weigh_chunks<1>(shape, tile, heads, i,
                            [left](const Number* x) INLINE_LAMBDA { return from(x, left); });
    }

  private:
    static constexpr int SOME = HEADS < HEADS_AT_ONCE ? HEADS : HEADS_AT_ONCE;

    template <int CHUNKS>
    static INLINE void weigh_chunks(const Shape& shape, const Tile& tile, const Heads& heads, int i) {
        weigh_chunks<CHUNKS>(shape, tile, heads, i,
                             [](const Number* x) INLINE_LAMBDA { return from(x); });
    }

    template <int CHUNKS, class Read>
    static INLINE void weigh_chunks(const Shape& shape, const Tile& tile, const Heads& heads, int i,
                                    Read read) {
        each<HEADS / SOME>([&](auto part) INLINE_LAMBDA {
            weigh_some<CHUNKS, part * SOME>(shape, tile, heads, i, read);
        });
    }

    // Of SOME heads from FIRST on, whose sums stay in registers.
    template <int CHUNKS, int FIRST, class Read>
    static INLINE void weigh_some(const Shape& shape, const Tile& tile, const Heads& heads, int i,
                                  Read read) {
        float* sums = heads.sums + FIRST * shape.sums_floats + i;
        Vector sum[SOME * CHUNKS];
        each<SOME>([&](auto h) INLINE_LAMBDA {
            each<CHUNKS>([&](auto c) INLINE_LAMBDA {
                sum[h * CHUNKS + c] = load(sums + h * shape.sums_floats + c * WIDTH);
            });
        });
        for (int at = 0; at < tile.rows; at += ROWS) {
            if (i == 0 && FIRST == 0) ask_ahead<1, ROWS>(shape, heads.ahead, at);
            const float* weight = heads.scores + at * HEADS + FIRST * ROWS;
            each<ROWS>([&](auto r) INLINE_LAMBDA {
                const Number* row = (const Number*)tile.value[at + r] + i;
                Vector x[CHUNKS];
                each<CHUNKS>([&](auto c) INLINE_LAMBDA { x[c] = read(row + c * WIDTH); });
                each<SOME>([&](auto h) INLINE_LAMBDA {
                    const Vector p = all(weight[h * ROWS + r]);
                    each<CHUNKS>([&](auto c) INLINE_LAMBDA { sum[h * CHUNKS + c] += p * x[c]; });
                });
            });
        }
        each<SOME>([&](auto h) INLINE_LAMBDA {
            each<CHUNKS>([&](auto c) INLINE_LAMBDA {
                store(sums + h * shape.sums_floats + c * WIDTH, sum[h * CHUNKS + c]);
            });
        });
    }
};

// Scores of a tile, and the largest of each lane behind them.
template <class Keys, int HEADS>
void score(const Shape& shape, const Tile& tile, const Heads& heads) {
    constexpr int ROWS = WIDTH / HEADS;
    Vector most = all(UNSEEN);
    for (int at = 0; at < tile.rows; at += ROWS) {
        ask_ahead<0, ROWS>(shape, heads.ahead, at);
        Vector x = Keys::products(shape, tile, heads, at);
        if (shape.scaled_rows) x *= repeated<ROWS>(tile.key_scale + at);
        if (shape.slopes) x -= load(heads.slope) * repeated<ROWS>(tile.distance + at);
        x += repeated<ROWS>(tile.seen + at);
        most = largest(most, x);
        store(heads.scores + at * HEADS, x);
    }
    store(heads.scores + QKV_TILE * HEADS, most);
}

// What is summed so far, made relative to a new largest score.
template <int HEADS>
INLINE void shrink(const Shape& shape, const Heads& heads, Vector shrunk) {
    float lanes[WIDTH];
    store(lanes, shrunk);
    for (int h = 0; h < HEADS; ++h) {
        float* sums = heads.sums + h * shape.sums_floats;
        for (int i = 0; i < shape.sums_floats; i += WIDTH)
            store(sums + i, load(sums + i) * all(lanes[h * (WIDTH / HEADS)]));
    }
}

// The weights of a tile's scores, relative to the largest so far, and the weighted sum of its rows.
template <class Values, int HEADS>
void weigh(const Shape& shape, const Tile& tile, const Heads& heads) {
    constexpr int ROWS = WIDTH / HEADS;
    const Vector before = load(heads.most);
    const Vector here = load(heads.scores + QKV_TILE * HEADS);
    const Vector most = largest(largest_of<ROWS>(here), before);
    Vector total = load(heads.total);
    if (any_above(most, before)) {
        const Vector shrunk = exp2_of(before - most);
        total *= shrunk;
        store(heads.most, most);
        shrink<HEADS>(shape, heads, shrunk);
    }
    for (int at = 0; at < tile.rows; at += ROWS) {
        const Vector p = Values::rounded(exp2_of(load(heads.scores + at * HEADS) - most));
        total += p;
        store(heads.scores + at * HEADS,
              shape.scaled_rows ? p * repeated<ROWS>(tile.value_scale + at) : p);
    }
    store(heads.total, total);
    Values::weigh(shape, tile, heads);
}
