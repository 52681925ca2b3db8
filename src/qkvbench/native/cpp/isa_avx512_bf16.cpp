// AVX-512 with bf16 and int8 dot products: AMD since Zen 4, Intel since Sapphire Rapids.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx512.h"
#include "attend.h"
#include "bf16_dot_avx512.h"
#include "chunk.h"

constexpr Format PLAIN_FORMATS[] = {
    make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Bf16Dot, Bf16Dot, Bf16>(2, pack_query_bf16, unpack_out_bf16),
    make_format<Fp32Compute, Fp32Compute, Fp16>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Fp32Compute, Fp32Compute, Int8>(1, pack_query_fp32, unpack_out_fp32),
    int4_format(make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32)),
};
// RoPE is applied in fp32, so scores are, too.
constexpr Format ROPE_FORMATS[] = {
    PLAIN_FORMATS[QKV_FP32],
    make_format<Fp32Compute, Bf16Dot, Bf16>(2, pack_query_fp32, unpack_out_bf16),
    PLAIN_FORMATS[QKV_FP16],
    PLAIN_FORMATS[QKV_INT8],
    PLAIN_FORMATS[QKV_INT4],
};
#include "linear.h"
#include "isa.h"
}  // namespace

extern const Isa ISA_AVX512_BF16 = {"avx512-bf16", attend, read, multiply, pack_rows, linear};
