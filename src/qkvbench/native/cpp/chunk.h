// One chunk of the context of one root: pack the queries, attend to tile after tile, unpack the sums.
#pragma once

// Bytes of a tile: small enough to stay in L1 between scores and weighted sum. If many heads share a
// row, the fixed cost of a tile is higher, so tiles are larger.
constexpr int TILE_BYTES = 4096, GROUP_TILE_BYTES = 8192;
constexpr int PREFETCH_TILES = 2;  // tiles that are prefetched ahead of the current one
constexpr int L1_PERIOD = 4096;    // bytes after which addresses fall into the same set of the L1 cache
constexpr int MAX_HEADS = WIDTH < 8 ? WIDTH : 8;

using TileFunction = void (*)(const Shape&, const Tile&, const Heads&);

// The functions that read one type of cached numbers, each for 1, 2, 4 and 8 heads.
struct Format {
    int bytes;    // of a stored element
    int numbers;  // in an element: 2 for int4, whose tiles are unpacked to fp32 before they are scored
    int vectors;  // acc is padded to a multiple of so many vectors
    // Writes a head's query, already scaled by log2(e), in the layout that `score` reads.
    void (*pack_query)(const Shape&, const float* query, float* into);
    // Writes a head's acc, in the layout of `accumulate`, in the order of head_dim.
    void (*unpack_out)(const Shape&, const float* acc, float* into);
    TileFunction score[4], accumulate[4];
};

template <template <class, int> class Keys, template <class, int> class Values, class Number>
constexpr Format make_format(int vectors, void (*pack_query)(const Shape&, const float*, float*),
                             void (*unpack_out)(const Shape&, const float*, float*)) {
    return {int(sizeof(Number)), 1, vectors, pack_query, unpack_out,
            {score<Keys<Number, 1>, 1>, score<Keys<Number, 2>, 2>, score<Keys<Number, 4>, 4>,
             score<Keys<Number, MAX_HEADS>, MAX_HEADS>},
            {accumulate<Values<Number, 1>, 1>, accumulate<Values<Number, 2>, 2>,
             accumulate<Values<Number, 4>, 4>, accumulate<Values<Number, MAX_HEADS>, MAX_HEADS>}};
}

// int4: a tile is unpacked once to fp32, and scores and weighted sum read it as fp32.
constexpr Format int4_format(Format floats) {
    floats.bytes = 1;
    floats.numbers = 2;
    return floats;
}

// The index of the functions for so many heads in a Format.
constexpr int size_index(int heads) { return heads == 1 ? 0 : heads == 2 ? 1 : heads == 4 ? 2 : 3; }

// (head_dim,) -> the two rotary halves, each padded with zeros to padded_half, then the other
// coordinates, so that pair (i, i + half) is two aligned loads.
void pack_query_fp32(const Shape& shape, const float* query, float* into) {
    for (int i = 0; i < QUERY_FLOATS; ++i) into[i] = 0;
    for (int i = 0; i < shape.half; ++i) {
        into[i] = query[i];
        into[shape.padded_half + i] = query[shape.half + i];
    }
    for (int i = 0; i < shape.unrotated; ++i)
        into[2 * shape.padded_half + i] = query[shape.rotary_dim + i];
}

void unpack_out_fp32(const Shape& shape, const float* acc, float* into) {
    __builtin_memcpy(into, acc, shape.head_dim * sizeof(float));
}

// The next row of each stream, and the rows that are left in its page.
struct Cursors {
    int64_t slot[STREAMS], left[STREAMS];
    const char *key[STREAMS], *separate[STREAMS];
    const float *key_scale[STREAMS], *separate_scale[STREAMS];
};

// Finds the row of a slot in the pages of one tensor, and its scale if rows have one.
INLINE void find(const QkvDecode& call, const QkvRows& rows, int bytes, const Chunk& chunk,
                 int64_t slot, const char*& row, const float*& scale) {
    const int64_t page = int64_t(chunk.sequence) * call.pages_each + slot / call.page_rows;
    const int64_t inside = slot % call.page_rows;
    row = (const char*)rows.pages[page] +
          (chunk.root * rows.head_stride + inside * rows.row_stride) * bytes;
    if (rows.scale_pages)
        scale = (const float*)rows.scale_pages[page] + chunk.root * rows.scale_head_stride +
                inside * rows.scale_row_stride;
}

// Points the tile at the next `rows_each` rows of each of the first `active` streams, interleaved.
template <int N_STREAMS, bool GROUPED = false>
INLINE void fill_from(const QkvDecode& call, const Format& format, const Chunk& chunk, Cursors& from,
                      int active, int rows_each, Tile& tile) {
    const bool shared = call.values.pages == nullptr, scaled = call.keys.scale_pages != nullptr;
    const int64_t key_bytes = call.keys.row_stride * format.bytes;
    const int64_t separate_bytes = call.values.row_stride * format.bytes;
    for (int done = 0; done < rows_each;) {
        int64_t count = rows_each - done;
        for (int s = 0; s < active; ++s) {
            if (from.left[s] == 0) {
                find(call, call.keys, format.bytes, chunk, from.slot[s], from.key[s], from.key_scale[s]);
                if (!shared)
                    find(call, call.values, format.bytes, chunk, from.slot[s], from.separate[s],
                         from.separate_scale[s]);
                from.left[s] = call.page_rows - from.slot[s] % call.page_rows;
            }
            if (from.left[s] < count) count = from.left[s];
        }
        // No stream crosses a page within `count` rows, so all advance without checks.
        for (int64_t i = 0; i < count; ++i) {
            const int at = (done + int(i)) * N_STREAMS;
            const auto for_streams = [&](const auto& body) INLINE_LAMBDA {
                if (active == N_STREAMS) for (int s = 0; s < N_STREAMS; ++s) body(s);
                else for (int s = 0; s < active; ++s) body(s);
            };
            for_streams([&](int s) INLINE_LAMBDA { tile.key[at + s] = from.key[s] + i * key_bytes; });
            if (!shared)
                for_streams([&](int s) INLINE_LAMBDA {
                    tile.separate[at + s] = from.separate[s] + i * separate_bytes;
                });
            if constexpr (GROUPED)
                for_streams([&](int s) INLINE_LAMBDA {
                    tile.key_groups[at + s] = from.key_scale[s] + i * call.keys.scale_row_stride;
                    if (!shared)
                        tile.separate_groups[at + s] =
                            from.separate_scale[s] + i * call.values.scale_row_stride;
                });
            else if (scaled)
                for_streams([&](int s) INLINE_LAMBDA {
                    tile.key_scale[at + s] = from.key_scale[s][i * call.keys.scale_row_stride];
                });
            if (!GROUPED && scaled && !shared)
                for_streams([&](int s) INLINE_LAMBDA {
                    tile.separate_scale[at + s] = from.separate_scale[s][i * call.values.scale_row_stride];
                });
            if (call.slopes)
                for_streams([&](int s) INLINE_LAMBDA {
                    const int64_t away = call.position[chunk.sequence] - from.slot[s] - i;
                    tile.distance[at + s] = float(away < 0 ? -away : away);
                });
        }
        for (int s = 0; s < active; ++s) {
            from.slot[s] += count;
            from.left[s] -= count;
            from.key[s] += count * key_bytes;
            if (!shared) from.separate[s] += count * separate_bytes;
            if (scaled) from.key_scale[s] += count * call.keys.scale_row_stride;
            if (scaled && !shared) from.separate_scale[s] += count * call.values.scale_row_stride;
        }
        done += int(count);
    }
}

// If there are fewer rows than streams, the first `rows` streams give one each.
template <int N_STREAMS>
INLINE void fill_streams(const QkvDecode& call, const Format& format, const Chunk& chunk, Cursors& from,
                         int rows, Tile& tile) {
    if (rows < N_STREAMS) fill_from<N_STREAMS>(call, format, chunk, from, rows, 1, tile);
    else fill_from<N_STREAMS>(call, format, chunk, from, N_STREAMS, rows / N_STREAMS, tile);
}

// Points the tile at the next `rows` rows, an equal number from each stream.
void fill(const QkvDecode& call, const Format& format, const Chunk& chunk, int streams, Cursors& from,
          int rows, Tile& tile) {
    tile.rows = rows;
    const bool shared = call.values.pages == nullptr;
    tile.value = shared ? tile.key : tile.separate;
    tile.value_scale = shared ? tile.key_scale : tile.separate_scale;
    if (format.numbers > 1) fill_from<1, true>(call, format, chunk, from, 1, rows, tile);
    else if (streams == 1) fill_from<1>(call, format, chunk, from, 1, rows, tile);
    else if (streams == STREAMS) fill_streams<STREAMS>(call, format, chunk, from, rows, tile);
    else fill_streams<STREAMS_OF_TWO>(call, format, chunk, from, rows, tile);
    // A whole vector of rows is read at a time: the last row is repeated under a mask.
    for (int i = rows; i < round_up(rows, WIDTH); ++i) {
        tile.key[i] = tile.key[rows - 1];
        tile.separate[i] = shared ? nullptr : tile.separate[rows - 1];
        tile.key_scale[i] = tile.separate_scale[i] = tile.distance[i] = 0;
        tile.mask[i] = NEG_INF;
    }
}

// Rotates a packed query backward by a row (2, padded_half) of cosines and sines: q and the rotated k
// depend on the difference of their slots only, so k then needs a table of small differences.
INLINE void rotate_back(const Shape& shape, const float* table, float* query) {
    for (int i = 0; i < shape.padded_half; i += WIDTH) {
        const Vector cos = load(table + i), sin = load(table + shape.padded_half + i);
        const Vector x = load(query + i), y = load(query + shape.padded_half + i);
        store(query + i, x * cos + y * sin);
        store(query + shape.padded_half + i, y * cos - x * sin);
    }
}

INLINE void unpack_group(const uint8_t* bytes, float scale, float* into) {
    Vector numbers[QKV_GROUP / WIDTH];
    load_group(bytes, scale, numbers);
    store_group(into, numbers);
}

// Dequantizes the rows of a tile into `into` (rows, head_dim), and points the tile there.
void unpack_int4(const Tile& tile, const Shape& shape, const char** rows, const float* const* scales,
            float* into) {
    for (int r = 0; r < tile.rows; ++r) {
        float* row = into + r * shape.head_dim;
        for (int i = 0; i < shape.head_dim; i += QKV_GROUP)
            unpack_group((const uint8_t*)rows[r] + i / 2, scales[r][i / QKV_GROUP], row + i);
        rows[r] = (const char*)row;
    }
    for (int r = tile.rows; r < round_up(tile.rows, WIDTH); ++r) rows[r] = rows[tile.rows - 1];
}

// Slots of a tile: a multiple of 16, by the bytes of its rows as they are read.
int tile_rows(const QkvDecode& call, const Format& format) {
    const int number_bytes = format.numbers > 1 ? int(sizeof(float)) : format.bytes;
    const int bytes = call.head_dim * number_bytes * (call.values.pages ? 2 : 1);
    const int rows = (call.group < 4 ? TILE_BYTES : GROUP_TILE_BYTES) / bytes / 16 * 16;
    return rows < 16 ? 16 : rows > QKV_TILE ? QKV_TILE : rows;
}

// Heads that are computed together: MAX_HEADS, then the remainder by powers of two.
int heads_per_call(int left) {
    int count = MAX_HEADS;
    while (count > left) count /= 2;
    return count;
}

// Attention over one chunk, for all query heads of its root.
void attend_with(const Format& format, const QkvDecode& call, const Chunk& chunk, float* scratch,
                 Partial into) {
    const int group = call.group, half = call.rotary_dim / 2;
    Shape shape = {};
    shape.head_dim = call.head_dim;
    shape.row_bytes = call.head_dim * format.bytes / format.numbers;
    shape.rotary_dim = call.rotary_dim;
    shape.half = half;
    shape.padded_half = round_up(half, QKV_LANES);
    shape.unrotated = call.head_dim - call.rotary_dim;
    shape.acc_floats = round_up(call.head_dim, WIDTH * format.vectors);
    shape.shared = call.values.pages == nullptr;
    shape.scaled_rows = call.keys.scale_pages && format.numbers == 1;
    shape.slopes = call.slopes != nullptr;
    // If memory is the limit, several streams keep more prefetchers busy. With bytes to convert,
    // arithmetic is the limit, and streams only cost. With RoPE each stream has its own queries, which
    // must stay in cache.
    const bool streamed = format.bytes > 1 && (!half || group <= QKV_STREAMED_GROUP);
    const int streams = shape.streams = !streamed ? 1 : shape.shared ? STREAMS : STREAMS_OF_TWO;
    shape.query_floats = (half ? streams : 1) * QUERY_FLOATS;

    float* begin_queries = scratch;  // (group, QUERY_FLOATS), at the first slot
    float* queries = half ? begin_queries + group * QUERY_FLOATS : begin_queries;  // (group, streams, same)
    float* acc = queries + group * shape.query_floats;
    float* state = acc + group * shape.acc_floats;  // (group, 3, WIDTH): row_max, row_sum, slope
    float* scores = state + group * 3 * WIDTH;      // (2 tiles, group, SCORES)
    float* key_scale = scores + 2 * group * SCORES;
    float* query = key_scale + QUERY_FLOATS;
    float* fp32_rows = query + QUERY_FLOATS;  // int4: (2 tiles, 2 tensors, rows, head_dim)

    if (call.key_scale && half) {
        pack_query_fp32(shape, call.key_scale, key_scale);
        shape.key_scale = key_scale;
    }
    const int64_t first_head = int64_t(chunk.sequence) * call.roots * group + chunk.root * group;
    for (int h = 0; h < group; ++h) {
        const float* given = call.query + (first_head + h) * call.head_dim;
        for (int i = 0; i < call.head_dim; ++i) query[i] = given[i] * LOG2_E;
        for (int i = call.head_dim; i < round_up(call.head_dim, QKV_LANES); ++i) query[i] = 0;
        // Rotated coordinates must be scaled before RoPE, in the key; for the others, q works as well.
        if (call.key_scale)
            for (int i = call.rotary_dim; i < call.head_dim; ++i) query[i] *= call.key_scale[i];
        format.pack_query(shape, query, begin_queries + h * QUERY_FLOATS);
    }
    for (int i = 0; i < group * shape.acc_floats; ++i) acc[i] = 0;
    for (int h = 0; h < group;) {
        const int count = heads_per_call(group - h);
        float* head_state = state + h * 3 * WIDTH;
        for (int lane = 0; lane < WIDTH; ++lane) {
            head_state[lane] = NEG_INF;
            head_state[WIDTH + lane] = 0;
            const int64_t head = chunk.root * group + h + lane / (WIDTH / count);
            head_state[2 * WIDTH + lane] = call.slopes ? call.slopes[head] * LOG2_E : 0;
        }
        h += count;
    }
    const int row = 2 * shape.padded_half;
    const auto advance = [&](float* query_row, int64_t slots) {
        for (; slots > QKV_TILE; slots -= QKV_TILE)
            rotate_back(shape, call.rope_in_tile + QKV_TILE * row, query_row);
        rotate_back(shape, call.rope_in_tile + slots * row, query_row);
    };
    if (half)
        for (int h = 0; h < group; ++h) {
            float* query_row = begin_queries + h * QUERY_FLOATS;
            rotate_back(shape, call.rope_per_chunk + chunk.begin / QKV_CHUNK * row, query_row);
            advance(query_row, chunk.begin % QKV_CHUNK);
        }

    // A ring: the tile that is accumulated, the one that is scored, and those that are prefetched.
    constexpr int TILES = PREFETCH_TILES + 2;
    Tile tiles[TILES];
    for (Tile& tile : tiles)
        for (float& mask : tile.mask) mask = 0;
    const int tile_step = tile_rows(call, format);
    // Streams have equal lengths; the slots that remain are one row of each of the first streams. Rows
    // of all streams would share a few sets of the L1 cache if streams began at multiples of its period.
    const int64_t slots_all = chunk.end - chunk.begin;
    int64_t length = slots_all / streams;
    if (streams > 1 && slots_all == length * streams && length > QKV_TILE / 2 &&
        length * call.keys.row_stride * format.bytes % L1_PERIOD == 0)
        --length;
    const int64_t even = length * streams;
    const auto attend_to = [&](int64_t begin, int64_t slots_per_stream, int64_t rows) {
        Cursors from = {};
        for (int s = 0; s < streams; ++s) {
            from.slot[s] = begin + s * slots_per_stream;
            for (int h = 0; half && h < group; ++h) {
                float* into = queries + h * shape.query_floats + s * QUERY_FLOATS;
                const float* last = s > 0 ? into - QUERY_FLOATS : begin_queries + h * QUERY_FLOATS;
                __builtin_memcpy(into, last, QUERY_FLOATS * sizeof(float));
                if (s > 0) advance(into, slots_per_stream);
            }
        }
        const int64_t count = (rows + tile_step - 1) / tile_step;
        // Slots of a tile in each stream; after QKV_TILE slots, the table rope_in_tile ends and the
        // queries are rotated.
        const int slots = tile_step / streams, tiles_per_rotation = QKV_TILE / slots;
        const auto fill_tile = [&](int64_t tile_index) -> Tile* {
            const int64_t left = rows - tile_index * tile_step;
            if (left <= 0) return nullptr;
            Tile& tile = tiles[tile_index % TILES];
            fill(call, format, chunk, streams, from, left < tile_step ? int(left) : tile_step, tile);
            tile.rope_in_tile = call.rope_in_tile + tile_index % tiles_per_rotation * slots * row;
            return &tile;
        };
        const auto run_tile = [&](const TileFunction (&by_size)[4], int64_t tile_index,
                                  const Tile* ahead) {
            for (int h = 0; h < group;) {
                const int heads = heads_per_call(group - h);
                float* head_state = state + h * 3 * WIDTH;
                by_size[size_index(heads)](
                    shape, tiles[tile_index % TILES],
                    {queries + h * shape.query_floats, head_state + 2 * WIDTH, head_state,
                     head_state + WIDTH, scores + (tile_index % 2 * group + h) * SCORES,
                     acc + h * shape.acc_floats, h == 0 ? ahead : nullptr});
                h += heads;
            }
        };
        for (int tile_index = 0; tile_index < PREFETCH_TILES; ++tile_index)
            if (const Tile* tile = fill_tile(tile_index))
                for (int i = 0; i < tile->rows; ++i) {
                    prefetch<1>(tile->key + i, shape.row_bytes);
                    if (!shape.shared) prefetch<1>(tile->value + i, shape.row_bytes);
                }
        // A tile is accumulated after the next one is scored: the two are independent, so neither
        // waits for the last instructions of the other.
        for (int64_t tile_index = 0; tile_index <= count; ++tile_index) {
            const Tile* ahead = fill_tile(tile_index + PREFETCH_TILES);
            if (half && tile_index > 0 && tile_index % tiles_per_rotation == 0)
                for (int query_row = 0; query_row < group * streams; ++query_row)
                    advance(queries + query_row * QUERY_FLOATS, tiles_per_rotation * slots);
            if (tile_index < count && format.numbers > 1) {
                const int floats = tile_step * call.head_dim;
                float* into = fp32_rows + tile_index % 2 * 2 * floats;
                Tile& tile = tiles[tile_index % TILES];
                unpack_int4(tile, shape, tile.key, tile.key_groups, into);
                if (!shape.shared)
                    unpack_int4(tile, shape, tile.separate, tile.separate_groups, into + floats);
            }
            if (tile_index < count) run_tile(format.score, tile_index, ahead);
            if (tile_index > 0) run_tile(format.accumulate, tile_index - 1, ahead);
        }
    };
    if (even > 0) attend_to(chunk.begin, length, even);
    if (slots_all > even) {
        for (int h = 0; half && h < group; ++h) advance(begin_queries + h * QUERY_FLOATS, even);
        attend_to(chunk.begin + even, 1, slots_all - even);
    }

    for (int h = 0; h < group;) {
        const int count = heads_per_call(group - h), rows = WIDTH / count;
        const float* head_state = state + h * 3 * WIDTH;
        for (int k = 0; k < count; ++k) {
            into.row_max[h + k] = head_state[k * rows];
            into.row_sum[h + k] = 0;
            for (int lane = k * rows; lane < (k + 1) * rows; ++lane)
                into.row_sum[h + k] += head_state[WIDTH + lane];
        }
        h += count;
    }
    for (int h = 0; h < group; ++h)
        format.unpack_out(shape, acc + h * shape.acc_floats, into.acc + h * call.head_dim);
}
