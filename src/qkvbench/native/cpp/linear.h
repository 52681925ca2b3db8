// A linear layer for a few rows. Reading the weights is the bottleneck; they are read once, in order.
#pragma once

constexpr int WEIGHTS_AHEAD = 1024;  // bytes by which each stream is prefetched

// The type of x, of the bias and of what is made: that of the weights, but fp32 for int8.
template <class Number>
struct ValueOf { using type = Number; };
template <>
struct ValueOf<Int8> { using type = Fp32; };

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
    const Number* weights = (const Number*)call.weights;
    const auto finish = [&](int row, int o, float sum) {
        const float bias = call.bias ? as_float((const Value*)call.bias + o) : 0;
        // Rounded once in every copy of this: a compiler would join the two operations in some alone.
        const float made = call.scales ? __builtin_fmaf(sum, call.scales[o], bias) : sum + bias;
        store_as((Value*)call.out + int64_t(row) * call.outputs + o, made);
    };
    const int inputs = call.inputs, stride = round_up(inputs, 2 * QKV_LANES);
    constexpr int EACH = WIDTH / OUTPUTS;  // outputs of a stream that are one vector with the others'
    const int length = (end - begin) / OUTPUTS / EACH * EACH;
    const int64_t distance = int64_t(length) * inputs;
    x += int64_t(r) * stride;
    for (int at = begin; at < begin + length; at += EACH) {
        Vector sum[ROWS][WIDTH];
        for (int k = 0; k < EACH; ++k) {
            Vector own[ROWS * OUTPUTS];
            multiply_rows<Number, ROWS, OUTPUTS>(weights + int64_t(at + k) * inputs, distance, inputs, x,
                                                 stride, own);
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
        multiply_rows<Number, ROWS, 1>(weights + int64_t(o) * inputs, 0, inputs, x, stride, own);
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
}

void pack_rows(const QkvLinear& call, float* into) {
    // Two vectors of int8 are in the order of fp32.
    if (call.type == QKV_FP32 || call.type == QKV_INT8) pack_rows_of<Fp32>(call, into);
    if (call.type == QKV_BF16) pack_rows_of<Bf16>(call, into);
}
