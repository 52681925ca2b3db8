// What the caller, the targets and the threads say to each other. Plain C types: ctypes reads it too.
#pragma once

#include <stdint.h>

extern "C" {

// The types of cached numbers. A row of int8 has one scale in fp32; a row of int4 has one for each
// QKV_GROUP numbers. int4 holds -8..7 in two's complement, two numbers a byte, the even one in the
// low nibble.
enum QkvType { QKV_FP32, QKV_BF16, QKV_FP16, QKV_INT8, QKV_INT4 };

// Rows that lie in pages: row `slot` of sequence b and root head g is at
// pages[b * pages_each + slot / page_rows] + (g * head_stride + slot % page_rows * row_stride).
// Strides count elements as they are stored: of int4, bytes. One page for each sequence is a plain cache.
struct QkvRows {
    const uint64_t* pages;
    int64_t head_stride, row_stride;
    const uint64_t* scale_pages;  // int8 and int4: fp32 scales by the same rule
    int64_t scale_head_stride, scale_row_stride;
};

// One query per sequence and head over what is cached; query head h reads root head h / group.
struct QkvDecode {
    int32_t type, head_dim, batch, roots, group, threads;
    int32_t page_rows, pages_each, sinks;
    QkvRows keys, values;                     // values.pages null: the key's root is the value
    const int64_t *first, *length;            // slots [0, sinks) and [first, length) are visible
    const float* query;                       // (batch, heads, head_dim), scaled and turned
    float* out;                               // (batch, heads, head_dim)
    float* log_sum;                           // (batch, heads), or null
    const float* key_scale;                   // (head_dim,) on the root before it is turned, or null
    const float* slopes;                      // (heads,), or null: score -= slope * |position - slot|
    const int64_t* position;                  // (batch,), where there are slopes
    // Cosines, then sines, of how far each pair turns, each padded with 0 to a multiple of 16:
    int32_t turned;                           // coordinates that are turned, in pairs (i, i + half)
    const float *near, *far;                  // by 0 ... QKV_TILE slots; by multiples of QKV_STRETCH
};

// Rows times a matrix: out[r, o] = sum over i of x[r, i] * weights[o, i], plus bias[o]. All are of
// `type`, fp32 or bf16, and contiguous; sums are in fp32.
struct QkvProduct {
    int32_t type, rows, inputs, outputs, threads;
    const void *weights, *bias, *x;           // bias may be null
    void* out;
};

}  // extern "C"

enum {
    QKV_LANES = 16,      // to a multiple of which rows of tables and queries are padded
    QKV_TILE = 64,       // slots that are scored at a time, at most
    QKV_STRETCH = 1024,  // slots that one thread attends to at a time: the same sums for any number
    QKV_MOST_DIM = 256,
    QKV_GROUP = 32,      // numbers of an int4 row that share a scale
};

// Floats of scratch for `group` heads: queries 304, sums 256, states 48, scores 160; three
// queries beside, and those of one head in seven other places.
#define QKV_SCRATCH(group) ((group) * 768 + 10 * 304)
// Beside those for int4: 16 rows in fp32 of two tiles of two tensors.
#define QKV_SCRATCH_INT4 (2 * 2 * 16 * QKV_MOST_DIM)

// What attending over some slots gives, for the heads of one root: the weighted sums are relative
// to 2 to the power of `most`, and `total` is the sum of the weights.
struct Partial {
    float *most, *total;  // (group,)
    float* sums;          // (group, head_dim)
};

// Slots [begin, end) of one sequence and root head, at most QKV_STRETCH, from one multiple of it on.
struct Stretch {
    int32_t sequence, root;
    int64_t begin, end;
};

// One instruction set's way to do the work. `scratch` has QKV_SCRATCH(group) floats, aligned to 64 bytes.
struct Target {
    const char* name;
    void (*attend)(const QkvDecode& call, const Stretch& stretch, float* scratch, Partial into);
    // Bounds, for benchmarks: the sum of 64-byte lines, and `rounds` rounds of fused multiply-adds
    // in 512 bits' worth of registers; both return a number that keeps the work from being removed.
    float (*read)(const void* bytes, int64_t lines);
    float (*multiply)(int64_t rounds);
    // The rows of a product as `product` reads them, each padded to a multiple of 2 * QKV_LANES
    // floats; then outputs [begin, end) of all rows.
    void (*lay_out)(const QkvProduct& call, float* into);
    void (*product)(const QkvProduct& call, const float* x, int begin, int end);
};
