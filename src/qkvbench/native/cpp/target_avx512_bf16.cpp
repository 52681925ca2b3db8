// AVX-512 with bf16 and int8 dot products: AMD since Zen 4, Intel since Sapphire Rapids.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx512.h"
#include "attend.h"
#include "pairs_avx512.h"
#include "stretch.h"

constexpr Way PLAIN[] = {
    {4, 1, lay_out_floats, attend_tile<Floats, Floats, Fp32>},
    {2, 2, lay_out_pairs, attend_tile<Pairs, Pairs, Bf16>},
    {2, 1, lay_out_floats, attend_tile<Floats, Floats, Fp16>},
    {1, 1, lay_out_floats, attend_tile<Floats, Floats, Int8>},
};
// Where keys are turned as they are read, that is done in fp32.
constexpr Way TURNED[] = {
    PLAIN[QKV_FP32],
    {2, 2, lay_out_floats, attend_tile<Floats, Pairs, Bf16>},
    PLAIN[QKV_FP16],
    {1, 1, lay_out_floats, attend_tile<Floats, Floats, Int8>},
};
#include "target.h"
}  // namespace

extern const Target TARGET_AVX512_BF16 = {"avx512-bf16", attend, read, multiply};
