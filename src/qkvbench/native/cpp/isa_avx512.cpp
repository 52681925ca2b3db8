// AVX-512 without dot products of bf16: Intel since Skylake-X.
#include <immintrin.h>

#include "base.h"

namespace {
#include "vector_avx512.h"
#include "attend.h"
#include "chunk.h"
#include "fp32_formats.h"
#include "linear.h"
#include "isa.h"
}  // namespace

extern const Isa ISA_AVX512 = {"avx512", attend, read, multiply, pack_rows, linear};
