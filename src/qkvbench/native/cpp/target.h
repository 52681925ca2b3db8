// What a target offers: attention, and the bounds that it is held against.

void attend(const QkvDecode& call, const Stretch& stretch, float* scratch, Partial into) {
    const Way* ways = call.turned ? TURNED : PLAIN;
    attend_with(ways[call.type], call, stretch, scratch, into);
}

float read(const void* bytes, int64_t lines) {
    const float* from = (const float*)bytes;
    Vector sum[4] = {all(0), all(0), all(0), all(0)};
    constexpr int STEP = 4 * WIDTH;
    for (const float* end = from + lines * 16; from + STEP <= end; from += STEP)
        each<4>([&](auto i) INLINE_LAMBDA { sum[i] += load(from + i * WIDTH); });
    float lanes[WIDTH];
    store(lanes, sum[0] + sum[1] + sum[2] + sum[3]);
    return lanes[0];
}

// Twelve independent chains, enough for any latency; a round is one step of each.
float multiply(int64_t rounds) {
    constexpr int CHAINS = 12;
    Vector sum[CHAINS], factor = all(0.5f);
    each<CHAINS>([&](auto i) INLINE_LAMBDA { sum[i] = all(float(i)); });
    for (int64_t round = 0; round < rounds; ++round)
        each<CHAINS>([&](auto i) INLINE_LAMBDA {
            sum[i] = sum[i] * factor + factor;
            KEEP(sum[i]);
        });
    each<CHAINS - 1>([&](auto i) INLINE_LAMBDA { sum[0] += sum[i + 1]; });
    float lanes[WIDTH];
    store(lanes, sum[0]);
    return lanes[0];
}
