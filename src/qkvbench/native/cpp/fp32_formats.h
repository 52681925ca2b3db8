// All types are computed in fp32, with and without RoPE.
#pragma once

constexpr Format PLAIN_FORMATS[] = {
    make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Fp32Compute, Fp32Compute, Bf16>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Fp32Compute, Fp32Compute, Fp16>(1, pack_query_fp32, unpack_out_fp32),
    make_format<Fp32Compute, Fp32Compute, Int8>(1, pack_query_fp32, unpack_out_fp32),
    int4_format(make_format<Fp32Compute, Fp32Compute, Fp32>(1, pack_query_fp32, unpack_out_fp32)),
};
constexpr const Format (&ROPE_FORMATS)[5] = PLAIN_FORMATS;
