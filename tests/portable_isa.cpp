// Compares the portable ISA's attention with sums in fp64, on a processor or in an emulator. Exits with
// 1 if they differ by more than the rounding of some hundred sums in fp32.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "decode.h"

extern const Isa ISA_PORTABLE;

namespace {

constexpr int TOKENS = 333;
constexpr float SCALE = 0.02f;  // of int8 and int4

float random_number() { return float(double(rand()) / RAND_MAX - 0.5); }

struct Case {
    int type, dim, group, rotary_dim;
    std::vector<float> rows, query, scales;
    std::vector<char> stored;

    Case(int type, int dim, int group, int rotary_dim)
        : type(type), dim(dim), group(group), rotary_dim(rotary_dim), rows(TOKENS * dim), query(group * dim),
          scales(TOKENS * dim, SCALE), stored(TOKENS * dim * sizeof(float)) {
        for (int i = 0; i < TOKENS * dim; ++i) rows[i] = store(i, random_number());
        for (float& q : query) q = 2 * random_number();
    }

    // Stores a number in the cache's type and returns the stored value.
    float store(int i, float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        if (type == QKV_FP32) {
            std::memcpy(&stored[i * sizeof x], &x, sizeof x);
        } else if (type == QKV_BF16) {
            const uint16_t half = uint16_t(bits >> 16);
            std::memcpy(&stored[i * sizeof half], &half, sizeof half);
            bits &= 0xffff0000;
            std::memcpy(&x, &bits, sizeof x);
        } else if (type == QKV_INT4) {
            const int integer = int(14 * x);
            stored[i / 2] = char(stored[i / 2] | (i % 2 ? integer << 4 : integer & 15));
            x = float(integer) * SCALE;
        } else {
            stored[i] = char(int8_t(200 * x));
            x = float(int8_t(stored[i])) * SCALE;
        }
        return x;
    }

    double angle(int slot, int pair) const { return slot * std::pow(10000.0, -2.0 * pair / rotary_dim); }

    double score(int slot, int head) const {
        const float *row = &rows[slot * dim], *q = &query[head * dim];
        const int half = rotary_dim / 2;
        double sum = 0;
        for (int i = 0; i < half; ++i) {
            const double c = std::cos(angle(slot, i)), s = std::sin(angle(slot, i));
            sum += q[i] * (row[i] * c - row[half + i] * s) + q[half + i] * (row[half + i] * c + row[i] * s);
        }
        for (int i = rotary_dim; i < dim; ++i) sum += q[i] * row[i];
        return sum;
    }

    double largest_difference() const {
        const int half = rotary_dim / 2, padded = (half + QKV_LANES - 1) / QKV_LANES * QKV_LANES;
        std::vector<float> rope_in_tile((QKV_TILE + 1) * 2 * padded + 1), rope_per_chunk(2 * padded + 1);
        for (int slot = 0; slot <= QKV_TILE; ++slot)
            for (int i = 0; i < half; ++i) {
                rope_in_tile[slot * 2 * padded + i] = float(std::cos(angle(slot, i)));
                rope_in_tile[slot * 2 * padded + padded + i] = float(std::sin(angle(slot, i)));
            }
        for (int i = 0; i < half; ++i) rope_per_chunk[i] = 1;
        const uint64_t page = uint64_t(stored.data()), scale_page = uint64_t(scales.data());
        const int64_t first = 0, length = TOKENS;
        QkvDecode call = {};
        call.type = type, call.head_dim = dim, call.batch = call.roots = call.threads = 1;
        call.group = group, call.page_rows = TOKENS, call.pages_each = 1;
        call.keys = {&page, TOKENS * dim, dim, nullptr, 0, 0};
        if (type == QKV_INT8) call.keys = {&page, TOKENS * dim, dim, &scale_page, TOKENS, 1};
        if (type == QKV_INT4)
            call.keys = {&page,       TOKENS * dim / 2,         dim / 2,
                         &scale_page, TOKENS * dim / QKV_GROUP, dim / QKV_GROUP};
        call.first = &first, call.length = &length, call.query = query.data();
        call.rotary_dim = rotary_dim;
        call.rope_in_tile = rope_in_tile.data(), call.rope_per_chunk = rope_per_chunk.data();
        const size_t floats = QKV_SCRATCH(group) + QKV_SCRATCH_INT4;
        const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
        float* scratch = static_cast<float*>(aligned_alloc(64, bytes));
        std::vector<float> row_max(group), row_sum(group), acc(group * dim);
        ISA_PORTABLE.attend(call, {0, 0, 0, TOKENS}, scratch,
                            {row_max.data(), row_sum.data(), acc.data()});
        std::free(scratch);

        double worst = 0;
        for (int head = 0; head < group; ++head) {
            std::vector<double> expected(dim);
            double weights = 0;
            for (int slot = 0; slot < TOKENS; ++slot) {
                const double weight = std::exp(score(slot, head));
                weights += weight;
                for (int i = 0; i < dim; ++i) expected[i] += weight * rows[slot * dim + i];
            }
            for (int i = 0; i < dim; ++i) {
                const double off = std::fabs(expected[i] / weights - acc[head * dim + i] / row_sum[head]);
                if (!(off <= worst)) worst = off;
            }
        }
        return worst;
    }
};

}  // namespace

int main() {
    double worst = 0;
    for (int type : {QKV_FP32, QKV_BF16, QKV_INT8, QKV_INT4})
        for (int dim : {32, 48, 64, 128})
            for (int group : {1, 2, 8})
                for (int rotary_dim : {0, dim / 4 * 2, dim}) {
                    if (type == QKV_INT4 && dim % QKV_GROUP) continue;
                    const double off = Case(type, dim, group, rotary_dim).largest_difference();
                    if (!(off <= worst)) worst = off;
                }
    std::printf("%s: largest difference %.2g\n", ISA_PORTABLE.name, worst);
    return worst < 1e-5 ? 0 : 1;
}
