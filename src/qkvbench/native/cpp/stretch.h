// One stretch of one root: its queries are laid out, its tiles attended to, its sums told.

constexpr int TILE_BYTES = 4096;   // of cached rows that a tile aims at: near, and soon used again
constexpr int GROUP_BYTES = 8192;  // where many heads share a row, what is done once a tile costs more
constexpr int AHEAD = 2;           // tiles that are asked for before they are needed
constexpr int MOST_HEADS = WIDTH < 8 ? WIDTH : 8;

using OnTile = void (*)(const Shape&, const Tile&, const Heads&);

// How one type of cached numbers is read; functions for 1, 2, 4 and 8 heads.
struct Way {
    int bytes;    // of a number
    int vectors;  // over which the numbers of a chunk of WIDTH * vectors are spread in the sums
    // Writes a head's query as `score` reads it; `query` is in base 2.
    void (*lay_out)(const Shape&, const float* query, float* into);
    OnTile score[4], weigh[4];
};

template <template <class, int> class Keys, template <class, int> class Values, class Number>
constexpr Way way(int vectors, void (*lay_out)(const Shape&, const float*, float*)) {
    constexpr int MOST = MOST_HEADS;
    return {int(sizeof(Number)), vectors, lay_out,
            {score<Keys<Number, 1>, 1>, score<Keys<Number, 2>, 2>, score<Keys<Number, 4>, 4>,
             score<Keys<Number, MOST>, MOST>},
            {weigh<Values<Number, 1>, 1>, weigh<Values<Number, 2>, 2>, weigh<Values<Number, 4>, 4>,
             weigh<Values<Number, MOST>, MOST>}};
}

// Where the functions for so many heads are.
constexpr int place(int heads) { return heads == 1 ? 0 : heads == 2 ? 1 : heads == 4 ? 2 : 3; }

// The halves that are turned, each padded with zeros, then the rest.
void lay_out_floats(const Shape& shape, const float* query, float* into) {
    for (int i = 0; i < QUERY_FLOATS; ++i) into[i] = 0;
    for (int i = 0; i < shape.half; ++i) {
        into[i] = query[i];
        into[shape.half_padded + i] = query[shape.half + i];
    }
    for (int i = 0; i < shape.rest; ++i)
        into[2 * shape.half_padded + i] = query[shape.turned + i];
}

// The numbers of a row, of either of its roots, for `count` slots from `slot` on.
void find_rows(const QkvDecode& call, const QkvRows& rows, int bytes, const Stretch& stretch,
               int64_t slot, int count, const char** found, float* scales) {
    const uint64_t* pages = rows.pages + int64_t(stretch.sequence) * call.pages_each;
    const uint64_t* scale_pages =
        rows.scale_pages ? rows.scale_pages + int64_t(stretch.sequence) * call.pages_each : nullptr;
    int at = 0;
    while (at < count) {
        const int64_t page = slot / call.page_rows, row = slot % call.page_rows;
        const int64_t here = call.page_rows - row;
        const int end = here < count - at ? at + int(here) : count;
        const char* first = (const char*)pages[page] +
                            (stretch.root * rows.head_stride + row * rows.row_stride) * bytes;
        for (int i = at; i < end; ++i) found[i] = first + (i - at) * rows.row_stride * bytes;
        if (scale_pages) {
            const float* scale = (const float*)scale_pages[page] +
                                 stretch.root * rows.scale_head_stride + row * rows.scale_row_stride;
            for (int i = at; i < end; ++i) scales[i] = scale[(i - at) * rows.scale_row_stride];
        }
        slot += end - at;
        at = end;
    }
    for (; at < padded(count, WIDTH); ++at) {
        found[at] = found[count - 1];
        if (scale_pages) scales[at] = scales[count - 1];
    }
}

void fill(const QkvDecode& call, const Way& way, const Stretch& stretch, int64_t slot, int rows,
          Tile& tile) {
    tile.rows = rows;
    find_rows(call, call.keys, way.bytes, stretch, slot, rows, tile.key, tile.key_scale);
    const bool shared = call.values.pages == nullptr;
    if (!shared)
        find_rows(call, call.values, way.bytes, stretch, slot, rows, tile.value, tile.value_scale);
    for (int i = 0; i < padded(rows, WIDTH); ++i) {
        if (shared) {
            tile.value[i] = tile.key[i];
            tile.value_scale[i] = tile.key_scale[i];
        }
        tile.seen[i] = i < rows ? 0 : UNSEEN;
        if (call.slopes) {
            const int64_t away = call.position[stretch.sequence] - (slot + i);
            tile.distance[i] = float(away < 0 ? -away : away);
        }
    }
}

// The query as it is from `table`'s place on: keys are turned forward, so the query is turned back.
INLINE void turn_back(const Shape& shape, const float* table, float* query) {
    for (int i = 0; i < shape.half_padded; i += WIDTH) {
        const Vector cos = load(table + i), sin = load(table + shape.half_padded + i);
        const Vector x = load(query + i), y = load(query + shape.half_padded + i);
        store(query + i, x * cos + y * sin);
        store(query + shape.half_padded + i, y * cos - x * sin);
    }
}

int tile_rows(const QkvDecode& call, const Way& way) {
    const int bytes = call.head_dim * way.bytes * (call.values.pages ? 2 : 1);
    const int rows = (call.group < 4 ? TILE_BYTES : GROUP_BYTES) / bytes / 16 * 16;
    return rows < 16 ? 16 : rows > QKV_TILE ? QKV_TILE : rows;
}

// Heads that go together: as many as there is code for, then the rest by halves.
int together(int left) {
    int count = MOST_HEADS;
    while (count > left) count /= 2;
    return count;
}

void attend_with(const Way& way, const QkvDecode& call, const Stretch& stretch, float* scratch,
                 Partial into) {
    const int group = call.group, half = call.turned / 2;
    Shape shape = {};
    shape.head_dim = call.head_dim;
    shape.row_bytes = call.head_dim * way.bytes;
    shape.turned = call.turned;
    shape.half = half;
    shape.half_padded = padded(half, QKV_LANES);
    shape.rest = call.head_dim - call.turned;
    shape.sums_floats = padded(call.head_dim, WIDTH * way.vectors);
    shape.shared = call.values.pages == nullptr;
    shape.scaled_rows = call.keys.scale_pages != nullptr;
    shape.slopes = call.slopes != nullptr;
    shape.near = call.near;

    float* queries = scratch;
    float* sums = queries + group * QUERY_FLOATS;
    float* state = sums + group * shape.sums_floats;  // most, total and slope of each lane
    float* scores = state + group * 3 * WIDTH;  // of two tiles
    float* key_scale = scores + 2 * group * SCORES;
    float* query = key_scale + QUERY_FLOATS;

    if (call.key_scale && half) {
        lay_out_floats(shape, call.key_scale, key_scale);
        shape.key_scale = key_scale;
    }
    const int64_t first_head = int64_t(stretch.sequence) * call.roots * group + stretch.root * group;
    for (int h = 0; h < group; ++h) {
        const float* given = call.query + (first_head + h) * call.head_dim;
        for (int i = 0; i < call.head_dim; ++i) query[i] = given[i] * LOG2_E;
        for (int i = call.head_dim; i < padded(call.head_dim, QKV_LANES); ++i) query[i] = 0;
        // What is turned is scaled before, as a key; the rest is scaled here.
        if (call.key_scale)
            for (int i = call.turned; i < call.head_dim; ++i) query[i] *= call.key_scale[i];
        way.lay_out(shape, query, queries + h * QUERY_FLOATS);
    }
    for (int i = 0; i < group * shape.sums_floats; ++i) sums[i] = 0;
    for (int h = 0; h < group;) {
        const int count = together(group - h);
        float* mine = state + h * 3 * WIDTH;
        for (int lane = 0; lane < WIDTH; ++lane) {
            mine[lane] = UNSEEN;
            mine[WIDTH + lane] = 0;
            const int64_t head = stretch.root * group + h + lane / (WIDTH / count);
            mine[2 * WIDTH + lane] = call.slopes ? call.slopes[head] * LOG2_E : 0;
        }
        h += count;
    }
    if (half) {
        const int row = 2 * shape.half_padded;
        for (int h = 0; h < group; ++h) {
            turn_back(shape, call.far + stretch.begin / QKV_STRETCH * row, queries + h * QUERY_FLOATS);
            int left = int(stretch.begin % QKV_STRETCH);
            for (; left > QKV_TILE; left -= QKV_TILE)
                turn_back(shape, call.near + QKV_TILE * row, queries + h * QUERY_FLOATS);
            turn_back(shape, call.near + left * row, queries + h * QUERY_FLOATS);
        }
    }

    const int step = tile_rows(call, way);
    const int64_t count = (stretch.end - stretch.begin + step - 1) / step;
    // The tile that is weighed, the one that is scored, and those on their way from memory.
    constexpr int TILES = AHEAD + 2;
    Tile tiles[TILES];
    const auto filled = [&](int64_t number) -> Tile* {
        const int64_t slot = stretch.begin + number * step, left = stretch.end - slot;
        if (left <= 0) return nullptr;
        Tile& tile = tiles[number % TILES];
        fill(call, way, stretch, slot, left < step ? int(left) : step, tile);
        return &tile;
    };
    const auto on_tile = [&](const OnTile (&what)[4], int64_t number, const Tile* ahead) {
        for (int h = 0; h < group;) {
            const int heads = together(group - h);
            float* mine = state + h * 3 * WIDTH;
            what[place(heads)](shape, tiles[number % TILES],
                               {queries + h * QUERY_FLOATS, mine + 2 * WIDTH, mine, mine + WIDTH,
                                scores + (number % 2 * group + h) * SCORES,
                                sums + h * shape.sums_floats, h == 0 ? ahead : nullptr});
            h += heads;
        }
    };
    for (int number = 0; number < AHEAD; ++number)
        if (const Tile* tile = filled(number))
            for (int row = 0; row < tile->rows; ++row) {
                ask_for<1>(tile->key + row, shape.row_bytes);
                if (!shape.shared) ask_for<1>(tile->value + row, shape.row_bytes);
            }
    // A tile is weighed after the next one is scored: neither then waits for the other's last step.
    for (int64_t number = 0; number <= count; ++number) {
        const Tile* ahead = filled(number + AHEAD);
        if (number < count) on_tile(way.score, number, ahead);
        if (number > 0) on_tile(way.weigh, number - 1, ahead);
        if (half)
            for (int h = 0; h < group; ++h)
                turn_back(shape, call.near + step * 2 * shape.half_padded, queries + h * QUERY_FLOATS);
    }

    for (int h = 0; h < group;) {
        const int count = together(group - h), rows = WIDTH / count;
        const float* mine = state + h * 3 * WIDTH;
        for (int k = 0; k < count; ++k) {
            into.most[h + k] = mine[k * rows];
            into.total[h + k] = 0;
            for (int lane = k * rows; lane < (k + 1) * rows; ++lane)
                into.total[h + k] += mine[WIDTH + lane];
        }
        h += count;
    }
    // Four numbers of one vector, then four of the next: how interleaving rows leaves them.
    const int vectors = way.vectors, chunk = WIDTH * vectors;
    for (int h = 0; h < group; ++h)
        for (int i = 0; i < call.head_dim; i += 4) {
            const int within = i % chunk / 4;
            const int from = i / chunk * chunk + within % vectors * WIDTH + within / vectors * 4;
            __builtin_memcpy(into.sums + h * call.head_dim + i, sums + h * shape.sums_floats + from,
                             4 * sizeof(float));
        }
}
