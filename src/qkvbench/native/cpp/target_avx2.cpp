// AVX2 with FMA and F16C: x86 since about 2013.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx2.h"
#include "partial.h"
#include "attend.h"
#include "twos_avx2.h"
#include "stretch.h"

constexpr Way PLAIN[] = {
    way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats),
    way<Twos, Twos, Bf16>(1, lay_out_twos, tell_twos),
    way<Floats, Floats, Fp16>(1, lay_out_floats, tell_floats),
    way<Floats, Floats, Int8>(1, lay_out_floats, tell_floats),
    unpacked(way<Floats, Floats, Fp32>(1, lay_out_floats, tell_floats)),
};
// Where keys are turned, their halves are beside each other.
constexpr Way TURNED[] = {
    PLAIN[QKV_FP32],
    way<Floats, Twos, Bf16>(1, lay_out_floats, tell_twos),
    PLAIN[QKV_FP16],
    PLAIN[QKV_INT8],
    PLAIN[QKV_INT4],
};
#include "product.h"
#include "target.h"
}  // namespace

extern const Target TARGET_AVX2 = {"avx2", attend, read, multiply, lay_out, product};
