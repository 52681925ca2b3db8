// The entry points of the library: choice of an ISA, split of the context into chunks, and
// combination of their partial softmax states.
#include "decode.h"

#include <math.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "pool.h"

#if defined(__x86_64__)
// Weak: null if the library was built for a machine that does not run it.
extern const Isa ISA_AVX512_BF16 __attribute__((weak)), ISA_AVX512 __attribute__((weak)),
    ISA_AVX2 __attribute__((weak));
#endif
extern const Isa ISA_PORTABLE;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Choice {
    const Isa* isa;
    bool supported;
};

// All ISAs that were built, fastest first.
const std::vector<Choice>& all_isas() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool dot = avx512 && __builtin_cpu_supports("avx512bf16") &&
                     __builtin_cpu_supports("avx512vnni");
    static const std::vector<Choice> all = [&] {
        std::vector<Choice> built;
        for (const Choice& each : {Choice{&ISA_AVX512_BF16, dot}, Choice{&ISA_AVX512, avx512},
                                   Choice{&ISA_AVX2, avx2}, Choice{&ISA_PORTABLE, true}})
            if (each.isa) built.push_back(each);
        return built;
    }();
#else
    static const std::vector<Choice> all = {{&ISA_PORTABLE, true}};
#endif
    return all;
}

// Less work is done before another thread has woken up.
constexpr int64_t MIN_BYTES_FOR_THREADS = 1 << 18;
// Weights that one thread takes at a time.
constexpr int64_t BLOCK_BYTES = 1 << 17, BLOCK_OUTPUTS = 32;

// A thread's buffer, aligned to 64 bytes; it grows and is kept between calls.
float* aligned_buffer(std::unique_ptr<float[]>& buffer, size_t& size, size_t floats) {
    if (size < floats) {
        buffer.reset(new float[floats + 16]);
        size = floats;
    }
    return (float*)(((uintptr_t)buffer.get() + 63) / 64 * 64);
}

constexpr int BITS_OF[] = {32, 16, 16, 8, 4};  // by QkvType

struct Job {
    const QkvDecode& call;
    std::vector<Chunk> chunks;
    std::vector<int> first_chunk;  // of each sequence and root, (batch * roots + 1,)
    std::vector<float> partials;

    int partial_floats() const { return call.group * (call.head_dim + 2); }

    Partial partial(int chunk) {
        float* at = partials.data() + size_t(chunk) * partial_floats();
        return {at, at + call.group, at + 2 * call.group};
    }

    explicit Job(const QkvDecode& call) : call(call) {
        for (int b = 0; b < call.batch; ++b)
            for (int root = 0; root < call.roots; ++root) {
                first_chunk.push_back(int(chunks.size()));
                const int64_t first = call.first[b], length = call.length[b], sinks = call.sinks;
                // Two intervals, or one if the sinks reach the window.
                if (sinks < first) cut(b, root, 0, std::min(sinks, length));
                cut(b, root, sinks < first ? first : 0, length);
            }
        first_chunk.push_back(int(chunks.size()));
        partials.resize(chunks.size() * partial_floats());
    }

    // Cuts slots [at, to) at multiples of QKV_CHUNK.
    void cut(int sequence, int root, int64_t at, int64_t to) {
        while (at < to) {
            const int64_t end = std::min(to, (at / QKV_CHUNK + 1) * QKV_CHUNK);
            chunks.push_back({sequence, root, at, end});
            at = end;
        }
    }

    // Combines the partials of one sequence and root, always in the same order.
    void combine(int which) {
        const int group = call.group, dim = call.head_dim;
        for (int h = 0; h < group; ++h) {
            const int64_t head = int64_t(which) * group + h;
            float row_max = -INFINITY, row_sum = 0;
            for (int i = first_chunk[which]; i < first_chunk[which + 1]; ++i)
                row_max = std::max(row_max, partial(i).row_max[h]);
            float* out = call.out + head * dim;
            memset(out, 0, dim * sizeof(float));
            for (int i = first_chunk[which]; i < first_chunk[which + 1]; ++i) {
                const Partial each = partial(i);
                const float scale = exp2f(each.row_max[h] - row_max);
                row_sum += scale * each.row_sum[h];
                for (int d = 0; d < dim; ++d) out[d] += scale * each.acc[h * dim + d];
            }
            if (row_sum != 0)
                for (int d = 0; d < dim; ++d) out[d] /= row_sum;
            if (call.log_sum)
                call.log_sum[head] =
                    row_sum == 0 ? -INFINITY : (row_max + log2f(row_sum)) * float(M_LN2);
        }
    }
};

}  // namespace

// The name of the `which`-th ISA, or null; `supported` is set to whether this processor runs it.
EXPORT const char* qkv_isa(int which, int* supported) {
    if (which < 0 || which >= int(all_isas().size())) return nullptr;
    *supported = all_isas()[which].supported;
    return all_isas()[which].isa->name;
}

// The hash of the sources that this was built from, and their files.
EXPORT const char* qkv_sources() { return QKV_SOURCES; }

// Attention with one query per head, by the `which`-th ISA. Returns -1, or the first sequence whose
// visible slots exceed its pages; the caller has checked everything else.
EXPORT int qkv_decode(int which, const QkvDecode* call) {
    const Isa& isa = *all_isas()[which].isa;
    const int64_t capacity = int64_t(call->pages_each) * call->page_rows;
    for (int b = 0; b < call->batch; ++b)
        if (call->first[b] < 0 || call->first[b] > call->length[b] || call->length[b] > capacity)
            return b;
    Job job(*call);
    int64_t rows = 0;
    for (const Chunk& each : job.chunks) rows += each.end - each.begin;
    const bool small = rows * call->head_dim * BITS_OF[call->type] / 8 < MIN_BYTES_FOR_THREADS;
    const int threads = small ? 1 : std::min<int>(call->threads, int(job.chunks.size()));
    const size_t floats = QKV_SCRATCH(call->group) + (call->type == QKV_INT4 ? QKV_SCRATCH_INT4 : 0);
    std::atomic<int> next{0};
    run_on_threads(threads, [&] {
        thread_local std::unique_ptr<float[]> buffer;
        thread_local size_t size = 0;
        float* scratch = aligned_buffer(buffer, size, floats);
        for (int i; (i = next++) < int(job.chunks.size());)
            isa.attend(*call, job.chunks[i], scratch, job.partial(i));
    });
    for (int which = 0; which < call->batch * call->roots; ++which) job.combine(which);
    return -1;
}

// A linear layer, by the `which`-th ISA. Each output is summed by one thread in one order, so its bits
// depend neither on the number of threads nor on other rows.
EXPORT void qkv_linear(int which, const QkvLinear* call) {
    const Isa& isa = *all_isas()[which].isa;
    thread_local std::unique_ptr<float[]> buffer;
    thread_local size_t size = 0;
    const int stride = (call->inputs + 2 * QKV_LANES - 1) / (2 * QKV_LANES) * (2 * QKV_LANES);
    float* x = aligned_buffer(buffer, size, size_t(call->rows) * stride);
    isa.pack_rows(*call, x);
    const int64_t row_bytes = int64_t(call->inputs) * BITS_OF[call->type] / 8;
    const bool small = row_bytes * call->outputs < MIN_BYTES_FOR_THREADS;
    // Blocks are whole vectors of outputs in each stream, and long enough for the prefetchers.
    const int64_t block = (BLOCK_BYTES / row_bytes / BLOCK_OUTPUTS + 1) * BLOCK_OUTPUTS;
    std::atomic<int64_t> next{0};
    run_on_threads(small ? 1 : call->threads, [&] {
        for (int64_t at; (at = block * next++) < call->outputs;)
            isa.linear(*call, x, int(at), int(std::min<int64_t>(at + block, call->outputs)));
    });
}

// Upper bounds for benchmarks: the rate of reads, and that of multiply-adds on one thread.
EXPORT float qkv_read(int which, const void* bytes, int64_t lines, int threads) {
    const Isa& isa = *all_isas()[which].isa;
    constexpr int64_t BLOCK = 1 << 12;  // lines
    std::atomic<int64_t> next{0};
    std::atomic<int> nonzero{0};
    run_on_threads(threads, [&] {
        for (int64_t i; (i = BLOCK * next++) < lines;)
            nonzero += isa.read((const char*)bytes + i * 64, std::min(BLOCK, lines - i)) != 0;
    });
    return float(nonzero);
}

EXPORT float qkv_multiply(int which, int64_t rounds) { return all_isas()[which].isa->multiply(rounds); }
