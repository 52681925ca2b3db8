// The library's door: which target runs, how a call is cut into stretches, how their parts are joined.
#include "decode.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "pool.h"

#if defined(__x86_64__)
extern const Target TARGET_AVX512_BF16, TARGET_AVX512, TARGET_AVX2;
#endif
extern const Target TARGET_PORTABLE;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Choice {
    const Target* target;
    bool runs;
};

// All targets of this processor family, the fastest first.
const std::vector<Choice>& choices() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool dot = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    static const std::vector<Choice> all = {{&TARGET_AVX512_BF16, dot},
                                            {&TARGET_AVX512, avx512},
                                            {&TARGET_AVX2, avx2},
                                            {&TARGET_PORTABLE, true}};
#else
    static const std::vector<Choice> all = {{&TARGET_PORTABLE, true}};
#endif
    return all;
}

// Work below this is done before another thread has woken up.
constexpr int64_t BYTES_FOR_THREADS = 1 << 18;
// Of weights, that one thread takes at a time.
constexpr int64_t PIECE_BYTES = 1 << 17, PIECE_OUTPUTS = 32;

// Room that grows and stays, one for each thread that ever works.
float* room(std::unique_ptr<float[]>& held, size_t& size, size_t floats) {
    if (size < floats) {
        held.reset(new float[floats + 16]);
        size = floats;
    }
    // To a line of 64 bytes.
    return (float*)(((uintptr_t)held.get() + 63) / 64 * 64);
}

struct Job {
    const QkvDecode& call;
    std::vector<Stretch> stretches;
    std::vector<int> first_of;  // of each sequence and root: its first stretch
    std::vector<float> parts;

    int part_floats() const { return call.group * (call.head_dim + 2); }

    Partial part(int stretch) {
        float* at = parts.data() + size_t(stretch) * part_floats();
        return {at, at + call.group, at + 2 * call.group};
    }

    explicit Job(const QkvDecode& call) : call(call) {
        for (int b = 0; b < call.batch; ++b)
            for (int root = 0; root < call.roots; ++root) {
                first_of.push_back(int(stretches.size()));
                const int64_t first = call.first[b], length = call.length[b], sinks = call.sinks;
                // Sinks that reach the window are one interval with it.
                if (sinks > 0 && sinks < first) cut(b, root, 0, std::min(sinks, length));
                cut(b, root, sinks < first ? first : sinks > 0 ? 0 : first, length);
            }
        first_of.push_back(int(stretches.size()));
        parts.resize(stretches.size() * part_floats());
    }

    // Cuts slots [at, to) at multiples of QKV_STRETCH.
    void cut(int sequence, int root, int64_t at, int64_t to) {
        while (at < to) {
            const int64_t end = std::min(to, (at / QKV_STRETCH + 1) * QKV_STRETCH);
            stretches.push_back({sequence, root, at, end});
            at = end;
        }
    }

    // Joins the parts of one sequence and root, always in the same order.
    void join(int which) {
        const int group = call.group, dim = call.head_dim;
        for (int h = 0; h < group; ++h) {
            const int64_t head = int64_t(which) * group + h;
            float most = -INFINITY, total = 0;
            for (int i = first_of[which]; i < first_of[which + 1]; ++i)
                most = std::max(most, part(i).most[h]);
            float* out = call.out + head * dim;
            memset(out, 0, dim * sizeof(float));
            for (int i = first_of[which]; i < first_of[which + 1]; ++i) {
                const Partial each = part(i);
                const float share = exp2f(each.most[h] - most);
                total += share * each.total[h];
                for (int d = 0; d < dim; ++d) out[d] += share * each.sums[h * dim + d];
            }
            if (total != 0)
                for (int d = 0; d < dim; ++d) out[d] /= total;
            if (call.log_sum) call.log_sum[head] = total == 0 ? -INFINITY : (most + log2f(total)) * float(M_LN2);
        }
    }
};

}  // namespace

// The name of the `which`-th target, or null; `runs` says whether this processor has it.
EXPORT const char* qkv_target(int which, int* runs) {
    if (which < 0 || which >= int(choices().size())) return nullptr;
    *runs = choices()[which].runs;
    return choices()[which].target->name;
}

// The hash of the sources that this was built from.
EXPORT const char* qkv_sources() { return QKV_SOURCES; }

// Attention with one query per head, by the `which`-th target. Returns -1, or the first sequence
// that sees slots for which there are no pages; everything else was checked when the call was made.
EXPORT int qkv_decode(int which, const QkvDecode* call) {
    const Target& target = *choices()[which].target;
    const int64_t capacity = int64_t(call->pages_each) * call->page_rows;
    for (int b = 0; b < call->batch; ++b)
        if (call->first[b] < 0 || call->first[b] > call->length[b] || call->length[b] > capacity)
            return b;
    Job job(*call);
    static const int bits_of[] = {32, 16, 16, 8, 4};
    int64_t rows = 0;
    for (const Stretch& each : job.stretches) rows += each.end - each.begin;
    const bool small = rows * call->head_dim * bits_of[call->type] / 8 < BYTES_FOR_THREADS;
    const int threads = small ? 1 : std::min<int>(call->threads, int(job.stretches.size()));
    const size_t floats = QKV_SCRATCH(call->group) + (call->type == QKV_INT4 ? QKV_SCRATCH_INT4 : 0);
    std::atomic<int> next{0};
    on_threads(threads, [&] {
        thread_local std::unique_ptr<float[]> held;
        thread_local size_t size = 0;
        float* scratch = room(held, size, floats);
        for (int i; (i = next++) < int(job.stretches.size());)
            target.attend(*call, job.stretches[i], scratch, job.part(i));
    });
    for (int which = 0; which < call->batch * call->roots; ++which) job.join(which);
    return -1;
}

// Rows times a matrix of weights, by the `which`-th target. Each output is summed by one thread in one
// order, so it has the same bits for any number of threads, and for any other rows beside it.
EXPORT void qkv_product(int which, const QkvProduct* call) {
    const Target& target = *choices()[which].target;
    thread_local std::unique_ptr<float[]> held;
    thread_local size_t size = 0;
    const int stride = (call->inputs + 2 * QKV_LANES - 1) / (2 * QKV_LANES) * (2 * QKV_LANES);
    float* x = room(held, size, size_t(call->rows) * stride);
    target.lay_out(*call, x);
    const int64_t row_bytes = int64_t(call->inputs) * (call->type == QKV_FP32 ? 4 : 2);
    const bool small = row_bytes * call->outputs < BYTES_FOR_THREADS;
    // Pieces are whole vectors of outputs in each of their streams, and long enough to be read in order.
    const int64_t piece = (PIECE_BYTES / row_bytes / PIECE_OUTPUTS + 1) * PIECE_OUTPUTS;
    std::atomic<int64_t> next{0};
    on_threads(small ? 1 : call->threads, [&] {
        for (int64_t at; (at = piece * next++) < call->outputs;)
            target.product(*call, x, int(at), int(std::min<int64_t>(at + piece, call->outputs)));
    });
}

// The bounds that a kernel is held against: bytes read, and multiply-adds made, on one thread each.
EXPORT float qkv_read(int which, const void* bytes, int64_t lines, int threads) {
    const Target& target = *choices()[which].target;
    constexpr int64_t PIECE = 1 << 12;  // lines
    std::atomic<int64_t> next{0};
    std::atomic<int> seen{0};
    on_threads(threads, [&] {
        for (int64_t i; (i = PIECE * next++) < lines;)
            seen += target.read((const char*)bytes + i * 64, std::min(PIECE, lines - i)) != 0;
    });
    return float(seen);
}

EXPORT float qkv_multiply(int which, int64_t rounds) { return choices()[which].target->multiply(rounds); }
