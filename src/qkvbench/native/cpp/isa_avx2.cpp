// AVX2 with FMA and F16C: x86 since about 2013.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx2.h"
#include "partial_load.h"
#include "attend.h"
#include "bf16_interleaved_avx2.h"
#include "chunk.h"

constexpr Format PLAIN_FORMATS[] = {
    make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Bf16Interleaved, Bf16Interleaved, Bf16>(1, pack_query_interleaved, unpack_out_interleaved),
    make_format<Fp32Compute, Fp32Compute, Fp16>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Fp32Compute, Fp32Compute, Int8>(1, pack_query_fp32, unpack_out_fp32),
    int4_format(make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32)),
};
// With RoPE, the two halves of a key are packed side by side, in fp32.
constexpr Format ROPE_FORMATS[] = {
    PLAIN_FORMATS[QKV_FP32],
    make_format<Fp32Compute, Bf16Interleaved, Bf16>(1, pack_query_fp32, unpack_out_interleaved),
    PLAIN_FORMATS[QKV_FP16],
    PLAIN_FORMATS[QKV_INT8],
    PLAIN_FORMATS[QKV_INT4],
};
#include "linear.h"
#include "isa.h"
}  // namespace

extern const Isa ISA_AVX2 = {"avx2", attend, read, multiply, pack_rows, linear};
