// One stretch of one root: its queries are laid out, its tiles attended to, its sums told.

constexpr int TILE_BYTES = 4096;   // of cached rows that a tile aims at: near, and soon used again
constexpr int GROUP_BYTES = 8192;  // where many heads share a row, what is done once a tile costs more
constexpr int AHEAD = 2;           // tiles that are asked for before they are needed
constexpr int MOST_HEADS = WIDTH < 8 ? WIDTH : 8;

using OnTile = void (*)(const Shape&, const Tile&, const Heads&);

// How one type of cached numbers is read; functions for 1, 2, 4 and 8 heads.
struct Way {
    int bytes;    // of a stored element
    int numbers;  // in an element: 2 for int4, whose tiles are unpacked to fp32 before they are scored
    int vectors;  // of which the sums have a multiple
    // Writes a head's query as `score` reads it; `query` is in base 2.
    void (*lay_out)(const Shape&, const float* query, float* into);
    // Writes a head's sums, as `weigh` left them, in the order of a row.
    void (*tell)(const Shape&, const float* sums, float* into);
    OnTile score[4], weigh[4];
};

template <template <class, int> class Keys, template <class, int> class Values, class Number>
constexpr Way way(int vectors, void (*lay_out)(const Shape&, const float*, float*),
                  void (*tell)(const Shape&, const float*, float*)) {
    constexpr int MOST = MOST_HEADS;
    return {int(sizeof(Number)), 1, vectors, lay_out, tell,
            {score<Keys<Number, 1>, 1>, score<Keys<Number, 2>, 2>, score<Keys<Number, 4>, 4>,
             score<Keys<Number, MOST>, MOST>},
            {weigh<Values<Number, 1>, 1>, weigh<Values<Number, 2>, 2>, weigh<Values<Number, 4>, 4>,
             weigh<Values<Number, MOST>, MOST>}};
}

// int4: unpacked, a tile is one of fp32.
constexpr Way unpacked(Way floats) {
    floats.bytes = 1;
    floats.numbers = 2;
    return floats;
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

void tell_floats(const Shape& shape, const float* sums, float* into) {
    __builtin_memcpy(into, sums, shape.head_dim * sizeof(float));
}

// Where the next row of each stream is, and for how many its page goes on.
struct Cursors {
    int64_t slot[STREAMS], left[STREAMS];
    const char *key[STREAMS], *other[STREAMS];
    const float *key_scale[STREAMS], *other_scale[STREAMS];
};

// Finds the row of a slot in the pages of one tensor, and its scale where rows have one.
INLINE void find(const QkvDecode& call, const QkvRows& rows, int bytes, const Stretch& stretch,
                 int64_t slot, const char*& row, const float*& scale) {
    const int64_t page = int64_t(stretch.sequence) * call.pages_each + slot / call.page_rows;
    const int64_t inside = slot % call.page_rows;
    row = (const char*)rows.pages[page] +
          (stretch.root * rows.head_stride + inside * rows.row_stride) * bytes;
    if (rows.scale_pages)
        scale = (const float*)rows.scale_pages[page] + stretch.root * rows.scale_head_stride +
                inside * rows.scale_row_stride;
}

// The next `rows_each` rows of the first `places` streams, taken in turn.
template <int PLACES, bool GROUPED = false>
INLINE void fill_from(const QkvDecode& call, const Way& way, const Stretch& stretch, Cursors& from,
                      int places, int rows_each, Tile& tile) {
    const bool shared = call.values.pages == nullptr, scaled = call.keys.scale_pages != nullptr;
    const int64_t key_bytes = call.keys.row_stride * way.bytes;
    const int64_t other_bytes = call.values.row_stride * way.bytes;
    for (int done = 0; done < rows_each;) {
        int64_t count = rows_each - done;
        for (int s = 0; s < places; ++s) {
            if (from.left[s] == 0) {
                find(call, call.keys, way.bytes, stretch, from.slot[s], from.key[s], from.key_scale[s]);
                if (!shared)
                    find(call, call.values, way.bytes, stretch, from.slot[s], from.other[s],
                         from.other_scale[s]);
                from.left[s] = call.page_rows - from.slot[s] % call.page_rows;
            }
            if (from.left[s] < count) count = from.left[s];
        }
        // Where all are known to be there, for all streams at once.
        for (int64_t i = 0; i < count; ++i) {
            const int at = (done + int(i)) * PLACES;
            const auto on_each = [&](const auto& what) INLINE_LAMBDA {
                if (places == PLACES) for (int s = 0; s < PLACES; ++s) what(s);
                else for (int s = 0; s < places; ++s) what(s);
            };
            on_each([&](int s) INLINE_LAMBDA { tile.key[at + s] = from.key[s] + i * key_bytes; });
            if (!shared)
                on_each([&](int s) INLINE_LAMBDA { tile.other[at + s] = from.other[s] + i * other_bytes; });
            if constexpr (GROUPED)
                on_each([&](int s) INLINE_LAMBDA {
                    tile.key_groups[at + s] = from.key_scale[s] + i * call.keys.scale_row_stride;
                    if (!shared)
                        tile.other_groups[at + s] = from.other_scale[s] + i * call.values.scale_row_stride;
                });
            else if (scaled)
                on_each([&](int s) INLINE_LAMBDA {
                    tile.key_scale[at + s] = from.key_scale[s][i * call.keys.scale_row_stride];
                });
            if (!GROUPED && scaled && !shared)
                on_each([&](int s) INLINE_LAMBDA {
                    tile.other_scale[at + s] = from.other_scale[s][i * call.values.scale_row_stride];
                });
            if (call.slopes)
                on_each([&](int s) INLINE_LAMBDA {
                    const int64_t away = call.position[stretch.sequence] - from.slot[s] - i;
                    tile.distance[at + s] = float(away < 0 ? -away : away);
                });
        }
        for (int s = 0; s < places; ++s) {
            from.slot[s] += count;
            from.left[s] -= count;
            from.key[s] += count * key_bytes;
            if (!shared) from.other[s] += count * other_bytes;
            if (scaled) from.key_scale[s] += count * call.keys.scale_row_stride;
            if (scaled && !shared) from.other_scale[s] += count * call.values.scale_row_stride;
        }
        done += int(count);
    }
}

// The next `rows` rows of as many places as there are streams, taken in turn.
void fill(const QkvDecode& call, const Way& way, const Stretch& stretch, int streams, Cursors& from,
          int rows, Tile& tile) {
    tile.rows = rows;
    const bool shared = call.values.pages == nullptr;
    tile.value = shared ? tile.key : tile.other;
    tile.value_scale = shared ? tile.key_scale : tile.other_scale;
    // Fewer rows than streams are one of each of the first.
    if (way.numbers > 1) fill_from<1, true>(call, way, stretch, from, 1, rows, tile);
    else if (streams == 1) fill_from<1>(call, way, stretch, from, 1, rows, tile);
    else if (rows < STREAMS) fill_from<STREAMS>(call, way, stretch, from, rows, 1, tile);
    else fill_from<STREAMS>(call, way, stretch, from, STREAMS, rows / STREAMS, tile);
    for (int i = rows; i < padded(rows, WIDTH); ++i) {
        tile.key[i] = tile.key[rows - 1];
        tile.other[i] = shared ? nullptr : tile.other[rows - 1];
        tile.key_scale[i] = tile.other_scale[i] = tile.distance[i] = 0;
        tile.seen[i] = UNSEEN;
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

// Rows of int4 times the scales of their groups, in fp32, each pointer moved to its unpacked row.
void unpack(const Tile& tile, const Shape& shape, const char** rows, const float* const* scales,
            float* into) {
    for (int r = 0; r < tile.rows; ++r) {
        float* row = into + r * shape.head_dim;
        for (int i = 0; i < shape.head_dim; i += QKV_GROUP)
            unpack_group((const uint8_t*)rows[r] + i / 2, scales[r][i / QKV_GROUP], row + i);
        rows[r] = (const char*)row;
    }
    for (int r = tile.rows; r < padded(tile.rows, WIDTH); ++r) rows[r] = rows[tile.rows - 1];
}

int tile_rows(const QkvDecode& call, const Way& way) {
    const int number = way.numbers > 1 ? int(sizeof(float)) : way.bytes;
    const int bytes = call.head_dim * number * (call.values.pages ? 2 : 1);
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
    shape.row_bytes = call.head_dim * way.bytes / way.numbers;
    shape.turned = call.turned;
    shape.half = half;
    shape.half_padded = padded(half, QKV_LANES);
    shape.rest = call.head_dim - call.turned;
    shape.sums_floats = padded(call.head_dim, WIDTH * way.vectors);
    shape.shared = call.values.pages == nullptr;
    shape.scaled_rows = call.keys.scale_pages && way.numbers == 1;
    shape.slopes = call.slopes != nullptr;
    // One head waits for memory, and reads from several places; many heads and bytes, for arithmetic.
    const int streams = shape.streams = group == 1 && way.bytes > 1 ? STREAMS : 1;

    float* queries = scratch;
    float* sums = queries + group * streams * QUERY_FLOATS;
    float* state = sums + group * shape.sums_floats;  // most, total and slope of each lane
    float* scores = state + group * 3 * WIDTH;  // of two tiles
    float* key_scale = scores + 2 * group * SCORES;
    float* query = key_scale + QUERY_FLOATS;
    float* left_over = query + QUERY_FLOATS;  // the query where streams of equal length end
    float* fp32_rows = left_over + QUERY_FLOATS;  // int4: those of two tiles

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
    const int row = 2 * shape.half_padded;
    const auto turn = [&](float* which, int64_t slots) {
        for (; slots > QKV_TILE; slots -= QKV_TILE) turn_back(shape, call.near + QKV_TILE * row, which);
        turn_back(shape, call.near + slots * row, which);
    };
    if (half)
        for (int h = 0; h < group; ++h) {
            float* which = queries + h * QUERY_FLOATS;
            turn_back(shape, call.far + stretch.begin / QKV_STRETCH * row, which);
            turn(which, stretch.begin % QKV_STRETCH);
        }

    // The tile that is weighed, the one that is scored, and those on their way from memory.
    constexpr int TILES = AHEAD + 2;
    Tile tiles[TILES];
    for (Tile& tile : tiles)
        for (float& seen : tile.seen) seen = 0;
    const int step = tile_rows(call, way);
    // What does not fill all streams alike is one more row of the first of them each.
    const int64_t all = stretch.end - stretch.begin, length = all / streams, even = length * streams;
    const auto attend_to = [&](int64_t begin, int64_t each, int64_t rows) {
        Cursors from = {};
        for (int s = 0; s < streams; ++s) {
            from.slot[s] = begin + s * each;
            if (half && s > 0) {
                __builtin_memcpy(queries + s * QUERY_FLOATS, queries + (s - 1) * QUERY_FLOATS,
                                 QUERY_FLOATS * sizeof(float));
                turn(queries + s * QUERY_FLOATS, each);
            }
        }
        const int64_t count = (rows + step - 1) / step;
        // Slots of a tile in each stream, and tiles until the queries are turned back.
        const int slots = step / streams, turned = QKV_TILE / slots;
        const auto filled = [&](int64_t number) -> Tile* {
            const int64_t left = rows - number * step;
            if (left <= 0) return nullptr;
            Tile& tile = tiles[number % TILES];
            fill(call, way, stretch, streams, from, left < step ? int(left) : step, tile);
            tile.near = call.near + number % turned * slots * row;
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
                for (int i = 0; i < tile->rows; ++i) {
                    ask_for<1>(tile->key + i, shape.row_bytes);
                    if (!shape.shared) ask_for<1>(tile->value + i, shape.row_bytes);
                }
        // A tile is weighed after the next one is scored: neither then waits for the other's last step.
        for (int64_t number = 0; number <= count; ++number) {
            const Tile* ahead = filled(number + AHEAD);
            if (half && number > 0 && number % turned == 0)
                for (int which = 0; which < group * streams; ++which)
                    turn(queries + which * QUERY_FLOATS, turned * slots);
            if (number < count && way.numbers > 1) {
                const int floats = step * call.head_dim;
                float* into = fp32_rows + number % 2 * 2 * floats;
                Tile& tile = tiles[number % TILES];
                unpack(tile, shape, tile.key, tile.key_groups, into);
                if (!shape.shared) unpack(tile, shape, tile.other, tile.other_groups, into + floats);
            }
            if (number < count) on_tile(way.score, number, ahead);
            if (number > 0) on_tile(way.weigh, number - 1, ahead);
        }
    };
    if (half && all > even) {
        __builtin_memcpy(left_over, queries, QUERY_FLOATS * sizeof(float));
        turn(left_over, even);
    }
    if (even > 0) attend_to(stretch.begin, length, even);
    if (all > even) {
        if (half && even > 0) __builtin_memcpy(queries, left_over, QUERY_FLOATS * sizeof(float));
        attend_to(stretch.begin + even, 1, all - even);
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
    for (int h = 0; h < group; ++h)
        way.tell(shape, sums + h * shape.sums_floats, into.sums + h * call.head_dim);
}
