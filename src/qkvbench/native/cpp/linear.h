// A linear layer for a few rows. Reading the weights is the bottleneck; they are read once, in order.
#pragma once

constexpr int WEIGHTS_AHEAD = 1024;  // bytes by which each stream is prefetched

// The type of x, of the bias and of what is made: that of the weights, but fp32 for int8 and int4.
template <class Number>
struct ValueOf { using type = Number; };
template <>
struct ValueOf<Int8> { using type = Fp32; };
template <>
struct ValueOf<Int4> { using type = Fp32; };

template <class Number>
struct Grouped { static constexpr bool value = false; };
template <>
struct Grouped<Int4> { static constexpr bool value = true; };

// Elements of a row of weights: bytes of two numbers in int4.
template <class Number>
INLINE int64_t row_elements(int inputs) { return Grouped<Number>::value ? inputs / 2 : inputs; }

INLINE void load_two(const Int8* x, Vector& a, Vector& b) {
    a = to_fp32(x);
    b = to_fp32(x + WIDTH);
}

// sum[r, o] = x[r] · weights[o], for one row of weights from each of OUTPUTS streams, `distance`
// numbers apart. The order of a sum's products is the same for any number of rows and streams.
template <class Number, int ROWS, int OUTPUTS>
INLINE void multiply_rows(const Number* weights, int64_t distance, int inputs, const float* x, int stride,
                          Vector (&sum)[ROWS * OUTPUTS]) {
    constexpr int STEP = 2 * WIDTH;
    // Two chains for each sum: a single one would wait for the latency of its own addition.
    Vector own[2 * ROWS * OUTPUTS];
    unroll<2 * ROWS * OUTPUTS>([&](auto i) INLINE_LAMBDA { own[i] = broadcast(0); });
    const auto add = [&](const Number* from, int64_t apart, int i) INLINE_LAMBDA {
        unroll<OUTPUTS>([&](auto o) INLINE_LAMBDA {
            Vector a, b;
            load_two(from + o * apart, a, b);
            unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                Vector* acc = own + 2 * (r * OUTPUTS + o);
                acc[0] += a * load(x + r * stride + i);
                acc[1] += b * load(x + r * stride + i + WIDTH);
            });
        });
    };
    int i = 0;
    for (; i + STEP <= inputs; i += STEP) {
        unroll<OUTPUTS>([&](auto o) INLINE_LAMBDA {
            __builtin_prefetch((const char*)(weights + o * distance + i) + WEIGHTS_AHEAD);
        });
        add(weights + i, distance, i);
    }
    if (i < inputs) {
        Number last[OUTPUTS * STEP] = {};
        for (int o = 0; o < OUTPUTS; ++o)
            for (int k = i; k < inputs; ++k) last[o * STEP + k - i] = weights[o * distance + k];
        add(last, STEP, i);
    }
    unroll<ROWS * OUTPUTS>([&](auto i) INLINE_LAMBDA { sum[i] = own[2 * i] + own[2 * i + 1]; });
}

// The same of int4, whose groups have a scale each: every number is what a matrix in fp32 would have.
template <int ROWS, int OUTPUTS>
INLINE void multiply_groups(const Int4* weights, const float* scales, int length, int inputs, const float* x,
                            int stride, Vector (&sum)[ROWS * OUTPUTS]) {
    const int groups = inputs / QKV_GROUP;
    constexpr int VECTORS = QKV_GROUP / WIDTH, BYTES = QKV_GROUP / 2;
    Vector own[2 * ROWS * OUTPUTS];
    unroll<2 * ROWS * OUTPUTS>([&](auto i) INLINE_LAMBDA { own[i] = broadcast(0); });
    for (int g = 0; g < groups; ++g) {
        unroll<OUTPUTS>([&](auto o) INLINE_LAMBDA {
            const int64_t group = int64_t(o) * length * groups + g;
            const uint8_t* bytes = (const uint8_t*)weights + group * BYTES;
            __builtin_prefetch(bytes + WEIGHTS_AHEAD);
            Vector numbers[VECTORS];
            load_group(bytes, scales[group], numbers);
            unroll<VECTORS>([&](auto i) INLINE_LAMBDA {
                unroll<ROWS>([&](auto r) INLINE_LAMBDA {
                    own[2 * (r * OUTPUTS + o) + i % 2] +=
                        numbers[i] * load(x + r * stride + g * QKV_GROUP + i * WIDTH);
                });
            });
        });
    }
    unroll<ROWS * OUTPUTS>([&](auto i) INLINE_LAMBDA { sum[i] = own[2 * i] + own[2 * i + 1]; });
}

// Rounds to nearest, ties to even.
INLINE void store_as(Fp32* to, float x) { *to = x; }
INLINE void store_as(Bf16* to, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    to->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
INLINE float as_float(const Fp32* x) { return *x; }
INLINE float as_float(const Bf16* x) {
    const uint32_t bits = uint32_t(x->bits) << 16;
    float wide;
    __builtin_memcpy(&wide, &bits, sizeof wide);
    return wide;
}

// Outputs [begin, end) of ROWS rows from `r` on, in OUTPUTS streams of equal length that are read side
// by side; the remaining outputs follow one by one.
template <class Number, int ROWS, int OUTPUTS>
void multiply_streams(const QkvLinear& call, const float* x, int r, int begin, int end) {
    using Value = typename ValueOf<Number>::type;
    constexpr bool GROUPED = Grouped<Number>::value;
    const Number* weights = (const Number*)call.weights;
    const auto finish = [&](int row, int o, float sum) {
        const float bias = call.bias ? as_float((const Value*)call.bias + o) : 0;
        // Rounded once in every copy of this: a compiler would join the two operations in some alone.
        const float made = call.scales && !GROUPED ? __builtin_fmaf(sum, call.scales[o], bias) : sum + bias;
        store_as((Value*)call.out + int64_t(row) * call.outputs + o, made);
    };
    const int inputs = call.inputs, stride = round_up(inputs, 2 * QKV_LANES);
    constexpr int EACH = WIDTH / OUTPUTS;  // outputs of a stream that are one vector with the others'
    const int length = (end - begin) / OUTPUTS / EACH * EACH;
    const int64_t row_size = row_elements<Number>(inputs);
    x += int64_t(r) * stride;
    // Row `o` and those of the other streams, `apart` rows behind each other.
    const auto multiply = [&](auto streams, int o, int apart, auto& own) INLINE_LAMBDA {
        const Number* from = weights + o * row_size;
        if constexpr (GROUPED)
            multiply_groups<ROWS, streams>(from, call.scales + int64_t(o) * (inputs / QKV_GROUP), apart, inputs, x,
                                           stride, own);
        else
            multiply_rows<Number, ROWS, streams>(from, apart * row_size, inputs, x, stride, own);
    };
    for (int at = begin; at < begin + length; at += EACH) {
        Vector sum[ROWS][WIDTH];
        for (int k = 0; k < EACH; ++k) {
            Vector own[ROWS * OUTPUTS];
            multiply(Index<OUTPUTS>(), at + k, length, own);
            unroll<ROWS * OUTPUTS>([&](auto i) INLINE_LAMBDA {
                sum[i / OUTPUTS][i % OUTPUTS * EACH + k] = own[i];
            });
        }
        for (int row = 0; row < ROWS; ++row) {
            float out[WIDTH];
            store(out, horizontal_sums(sum[row]));
            for (int i = 0; i < WIDTH; ++i) finish(r + row, at + i % EACH + i / EACH * length, out[i]);
        }
    }
    for (int o = begin + OUTPUTS * length; o < end; ++o) {
        Vector own[ROWS];
        multiply(Index<1>(), o, 0, own);
        for (int row = 0; row < ROWS; ++row) {
            Vector sum[WIDTH];
            for (int i = 0; i < WIDTH; ++i) sum[i] = own[row];
            float out[WIDTH];
            store(out, horizontal_sums(sum));
            finish(r + row, o, out[0]);
        }
    }
}

// Outputs [begin, end) of every row; `x` is packed by `pack_rows_of`.
template <class Number>
void multiply_outputs(const QkvLinear& call, const float* x, int begin, int end) {
    int r = 0;
    for (; r + 4 <= call.rows; r += 4) multiply_streams<Number, 4, 1>(call, x, r, begin, end);
    for (; r + 2 <= call.rows; r += 2) multiply_streams<Number, 2, 2>(call, x, r, begin, end);
    for (; r < call.rows; ++r) multiply_streams<Number, 1, 4>(call, x, r, begin, end);
}

// x in the order in which `load_group` reads weights.
void pack_groups(const QkvLinear& call, float* into) {
    const int stride = round_up(call.inputs, 2 * QKV_LANES);
    for (int r = 0; r < call.rows; ++r) {
        const float* from = (const float*)call.x + int64_t(r) * call.inputs;
        for (int i = 0; i < call.inputs; ++i)
            into[int64_t(r) * stride + i] = from[i / QKV_GROUP * QKV_GROUP + group_place(i % QKV_GROUP)];
    }
}

// x in fp32, in the order in which `load_two` reads weights, each row padded with zeros.
template <class Number>
void pack_rows_of(const QkvLinear& call, float* into) {
    constexpr int STEP = 2 * WIDTH;
    const int stride = round_up(call.inputs, 2 * QKV_LANES);
    for (int r = 0; r < call.rows; ++r) {
        const Number* from = (const Number*)call.x + int64_t(r) * call.inputs;
        for (int i = 0; i < stride; i += STEP) {
            Number some[STEP] = {};
            for (int k = i; k < call.inputs && k < i + STEP; ++k) some[k - i] = from[k];
            Vector a, b;
            load_two(some, a, b);
            store(into + int64_t(r) * stride + i, a);
            store(into + int64_t(r) * stride + i + WIDTH, b);
        }
    }
}

void linear(const QkvLinear& call, const float* x, int begin, int end) {
    if (call.type == QKV_FP32) multiply_outputs<Fp32>(call, x, begin, end);
    if (call.type == QKV_BF16) multiply_outputs<Bf16>(call, x, begin, end);
    if (call.type == QKV_INT8) multiply_outputs<Int8>(call, x, begin, end);
    if (call.type == QKV_INT4) multiply_outputs<Int4>(call, x, begin, end);
}

void pack_rows(const QkvLinear& call, float* into) {
    // int8 is in the order of fp32.
    if (call.type == QKV_BF16) pack_rows_of<Bf16>(call, into);
    else if (call.type == QKV_INT4) pack_groups(call, into);
    else pack_rows_of<Fp32>(call, into);
}
