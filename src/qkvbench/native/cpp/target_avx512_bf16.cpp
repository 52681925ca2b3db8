// AVX-512 with bf16 and int8 dot products: AMD since Zen 4, Intel since Sapphire Rapids.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx512.h"
#include "attend.h"
#include "pairs_avx512.h"
#include "stretch.h"

constexpr Way PLAIN[] = {
    way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats),
    way<Pairs, Pairs, Bf16>(2, lay_out_pairs, tell_pairs),
    way<Floats, Floats, Fp16>(1, lay_out_floats, tell_floats),
    way<Floats, Floats, Int8>(1, lay_out_floats, tell_floats),
    unpacked(way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats)),
};
// Where keys are turned as they are read, that is done in fp32.
constexpr Way TURNED[] = {
    PLAIN[QKV_FP32],
    way<Floats, Pairs, Bf16>(2, lay_out_floats, tell_pairs),
    PLAIN[QKV_FP16],
    PLAIN[QKV_INT8],
    PLAIN[QKV_INT4],
};
#include "product.h"
#include "target.h"
}  // namespace

extern const Target TARGET_AVX512_BF16 = {"avx512-bf16", attend, read, multiply, lay_out, product};
