// The interface between the caller, the ISAs and the threads. Plain C types: ctypes mirrors them.
#pragma once

#include <stdint.h>

extern "C" {

// The types of cached numbers. A row of int8 has one scale in fp32; a row of int4 has one for each
// QKV_GROUP numbers. int4 holds -8..7 in two's complement, two numbers a byte, the even one in the
// low nibble.
enum QkvType { QKV_FP32, QKV_BF16, QKV_FP16, QKV_INT8, QKV_INT4 };

// Rows in pages: row `slot` of sequence b and root head g is at
// pages[b * pages_each + slot / page_rows] + (g * head_stride + slot % page_rows * row_stride).
// Strides count stored elements (int4: bytes). A contiguous cache is one page for each sequence.
// Pages without a visible slot are never read, so their addresses may be 0.
struct QkvRows {
    const uint64_t* pages;
    int64_t head_stride, row_stride;
    const uint64_t* scale_pages;  // int8 and int4: fp32 scales by the same rule
    int64_t scale_head_stride, scale_row_stride;
};

// Attention of one query per sequence and head; query head h reads root head h / group.
struct QkvDecode {
    int32_t type, head_dim, batch, roots, group, threads;
    int32_t page_rows, pages_each, sinks;
    QkvRows keys, values;                     // values.pages null: keys are also the values
    const int64_t *first, *length;            // slots [0, sinks) and [first, length) are visible
    const float* query;                       // (batch, heads, head_dim), scaled, after RoPE
    float* out;                               // (batch, heads, head_dim)
    float* log_sum;                           // (batch, heads), or null
    const float* key_scale;                   // (head_dim,), or null: multiplies keys before RoPE
    const float* slopes;                      // (heads,), or null: score -= slope * |position - slot|
    const int64_t* position;                  // (batch,), of the queries; read only with slopes
    int32_t rotary_dim;                       // RoPE on pairs (i, i + rotary_dim / 2) of keys; 0: none
    // (slots, 2, padded half): cosines and sines of the angles, padded with 0 to a multiple of 16.
    const float* rope_in_tile;                // at slots 0 ... QKV_TILE
    const float* rope_per_chunk;              // at multiples of QKV_CHUNK
};

// A linear layer: out[r, o] = sum over i of x[r, i] * weights[o, i], times scales[o], plus bias[o].
// All are of `type`, fp32 or bf16, and contiguous; or weights are int8 or int4, and the rest fp32.
// int4 is packed as cached rows are, in whole groups, and each group of a row has a scale of its own.
// Sums are in fp32.
struct QkvLinear {
    int32_t type, rows, inputs, outputs, threads;
    const void *weights, *bias, *x;           // bias may be null
    void* out;
    const float* scales;                      // int8: (outputs,); int4: (outputs, inputs / QKV_GROUP); else null
};

}  // extern "C"

enum {
    QKV_LANES = 16,   // tables and queries are padded to a multiple of it: the widest vector
    QKV_TILE = 64,    // slots that are scored together, at most
    QKV_CHUNK = 1024, // slots of a split of the context: fixed, so sums do not depend on threads
    QKV_MAX_HEAD_DIM = 256,
    QKV_GROUP = 32,   // numbers of an int4 row that share a scale
};

// Heads of a root up to which streams of the cache are read side by side under RoPE.
#define QKV_STREAMED_GROUP 4
// Floats of scratch for `group` heads: each has two queries 304, acc 256, state 48, scores 160; and
// more queries: two temporaries, and those of the other streams, of which there are 16 at most.
#define QKV_SCRATCH(group) \
    ((group) * 1072 + 2 * 304 + ((group) < QKV_STREAMED_GROUP ? (group) : QKV_STREAMED_GROUP) * 15 * 304)
// More floats for int4: (2 tiles, 2 tensors, 16 rows, head_dim) unpacked to fp32. Tiles of more rows
// have smaller heads.
#define QKV_SCRATCH_INT4 (2 * 2 * 16 * QKV_MAX_HEAD_DIM)

// The softmax state of one chunk, in base 2: `row_max` is the largest score, `row_sum` the sum of
// weights 2^(score - row_max), `acc` the sum of weights times values.
struct Partial {
    float *row_max, *row_sum;  // (group,)
    float* acc;                // (group, head_dim)
};

// Slots [begin, end) of one sequence and root head, between two multiples of QKV_CHUNK (split-KV).
struct Chunk {
    int32_t sequence, root;
    int64_t begin, end;
};

// The kernels of one instruction set. `scratch` has QKV_SCRATCH(group) floats, and for int4
// QKV_SCRATCH_INT4 more, aligned to 64 bytes.
struct Isa {
    const char* name;
    void (*attend)(const QkvDecode& call, const Chunk& chunk, float* scratch, Partial into);
    // Bounds, for benchmarks: the sum of 64-byte lines, and `rounds` rounds of fused multiply-adds
    // in 512 bits' worth of registers; both return a number that keeps the work from being removed.
    float (*read)(const void* bytes, int64_t lines);
    float (*multiply)(int64_t rounds);
    // Writes the inputs x as `linear` reads them: (rows, inputs padded to a multiple of
    // 2 * QKV_LANES). `linear` then computes outputs [begin, end) of all rows.
    void (*pack_rows)(const QkvLinear& call, float* into);
    void (*linear)(const QkvLinear& call, const float* x, int begin, int end);
};
