// The functions of an Isa: attention, and the benchmarks' bounds.
#pragma once

void attend(const QkvDecode& call, const Chunk& chunk, float* scratch, Partial into) {
    const Format* formats = call.rotary_dim ? ROPE_FORMATS : PLAIN_FORMATS;
    attend_with(formats[call.type], call, chunk, scratch, into);
}

float read(const void* bytes, int64_t lines) {
    const float* from = (const float*)bytes;
    Vector sum[4] = {broadcast(0), broadcast(0), broadcast(0), broadcast(0)};
    constexpr int STEP = 4 * WIDTH;
    for (const float* end = from + lines * 16; from + STEP <= end; from += STEP)
        unroll<4>([&](auto i) INLINE_LAMBDA { sum[i] += load(from + i * WIDTH); });
    float lanes[WIDTH];
    store(lanes, sum[0] + sum[1] + sum[2] + sum[3]);
    return lanes[0];
}

// A round is one step of each of 12 independent chains, enough to hide the latency.
float multiply(int64_t rounds) {
    constexpr int CHAINS = 12;
    Vector sum[CHAINS], factor = broadcast(0.5f);
    unroll<CHAINS>([&](auto i) INLINE_LAMBDA { sum[i] = broadcast(float(i)); });
    for (int64_t round = 0; round < rounds; ++round)
        unroll<CHAINS>([&](auto i) INLINE_LAMBDA {
            sum[i] = sum[i] * factor + factor;
            DO_NOT_OPTIMIZE(sum[i]);
        });
    unroll<CHAINS - 1>([&](auto i) INLINE_LAMBDA { sum[0] += sum[i + 1]; });
    float lanes[WIDTH];
    store(lanes, sum[0]);
    return lanes[0];
}
